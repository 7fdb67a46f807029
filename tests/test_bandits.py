"""Bandits: query formula, probes, prior, tiles, learning on a linear loss, strength."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support import (
    Recorder,
    constant,
    digits,
    linear,
    toy_oracle,
    toy_problem,
    true_label_logits,
    turning,
)

from benchmark.catalogue import ATTACKS
from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.rng import RowRng, seed_from
from benchmark.types import Aim, Norm, Probes, Problem, Threat
from registry.attacks import bandits as module
from registry.attacks.bandits import bandits

NORMS = pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])


def streams_of(problem):
    return RowRng([seed_from("bandits", row) for row in range(len(problem.images))])


def attack(problem, answer, **parameters):
    oracle = toy_oracle(problem, answer, region=problem.probes)
    drive(bandits(problem, streams_of(problem), **parameters), oracle)
    return oracle


def trail(record, row=0):
    return torch.stack(record.images)[torch.tensor(record.rows) == row]


def sloped(problem, slope, offset=1e4):
    """Scores of a linear margin, never wrong."""

    def answer(images, rows):
        rises = [offset + slope @ image.flatten().double() for image in images]
        return true_label_logits(problem, rows, torch.stack(rises))

    return answer


def a_slope(size, seed=1):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("budget", "spent"), [(1, 0), (2, 0), (3, 3), (5, 3), (6, 6), (7, 6), (100, 99), (101, 99)]
)
def test_a_step_costs_two_probes_and_one_check(budget, spent):
    problem = toy_problem(budget=budget)
    record = Recorder(constant(problem))
    oracle = attack(problem, record)
    assert oracle.used.tolist() == [spent] * 3 == record.counts(3)


def test_it_stops_at_the_hit_and_others_go_on():
    problem = toy_problem(budget=30)
    oracle = attack(problem, turning(problem, [3, 1000, 15]))
    assert oracle.first_hit.tolist() == [3, 0, 15]
    assert oracle.used.tolist() == [3, 30, 15]


@NORMS
@pytest.mark.parametrize("tile", [0, 3, None])
def test_probes_lie_at_the_radius_around_the_iterate(norm, tile):
    problem = toy_problem(norm=norm, budget=60, probes=Probes.FREE, shape=(3, 9, 12))
    record = Recorder(sloped(problem, a_slope(324)))
    attack(problem, record, radius=0.3, tile=tile)
    for row in range(3):
        shown = trail(record, row)
        iterates = torch.cat((problem.images[row : row + 1], shown[2::3]))[:-1]
        for probe in (shown[0::3], shown[1::3]):
            away = distance(probe, iterates, Norm.L2)
            assert torch.allclose(away, torch.full_like(away, 0.3), rtol=1e-12)


def test_the_first_probes_are_opposite():
    problem = toy_problem(budget=3, probes=Probes.FREE)
    record = Recorder(constant(problem))
    attack(problem, record)
    shown = trail(record) - problem.images[0]
    assert torch.allclose(shown[0], -shown[1])


@pytest.mark.parametrize("probes", list(Probes))
def test_probes_stay_where_the_policy_says(probes):
    problem = toy_problem(probes=probes, budget=60, eps=0.05)
    record = Recorder(constant(problem))
    attack(problem, record, radius=3.0)
    shown = trail(record)
    away = distance(shown, problem.images[:1].expand_as(shown), Norm.LINF)
    assert bool(((shown >= 0) & (shown <= 1)).all()) == (probes is not Probes.FREE)
    assert bool((away <= 0.05 + 1e-6).all()) == (probes is Probes.BALL)
    assert bool((away[2::3] <= 0.05 + 1e-6).all())


@pytest.mark.parametrize(
    ("shape", "tile", "grid"),
    [
        ((3, 32, 32), None, (3, 20, 20)),
        ((1, 28, 28), None, (1, 18, 18)),
        ((3, 32, 48), None, (3, 20, 30)),
        ((3, 224, 224), None, (3, 50, 50)),
        ((3, 224, 448), None, (3, 50, 100)),
        ((3, 32, 32), 0, (3, 32, 32)),
        ((3, 32, 48), 0, (3, 32, 48)),
        ((3, 32, 32), 50, (3, 32, 32)),
        ((3, 12, 9), 3, (3, 4, 3)),
        ((1, 1, 5), 1, (1, 1, 5)),
    ],
)
def test_the_grid_has_as_many_tiles_a_pixel_both_ways(shape, tile, grid):
    assert module._grid(tile, torch.zeros((1, *shape))) == grid


def test_a_probe_has_one_value_a_tile():
    problem = toy_problem(budget=3, probes=Probes.FREE, shape=(3, 12, 9))
    problem = dataclasses.replace(problem, images=torch.full_like(problem.images, 0.5))
    record = Recorder(constant(problem))
    attack(problem, record, tile=3)
    for probe in trail(record)[:2]:
        assert len(torch.unique(probe)) == 3 * 4 * 3
        blocks = probe.view(3, 4, 3, 3, 3)
        assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))


def test_uneven_tiles_cover_the_image():
    tiles = torch.arange(12.0).view(1, 1, 3, 4)
    spread = module._spread(tiles, torch.zeros((1, 1, 8, 10)))
    assert spread.shape == (1, 1, 8, 10)
    assert torch.equal(torch.unique(spread), tiles.flatten())


def priors(problem, answer, **parameters):
    """The stored prior after each step, read from the running generator."""
    steps = bandits(problem, streams_of(problem), **parameters)
    oracle = toy_oracle(problem, answer, region=problem.probes)
    queries, found = next(steps), []
    try:
        while True:
            queries = steps.send(oracle.ask(queries))
            found.append(steps.gi_frame.f_locals["prior"].clone())
    except StopIteration:
        return found


@NORMS
@pytest.mark.parametrize("rate", [1.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 1e25])
def test_the_prior_stays_finite_and_within_one(norm, rate, scale):
    problem = toy_problem(norm=norm, budget=90)
    problem = dataclasses.replace(problem, images=problem.images.float())
    answer = sloped(problem, a_slope(168))
    found = priors(problem, lambda images, rows: (answer(images, rows) * scale).float(), rate=rate)
    for prior in found:
        assert bool(prior.isfinite().all())
        if norm is Norm.LINF:
            value = module._value(prior, norm)
            assert float(value.abs().max()) < 1.0
    assert float(found[-1].abs().max()) > 0


def test_the_update_is_the_exponentiated_gradient():
    """Within its bounds the stored form equals the published one, on [-1, 1]."""
    problem = toy_problem(budget=3, probes=Probes.FREE, shape=(1, 6, 6), count=1)
    slope = a_slope(36)
    record = Recorder(sloped(problem, slope))
    psi = priors(problem, record, rate=0.02, tile=0, radius=0.1, explore=0.3)[0]
    noise = streams_of(problem).normal(torch.tensor([0]), (1, 6, 6)).double() / 6
    unit = noise / noise.norm()
    gain = 0.02 * -2 * float(slope @ unit.flatten()) * noise
    chance = 0.5 * gain.exp() / (0.5 * gain.exp() + 0.5 * (-gain).exp())
    assert torch.allclose(psi.tanh(), 2 * chance - 1, atol=1e-9)


@NORMS
@pytest.mark.parametrize("tile", [0, 4])
def test_the_prior_turns_towards_the_gradient_of_a_linear_loss(norm, tile):
    count, shape = 12, (3, 8, 8)
    images = torch.full((count, *shape), 0.5, dtype=torch.float64)
    labels = torch.zeros(count, dtype=torch.int64)
    problem = Problem(images, labels, Threat(norm, 0.3, 300), 2, Probes.FREE)
    slope = a_slope(192)
    found = priors(problem, sloped(problem, slope), tile=tile, rate=0.1)[::2]
    wanted = -slope.view(1, *shape)
    if tile:
        wanted = torch.nn.functional.avg_pool2d(wanted, 2)

    def cosine(prior):
        value = module._value(prior, norm).flatten(1)
        return float((value @ wanted.flatten() / value.norm(dim=1) / wanted.norm()).mean())

    early, middle, late = (cosine(found[step]) for step in (2, 30, 99))
    assert 0 < early < middle < late
    assert late > 0.4


@NORMS
def test_a_constant_victim_is_never_left_and_the_budget_is_spent(norm):
    problem = toy_problem(norm=norm, budget=123)
    problem = dataclasses.replace(problem, labels=problem.labels * 0)
    record = Recorder(constant(problem))
    oracle = attack(problem, record)
    assert oracle.used.tolist() == [123] * 3
    iterates = trail(record)[2::3]
    assert torch.equal(iterates, problem.images[:1].expand_as(iterates))


@NORMS
def test_iterates_stay_in_the_ball_at_a_large_step(norm):
    problem = toy_problem(norm=norm, budget=90, eps=0.2)
    record = Recorder(sloped(problem, a_slope(168)))
    attack(problem, record, step=5.0)
    for row in range(3):
        iterates = trail(record, row)[2::3]
        away = distance(iterates, problem.images[row].expand_as(iterates), norm)
        assert float(away.max()) <= 0.2 + 1e-9


@NORMS
def test_targeted_at_the_other_of_two_classes_is_untargeted(norm):
    problem = toy_problem(classes=2, norm=norm, budget=80, eps=0.02)
    targeted = dataclasses.replace(
        problem,
        targets=1 - problem.labels,
        threat=dataclasses.replace(problem.threat, aim=Aim.TARGETED),
    )
    one, other = Recorder(linear(problem)), Recorder(linear(problem))
    attack(problem, one)
    attack(targeted, other)
    assert torch.equal(torch.stack(one.images), torch.stack(other.images))


def test_presets_convert_units_and_forms():
    entry = ATTACKS.get("bandits")
    every = {name: entry.settings(name) for name in entry.facts.presets}
    assert every["signhunter"]["rate"] == pytest.approx(3.92e-6, rel=1e-3)
    assert every["signhunter-imagenet"]["rate"] == pytest.approx(0.01)
    assert every["signhunter-imagenet-l2"]["rate"] == pytest.approx(1.0)
    assert every["blackboxbench"]["rate"] == pytest.approx(0.13585, rel=1e-3)
    assert every["blackboxbench"]["explore"] == pytest.approx(3.4641, rel=1e-3)
    assert every["unig"] == every["madry-t"]


def test_the_blackboxbench_preset_moves_the_prior_as_its_own_units_would():
    """There: pixels to 255, slope over explore, noise not divided by the root of d."""
    count, rise = 1200, 0.37  # difference of the two losses
    noise = a_slope(count)
    theirs = 0.1 * rise / (2.55 * 0.1) * noise
    given = ATTACKS.get("bandits").settings("blackboxbench")
    ours = given["rate"] * rise / given["radius"] * noise / count**0.5
    assert torch.allclose(theirs, ours)
    assert torch.allclose(0.1 * noise, given["explore"] * noise / count**0.5)


def test_it_breaks_digits_of_a_real_victim():
    problem, answer = digits(budget=300)
    broken = attack(problem, answer).broken_at > 0
    # 69 % of 59 images; 6 points of standard error.
    assert 0.49 < float(broken.float().mean()) < 0.89
