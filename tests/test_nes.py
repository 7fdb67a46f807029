"""NES: probes, query formula, steps, the estimate, strength."""

from __future__ import annotations

import pytest
import torch
from support import Recorder, constant, digits, linear, toy_oracle, toy_problem, turning

from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.rng import RowRng, seed_from
from benchmark.types import Norm, Probes, Problem, Threat
from registry.attacks.nes import nes


def attack(problem, answer, **parameters):
    rng = RowRng([seed_from("nes", row) for row in range(len(problem.images))])
    oracle = toy_oracle(problem, answer, region=problem.probes)
    drive(nes(problem, rng, **parameters), oracle)
    return oracle


def trail(problem, record, row=0):
    rows = torch.tensor(record.rows)
    return torch.stack(record.images)[rows == row]


@pytest.mark.parametrize(
    ("budget", "pairs", "spent"),
    [
        (1, 5, 0),
        (2, 5, 0),
        (3, 5, 3),
        (7, 5, 7),
        (11, 5, 11),
        (12, 5, 11),
        (14, 5, 14),
        (100, 20, 99),
        (123, 20, 123),
    ],
)
def test_a_step_costs_its_probes_and_one_check_and_the_last_is_shorter(budget, pairs, spent):
    problem = toy_problem(budget=budget)
    record = Recorder(constant(problem))
    oracle = attack(problem, record, pairs=pairs)
    assert oracle.used.tolist() == [spent] * 3 == record.counts(3)


def test_a_hit_on_the_new_iterate_stops_at_once():
    problem = toy_problem(budget=100)
    oracle = attack(problem, turning(problem, [11, 22, 1000]), pairs=5)
    assert oracle.first_hit.tolist() == [11, 22, 0]
    assert oracle.used.tolist() == [11, 22, 99]


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_probes_are_antithetic_and_as_wide_as_asked(norm):
    problem = toy_problem(norm=norm, budget=81, probes=Probes.FREE, shape=(3, 16, 12))
    record = Recorder(constant(problem))
    attack(problem, record, pairs=40, probe=0.02)
    shown = trail(problem, record)[:80]
    offsets = shown - problem.images[0]
    assert torch.allclose(offsets[0::2], -offsets[1::2], atol=1e-12)
    assert float(offsets.std()) == pytest.approx(0.02, rel=0.02)
    assert float(offsets[0::2].mean()) == pytest.approx(0.0, abs=0.02 * 4 / (40 * 576) ** 0.5)


@pytest.mark.parametrize("probes", list(Probes))
def test_probes_stay_where_the_policy_says(probes):
    problem = toy_problem(probes=probes, budget=82, eps=0.05)
    record = Recorder(constant(problem))
    attack(problem, record, probe=0.2)
    shown = trail(problem, record)
    boxed = bool(((shown >= 0) & (shown <= 1)).all())
    away = distance(shown, problem.images[:1].expand_as(shown), Norm.LINF)
    assert boxed == (probes is not Probes.FREE)
    assert bool((away <= 0.05 + 1e-6).all()) == (probes is Probes.BALL)
    iterates = away[40::41]
    assert bool((iterates <= 0.05 + 1e-6).all())


def test_a_linf_step_moves_every_value_by_the_step_or_not_at_all():
    problem = toy_problem(budget=41, eps=0.2)
    record = Recorder(linear(problem))
    attack(problem, record, step=0.03)
    moved = (trail(problem, record)[40] - problem.images[0]).abs()
    clipped = (problem.images[0] < 0.03) | (problem.images[0] > 0.97)
    assert torch.allclose(moved[~clipped], torch.full_like(moved[~clipped], 0.03))


def test_an_l2_step_has_the_length_of_the_step():
    problem = toy_problem(budget=41, eps=1.0, norm=Norm.L2, probes=Probes.FREE)
    problem = Problem(problem.images * 0.5 + 0.25, problem.labels, problem.threat, 4, Probes.FREE)
    record = Recorder(linear(problem))
    attack(problem, record, step=0.1)
    length = distance(trail(problem, record)[40:41], problem.images[:1], Norm.L2)
    assert float(length[0]) == pytest.approx(0.1)


def test_a_constant_victim_is_never_left():
    problem = toy_problem(budget=123)
    flat = Problem(problem.images, problem.labels * 0, problem.threat, 4)

    def answer(images, _rows):
        return torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(len(images), 1)

    record = Recorder(answer)
    attack(flat, record)
    shown = trail(flat, record)
    assert torch.equal(shown[40::41], flat.images[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_the_estimate_turns_towards_the_gradient_as_the_formula_says(loss):
    size, pairs, count = 300, 20, 200
    generator = torch.Generator().manual_seed(1)
    images = torch.full((count, 1, 15, 20), 0.5, dtype=torch.float64)
    labels = torch.zeros(count, dtype=torch.int64)
    slope = torch.randn(size, generator=generator, dtype=torch.float64) * 0.01

    def answer(shown, _rows):
        own = torch.stack([slope @ image.flatten() for image in shown]) + 5.0
        return torch.stack((own, torch.zeros_like(own)), 1)

    problem = Problem(images, labels, Threat(Norm.L2, 1.0, 41), 2, Probes.FREE)
    record = Recorder(answer)
    attack(problem, record, pairs=pairs, probe=0.001, loss=loss)
    iterates = torch.stack(record.images)[-count:]
    steps = (iterates - images).flatten(1)
    cosine = -(steps @ slope) / (steps.norm(dim=1) * slope.norm())
    expected = (pairs / (size + pairs + 1)) ** 0.5
    assert float(cosine.mean()) == pytest.approx(expected, rel=0.05)


def test_it_breaks_digits_of_a_real_victim():
    problem, answer = digits(budget=600)
    oracle = attack(problem, answer)
    by_300 = (oracle.broken_at > 0) & (oracle.broken_at <= 300)
    # 42 % of 200 images fall within 300 queries; 60 images leave 6.5 points of standard error.
    assert 0.22 < float(by_300.float().mean()) < 0.62
    assert float((oracle.broken_at > 0).float().mean()) > float(by_300.float().mean()) + 0.1
