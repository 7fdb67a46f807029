"""NES by query-limited steps, with partial information, and from labels alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import Recorder, digits, toy_oracle, toy_problem

from benchmark.config import Config
from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.loading import load_dataset, load_victim
from benchmark.rng import RowRng, seed_from
from benchmark.scores import Scores
from benchmark.targets import draw_targets, starts
from benchmark.types import Access, Aim, Norm, Probes
from registry.attacks.nes import _halve, nes
from registry.attacks.nes_label import nes_label
from registry.attacks.nes_partial import nes_partial

NAN = torch.nan


def streams(problem):
    return RowRng([seed_from("nes", row) for row in range(len(problem.images))])


def posed(budget, count=20, eps=0.3):
    """Digits aimed at another digit, each with an image of that digit."""
    problem, answer = digits(budget, count)
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    ids = range(len(problem.images))
    targets = draw_targets(problem.labels, ids, 10, 0)
    threat = replace(problem.threat, aim=Aim.TARGETED, eps=eps)
    found = starts(targets, ids, data, victim, 0)
    return replace(problem, threat=threat, targets=targets, starts=found), answer


def run(attack, problem, answer, access=Access.TOPK, scores="top-1", **parameters):
    record = Recorder(answer)
    terms = {"region": Probes.BOX, "access": access, "scores": Scores.parse(scores)}
    oracle = toy_oracle(problem, record, **terms)
    drive(attack(problem, streams(problem), **parameters), oracle)
    return oracle, record


def test_steps_are_halved_when_the_loss_has_grown_over_the_last_ones():
    stride = torch.tensor([0.04, 0.04, 0.04, 1e-4])
    history = torch.tensor([[9.0, 3.0, 2.0], [9.0, 3.0, 2.0], [9.0, NAN, 2.0], [9.0, 3.0, 2.0]])
    loss = torch.tensor([4.0, 1.0, 9.0, 4.0])
    stride, history = _halve(stride, history, loss, least=1e-4)
    assert stride.tolist() == pytest.approx([0.02, 0.04, 0.04, 1e-4])
    assert history.isnan().all(1).tolist() == [True, False, False, True]
    assert history[1].tolist() == [3.0, 2.0, 1.0]


def test_a_step_shorter_than_the_least_is_left_as_it_is():
    found, _ = _halve(torch.tensor([2e-5]), torch.tensor([[1.0, 1.0]]), torch.tensor([2.0]), 5e-5)
    assert found.tolist() == pytest.approx([2e-5])


def test_momentum_keeps_a_share_of_the_earlier_direction():
    """Two steps on a linear loss: with momentum the second goes on along the first."""
    problem = toy_problem(norm=Norm.L2, eps=1.0, budget=22, count=1)
    slope = torch.linspace(-1, 1, problem.images[0].numel(), dtype=torch.float64)
    turns = []
    for momentum in (0.0, 0.999):
        record = Recorder(
            lambda images, _rows: torch.stack(
                [torch.stack((5 + slope @ i.flatten(), *[slope[0] * 0] * 3)) for i in images]
            )
        )
        oracle = toy_oracle(problem, record, region=Probes.BOX)
        drive(nes(problem, streams(problem), pairs=5, step=0.01, momentum=momentum), oracle)
        start, first, second = problem.images[0], record.images[10], record.images[21]
        steps = torch.stack((first - start, second - first)).flatten(1)
        turns.append(float(torch.nn.functional.cosine_similarity(steps[0], steps[1], dim=0)))
    assert abs(turns[0]) < 0.35 and turns[1] > 0.5


@pytest.mark.parametrize(
    ("attack", "access", "more", "step"),
    [
        (nes_partial, Access.TOPK, {"pairs": 3}, 6),
        (nes_label, Access.LABEL, {"pairs": 3, "copies": 4}, 24),
    ],
)
def test_the_start_the_probes_and_every_candidate_are_charged(attack, access, more, step):
    problem, answer = posed(200, count=6, eps=0.01)
    oracle, record = run(attack, problem, answer, access, **more)
    count = len(problem.images)
    assert torch.equal(torch.stack(record.images[:count]), problem.starts)
    assert record.rows[:count] == list(range(count))
    assert record.counts(count) == oracle.used.tolist()
    assert bool((oracle.used <= 200).all()) and bool((oracle.used > 200 - step - 1).all())


@pytest.mark.parametrize("attack", [nes_partial, nes_label])
def test_the_radius_falls_and_the_target_stays(attack):
    access = Access.TOPK if attack is nes_partial else Access.LABEL
    problem, answer = posed(700, count=10)
    oracle, record = run(attack, problem, answer, access)
    rows, shown = torch.tensor(record.rows), torch.stack(record.images)
    start = distance(problem.starts, problem.images, Norm.LINF)
    nearest = []
    for row in range(len(problem.images)):
        mine = shown[rows == row]
        wanted = answer(mine, rows).argmax(1) == problem.targets[row]
        away = distance(mine, problem.images[row : row + 1].expand_as(mine), Norm.LINF)
        nearest.append(float(away[wanted].min()))
    nearest = torch.tensor(nearest)
    assert bool((nearest <= start + 1e-6).all())
    assert float((nearest < 0.85 * start).float().mean()) > 0.6
    assert bool((oracle.reach[oracle.broken_at > 0] <= 0.3 + 1e-5).all())


def test_partial_information_reaches_targets_with_one_class_shown():
    problem, answer = posed(1500, count=40)
    oracle, _ = run(nes_partial, problem, answer)
    assert float((oracle.broken_at > 0).float().mean()) > 0.2
