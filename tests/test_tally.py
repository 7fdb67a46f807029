"""Attacks that look for the nearest hit: traces, several radii, what is submitted and judged."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import toy_problem, true_label_logits

from benchmark.curves import nearest
from benchmark.geometry import allowed, distance, push
from benchmark.oracle import Oracle, Terms
from benchmark.trace import Trace
from benchmark.types import Access, Goal, Norm, Probes, Queries

STEP = 0.05
MARKS = (2, 4)


def moved(problem, row, level):
    """The clean image with one value raised by `level` steps."""
    image = problem.images[row].clone()
    image[0, 0, 2] += STEP * level
    return image


def asked(oracle, rows, levels):
    images = [moved(oracle.problem, row, level) for row, level in zip(rows, levels, strict=True)]
    return oracle.ask(Queries(torch.stack(images), torch.tensor(rows)))


def from_level(problem, least):
    """A victim that is wrong where the value is raised by `least` steps or more."""

    def answer(images, rows):
        raised = images[:, 0, 0, 2] - problem.images[rows, 0, 0, 2]
        return true_label_logits(problem, rows, (least - 0.5) * STEP - raised)

    return answer


class Judge:
    """Verifies images raised by at least so many steps, and keeps what it was shown."""

    def __init__(self, problem, least):
        self._problem, self._least, self.shown = problem, least, []

    def __call__(self, images, rows):
        raised = images[:, 0, 0, 2] - self._problem.images[rows, 0, 0, 2]
        levels = (raised / STEP).round().tolist()
        self.shown += list(zip(rows.tolist(), levels, strict=True))
        return raised > (self._least - 0.5) * STEP


def oracle_of(problem, answer, judge=None, *, run_to_budget=False):
    terms = Terms("toy", Access.LABEL, Probes.BOX, checkpoints=MARKS, goal=Goal.NEAREST)
    return Oracle(problem, answer, judge, replace(terms, run_to_budget=run_to_budget))


def toy(budget=20):
    return toy_problem(1, norm=Norm.LINF, eps=4 * STEP, budget=budget)


@pytest.mark.parametrize("norm", list(Norm))
def test_pushing_lengthens_what_lies_inside_to_the_surface_and_nothing_else(norm):
    problem = toy_problem(3, norm=norm)
    source = torch.Generator().manual_seed(1)
    noise = torch.randn(problem.images.shape, generator=source, dtype=torch.float64)
    near = (problem.images + 1e-3 * noise).clamp(0, 1)
    reach = float(distance(near, problem.images, norm).max()) * 3
    pushed = push(near, problem.images, reach, norm)
    assert bool((distance(pushed, problem.images, norm) <= allowed(reach, norm)).all())
    free = (pushed > 0) & (pushed < 1)
    along = (pushed - problem.images)[free] / (near - problem.images)[free]
    assert float(along.min()) > 1.0  # every value that meets no face moves on, none turns back
    assert bool(((pushed >= 0) & (pushed <= 1)).all())
    assert torch.equal(push(near, problem.images, reach / 1e3, norm), near)
    assert torch.equal(push(problem.images, problem.images, reach, norm), problem.images)


def test_an_image_ends_at_its_first_hit_in_the_ball_or_at_the_budget():
    problem = toy()
    early, late = (oracle_of(problem, from_level(problem, 2), run_to_budget=b) for b in (0, 1))
    for oracle in (early, late):
        asked(oracle, [0] * 5, [6, 1, 5, 3, 2])
    assert early.broken_at.tolist() == late.broken_at.tolist() == [4]
    assert early.finished.tolist() == [True] and late.finished.tolist() == [False]
    replies = asked(late, [0] * 16, [2] * 16)
    assert int(late.used) == 20 and int(replies.answered.sum()) == 15
    numbers, distances = late.trace.lists()
    assert numbers == [[1, 3, 4, 5]]
    assert distances[0] == pytest.approx([6 * STEP, 5 * STEP, 3 * STEP, 2 * STEP])


def test_every_radius_breaks_where_a_run_of_its_own_does():
    problem = toy()
    levels = [6, 1, 5, 4, 3, 2, 2, 5]
    radii = [2 * STEP, 4 * STEP, 5 * STEP, STEP]
    first = replace(problem, threat=replace(problem.threat, eps=radii[0]))
    together = oracle_of(first, from_level(problem, 2), run_to_budget=True)
    for eps in radii[1:]:
        together.count_at(eps, None)
    for level in levels:
        asked(together, [0], [level])
    for eps, tally in zip(radii, together.tallies, strict=True):
        threat = replace(problem.threat, eps=eps)
        alone = oracle_of(replace(problem, threat=threat), from_level(problem, 2))
        for level in levels:
            asked(alone, [0], [level])
        assert tally.broken_at.tolist() == alone.broken_at.tolist()
        assert tally.first_hit.tolist() == alone.first_hit.tolist()
        assert torch.equal(tally.reach, alone.reach) or bool(tally.reach.isnan().all())
    assert [int(tally.broken_at) for tally in together.tallies] == [6, 4, 3, 0]


def test_without_a_run_to_the_budget_an_image_waits_for_its_smallest_radius():
    problem = toy()
    oracle = oracle_of(problem, from_level(problem, 1))
    oracle.count_at(2 * STEP, None)
    asked(oracle, [0], [3])
    assert int(oracle.broken_at) == 1 and not bool(oracle.finished)
    asked(oracle, [0], [2])
    assert bool(oracle.finished)


def test_what_is_judged_is_the_nearest_hit_of_a_round_pushed_and_then_the_hit_itself():
    problem = toy()
    oracle = oracle_of(problem, from_level(problem, 1), judge := Judge(problem, 9))
    asked(oracle, [0, 0], [3, 2])
    assert judge.shown == [(0, 4.0), (0, 2.0)]
    assert not bool(oracle.finished) and oracle.first_hit.tolist() == [1]


def test_a_verified_push_breaks_the_image_at_the_hit_that_was_asked():
    problem = toy()
    oracle = oracle_of(problem, from_level(problem, 1), judge := Judge(problem, 4))
    asked(oracle, [0], [2])
    assert judge.shown == [(0, 4.0)] and oracle.broken_at.tolist() == [1]
    assert float(oracle.reach) == pytest.approx(2 * STEP)
    assert torch.allclose(oracle.memory.images[0], moved(problem, 0, 4))


def test_the_image_submitted_at_a_checkpoint_is_the_nearest_hit_by_then_pushed():
    problem = toy()
    oracle = oracle_of(problem, from_level(problem, 1), Judge(problem, 9), run_to_budget=True)
    other = problem.images[0].clone()
    other[1, 0, 2] += STEP  # as near as one step, and not what the victim looks at
    asked(oracle, [0] * 3, [6, 3, -1])
    asked(oracle, [0], [2])
    asked(oracle, [0] * 2, [1, -1])
    assert torch.equal(oracle.memory.at(2)[0], oracle.memory.at(4)[0])
    assert torch.allclose(oracle.memory.at(2)[0], moved(problem, 0, 4))
    fresh = oracle_of(problem, from_level(problem, 1), Judge(problem, 9), run_to_budget=True)
    asked(fresh, [0] * 3, [6, 5, -1])  # no hit in the ball yet
    assert torch.equal(fresh.memory.at(2), problem.images)


STEPS = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=8), max_size=8)


@settings(max_examples=100, deadline=None)
@given(STEPS, st.lists(st.integers(1, 30), unique=True, max_size=4).map(sorted))
def test_a_trace_holds_every_record_and_curves_read_it_back(rounds, marks):
    trace, history = Trace(3, torch.device("cpu")), [[], [], []]
    for asks in rounds:
        numbers = []
        for row, away in asks:
            history[row].append(away)
            numbers.append(len(history[row]))
        if asks:
            rows, away = torch.tensor(asks).unbind(1)
            trace.see(rows, torch.tensor(numbers), away.double())
    lists = trace.lists()
    for row, seen in enumerate(history):
        lows = list(itertools.accumulate(seen, min))
        records = [n for n, low in enumerate(lows) if n == 0 or low < lows[n - 1]]
        assert lists[0][row] == [n + 1 for n in records]
        assert lists[1][row] == [seen[n] for n in records]
    curves = nearest(*lists, marks)
    for row, seen in enumerate(history):
        assert curves[row].tolist() == [min(seen[:mark], default=np.inf) for mark in marks]


def test_an_attack_that_looks_for_no_nearest_hit_has_no_curve():
    assert np.isnan(nearest([None], [None], [1, 2])).all()
    assert nearest([[]], [[]], [1]).tolist() == [[np.inf]]
