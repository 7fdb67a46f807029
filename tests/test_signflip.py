"""SignFlip: start, shrinking, flips and their law, adaptation, coarse grids, strength."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from labels import attacked, broken_by_noise, flat, hits, trail
from scipy.stats import chisquare
from support import digits, linear, streams, toy_oracle, toy_problem
from torch import Tensor

from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.types import Access, Goal, Norm, Probes
from registry.attacks.signflip import _SignFlip, signflip
from registry.moves.phases import phased

TERMS = {"access": Access.LABEL, "region": Probes.BOX, "goal": Goal.NEAREST}


class Turn(NamedTuple):
    """Perturbations before, asked and kept in one turn; those of `flat` never meet the box."""

    before: Tensor
    shrunk: Tensor
    shrinks: bool
    between: Tensor
    turned: Tensor


def turns_of(problem, answer, asked, row):
    """Length of the search for a start; shrinks and flips after it and the ten halvings."""
    delta = asked - problem.images[row]
    hit = hits(problem, answer, asked, row).tolist()
    first = hit.index(True) + 1
    bracket = delta[first - 1 : first + 10][hit[first - 1 : first + 10]]
    kept, turns = bracket[bracket.flatten(1).abs().amax(1).argmin()], []
    for place in range(first + 10, len(asked) - 1, 2):
        between = delta[place] if hit[place] else kept
        turns.append(Turn(kept, delta[place], hit[place], between, delta[place + 1]))
        kept = delta[place + 1] if hit[place + 1] else between
        assert float(kept.abs().max()) < 0.4  # within the box whatever the signs
    return first, turns


def length(delta):
    return float(delta.abs().max())


def ready(problem, resize=1, require=True, step=0.004, flip=0.001):
    """An attack whose images all have a perturbation of 0.05 but for one value of 0.2."""
    state = _SignFlip(problem, streams(len(problem.images)), step, flip, (resize, require))
    state._delta = torch.full_like(problem.images, 0.05)
    state._delta[:, 0, 0, 0] = 0.2
    return state


@pytest.fixture(scope="module")
def run():
    """Four images before a linear boundary: what was asked, and their turns."""
    problem, answer, _ = flat(Norm.LINF, 900)
    _, record = attacked(signflip, problem, answer)
    trails = [trail(record, row) for row in range(4)]
    parsed = [turns_of(problem, answer, asked, row) for row, asked in enumerate(trails)]
    return problem, answer, trails, *zip(*parsed, strict=True)


def test_a_start_costs_the_noise_shown_and_ten_halvings(run):
    problem, answer, trails, starts, turns = run
    for row, (asked, first, image) in enumerate(zip(trails, starts, problem.images, strict=True)):
        far, low, high = asked[first - 1], 0.0, length(asked[first - 1] - image)
        for shown in asked[first : first + 10]:
            middle = (low + high) / 2
            expected = torch.minimum(torch.maximum(far, image - middle), image + middle)
            torch.testing.assert_close(shown, expected, rtol=0, atol=1e-12)
            hit = bool(hits(problem, answer, shown[None], row))
            low, high = (low, middle) if hit else (middle, high)
        assert length(turns[row][0].before) == pytest.approx(high)


def test_shrinks_and_flips_alternate(run):
    for turns in run[-1]:
        assert len(turns) > 400
        for turn in turns:
            assert length(turn.shrunk) < length(turn.before) - 1e-6
            torch.testing.assert_close(turn.turned.abs(), turn.between.abs(), rtol=0, atol=1e-12)


def test_a_shrink_moves_every_value_by_one_step_and_clips(run):
    for turns in run[-1]:
        ups = []
        for turn in turns[:10]:
            reach = length(turn.before) - 0.004
            up, down = ((turn.before + way).clamp(-reach, reach) for way in (0.004, -0.004))
            is_up, is_down = ((turn.shrunk - end).abs() < 1e-12 for end in (up, down))
            assert bool((is_up | is_down).all())
            ups.append(float(is_up[is_up != is_down].double().mean()))
        assert sum(ups) / len(ups) == pytest.approx(0.5, abs=0.05)


def test_kept_shrinks_lower_the_length_by_a_step_that_adapts(run):
    factors = set()
    for turns in run[-1]:
        step, kept = 0.004, 0
        for number, turn in enumerate(turns, 1):
            now = length(turn.before)
            assert length(turn.shrunk) == pytest.approx(now - min(step, now / 2), abs=1e-9)
            kept += turn.shrinks
            if number % 10 == 0:
                factors.add(factor := 1.5 if kept > 7 else 1 / 1.5 if kept < 3 else 1.0)
                step, kept = step * factor, 0
        assert length(turns[-1].before) < 0.4 * length(turns[0].before)
    assert factors == {1.5, 1.0, 1 / 1.5}


def test_a_step_longer_than_half_the_perturbation_halves_it():
    problem, answer, _ = flat(Norm.LINF, 60)
    _, record = attacked(signflip, problem, answer, step=5.0)
    for row in range(4):
        turn = turns_of(problem, answer, trail(record, row), row)[1][0]
        assert length(turn.shrunk) == pytest.approx(length(turn.before) / 2)
        assert float(turn.shrunk.std()) > 0.1 * length(turn.shrunk)


@pytest.mark.parametrize(("require", "least"), [(True, 1), (False, 0)])
def test_a_flip_changes_at_least_one_sign_if_it_must(require, least):
    problem, answer, _ = flat(Norm.LINF, 200, shape=(1, 6, 9))
    _, record = attacked(signflip, problem, answer, require_flip=require)
    changed = [
        int((turn.turned - turn.between).abs().gt(1e-9).sum())
        for row in range(4)
        for turn in turns_of(problem, answer, trail(record, row), row)[1]
    ]
    assert min(changed) == least
    assert max(changed) < 6  # 54 values, one in a hundred at most


@pytest.mark.parametrize("require", [True, False])
def test_flips_are_independent_but_for_the_empty_one(require):
    problem = toy_problem(count=4000, shape=(1, 1, 4))
    state = ready(problem, require=require)
    keep = torch.tensor([0.9, 0.6, 0.8, 0.95], dtype=torch.float64)
    state._keep[:] = keep
    drawn = torch.cat([state._draw_flips(problem.rows).view(-1, 4) < 0 for _ in range(4)])
    counts = torch.bincount((drawn.long() * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
    chances = []
    for pattern in itertools.product((0, 1), repeat=4):
        flags = torch.tensor(pattern, dtype=torch.bool)
        chances.append(float(torch.where(flags, 1 - keep, keep).prod()))
    if require:
        assert int(counts[0]) == 0
        counts, chances = counts[1:], [chance / (1 - chances[0]) for chance in chances[1:]]
    expected = torch.tensor(chances, dtype=torch.float64) * 16000
    assert chisquare(counts.double(), expected).pvalue > 1e-3


def test_a_required_flip_falls_anywhere_in_the_image():
    problem = toy_problem(count=1500, shape=(1, 12, 12))
    state = ready(problem, flip=1e-4)
    flips = state._draw_flips(problem.rows).flatten(1) < 0
    mean = 144e-4 / (1 - 0.9999**144)
    assert float(flips.sum(1).double().mean()) == pytest.approx(mean, abs=0.01)
    quarters = flips.view(1500, 4, 36).sum((0, 2)).double()
    assert chisquare(quarters).pvalue > 1e-3


@pytest.mark.parametrize("chance", [0.001, 0.0099])  # either end of the range is met
def test_steps_and_flips_adapt_after_ten_turns(chance):
    plans = [[10, 8, 7, 5, 3, 2, 0], [0, 2, 3, 5, 8, 10, 8]]  # successes in either ten turns
    problem = toy_problem(count=7)
    state = ready(problem, step=1e-6, flip=chance)
    rows, keep = problem.rows, torch.full_like(problem.images, 1 - chance)
    step = torch.full((7,), 1e-6, dtype=torch.float64)
    for plan in torch.tensor(plans):
        for turn in range(10):
            shrink, flip = state.phases[2:]
            shrink.tell(shrink.ask(rows), plan > turn)
            asked, before = flip.ask(rows), state._delta.abs()
            flip.tell(asked, plan > turn)
            assert torch.equal(state._delta.abs(), before)  # whatever the box cuts off
            moved = (keep - 1e-4 * state._signs).clamp(0.99, 0.9999)
            keep[plan > turn] = moved[plan > turn]
        step *= torch.where(plan > 7, 1.5, torch.where(plan < 3, 1 / 1.5, 1.0))
        keep[plan > 7] -= 1e-3
        keep[plan < 3] += 1e-3
        keep.clamp_(0.99, 0.9999)
        torch.testing.assert_close(state._step, step)
        torch.testing.assert_close(state._keep, keep)


def test_what_it_keeps_was_asked_and_may_reach_beyond_the_box():
    problem = toy_problem(budget=500, classes=2)
    answer = linear(problem)
    state = _SignFlip(problem, streams(3), 0.004, 0.001, (1, True))
    oracle = toy_oracle(problem, answer, run_to_budget=True, **TERMS)
    drive(phased(problem, state.phases, state.at), oracle)
    inside = (problem.images + state._delta).clamp(0, 1)
    assert bool((inside != problem.images + state._delta).any())
    for row in range(3):
        assert bool(hits(problem, answer, inside[row][None], row))
    away = distance(inside, problem.images, Norm.LINF)
    torch.testing.assert_close(away, oracle.trace.nearest, rtol=0, atol=1e-3)


def upsampling(fine, coarse):
    """Weights of linear interpolation between the centres of cells, (fine, coarse)."""
    place = ((torch.arange(fine).double() + 0.5) * coarse / fine - 0.5).clamp(0, coarse - 1)
    away = (place[:, None] - torch.arange(coarse)).abs()
    return (1 - away).clamp_min(0)


@pytest.mark.parametrize("size", [(7, 5), (6, 4), (5, 1), (1, 1)])
def test_coarse_steps_and_flips_are_interpolated(size):
    problem = toy_problem(count=64, shape=(1, 7, 7))
    problem = replace(problem, images=0.5 + 0 * problem.images[:, :, : size[0], : size[1]])
    cells = [max(side // 2, 1) for side in size]
    state = ready(problem, resize=2, flip=0.01)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=cells[0] * cells[1])))
    over, across = upsampling(size[0], cells[0]), upsampling(size[1], cells[1])
    fields = over @ signs.view(-1, *cells).double() @ across.T
    shrink, flip = state.phases[2:]
    steps = (shrink.ask(problem.rows).images - 0.5 - state._delta)[:, 0] / 0.004
    steps[:, 0, 0] = fields[:, 0, 0].mean()  # the longest value is clipped
    fields_but_one = fields.clone()
    fields_but_one[:, 0, 0] = steps[0, 0, 0]
    gaps = (steps[:, None] - fields_but_one).abs().amax((2, 3)).amin(1)
    assert float(gaps.max()) < 1e-9
    turned = (flip.ask(problem.rows).images < 0.5)[:, 0]
    known = (turned[:, None] == (fields < 0)).all(3).all(2)
    assert bool(known.any(1).all())
    assert bool(turned.flatten(1).any(1).all())


def test_it_breaks_digits_that_noise_does_not():
    problem, answer = digits(budget=300)
    oracle = toy_oracle(problem, answer, **TERMS)
    drive(signflip(problem, streams(len(problem.images))), oracle)
    # 80 % of the images, and 14 % by noise; 60 images leave 5 points of standard error.
    assert 0.65 < float((oracle.broken_at > 0).float().mean()) < 0.98
    assert broken_by_noise(problem, answer) < 0.3
