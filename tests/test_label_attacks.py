"""All attacks that are shown labels and look for the nearest image: what labels alone decide."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from labels import hits, trail
from support import Recorder, linear, toy_problem, true_label_logits

from benchmark.catalogue import ATTACKS
from benchmark.drive import play
from benchmark.geometry import distance
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.types import Access, Goal, Probes

NAMED = {"rays", "signflip", "hopskipjump", "geoda", "signopt", "boundary", "surfree"}
NAMED |= {"triangle", "popskipjump"}
ENTRIES = [e for e in ATTACKS if (e.facts.access, e.facts.goal) == (Access.LABEL, Goal.NEAREST)]
CASES = [
    pytest.param(entry.name, norm, id=f"{entry.name} {norm}")
    for entry in ENTRIES
    for norm in entry.facts.norms
]
FEW_STARTS = {"signopt": "signopt[starts=10,probes=50]"}  # by default it draws until the end
EVERY = pytest.mark.parametrize(("name", "norm"), CASES)


def played(name, problem, answer):
    """Run an attack to the budget whatever it finds; the oracle, and every query."""
    record = Recorder(answer)
    terms = Terms(name, Access.LABEL, Probes.BOX, goal=Goal.NEAREST, run_to_budget=True)
    oracle = Oracle(problem, record, None, terms)
    rng = RowRng([seed_from("label attacks", row) for row in range(len(problem.images))])
    play(ATTACKS.choose(FEW_STARTS.get(name, name)), problem, rng, oracle)
    return oracle, record


def single(problem):
    """Pose float32 images to the linear victim, which computes in float64."""
    answer = linear(problem, seed=3)
    posed = replace(problem, images=problem.images.float())
    return posed, lambda images, rows: answer(images.double(), rows)


def one_hot(logits):
    return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).double()


def test_the_nine_attacks_are_among_them():
    assert {entry.name for entry in ENTRIES} >= NAMED


@cache
def plainly(name, norm, budget=120):
    """Attack the linear victim; every query."""
    problem = toy_problem(norm=norm, budget=budget)
    return played(name, problem, linear(problem, seed=3))[1]


@EVERY
@pytest.mark.parametrize("wrapped", [lambda logits: 7 * logits - 3, one_hot])
def test_victims_with_the_same_labels_are_asked_the_same(name, norm, wrapped):
    problem = toy_problem(norm=norm, budget=120)
    answer, plain = linear(problem, seed=3), plainly(name, norm)
    _, other = played(name, problem, lambda images, rows: wrapped(answer(images, rows)))
    assert plain.rows == other.rows
    assert torch.equal(torch.stack(plain.images), torch.stack(other.images))


@EVERY
def test_a_victim_with_other_labels_is_asked_otherwise(name, norm):
    problem = toy_problem(norm=norm, budget=120)
    plain = plainly(name, norm)
    _, other = played(name, problem, linear(problem, seed=1))
    assert plain.rows != other.rows or not torch.equal(
        torch.stack(plain.images), torch.stack(other.images)
    )


@EVERY
def test_a_larger_budget_begins_as_the_smaller_one(name, norm):
    records = plainly(name, norm), plainly(name, norm, 250)
    same = []
    for row in range(3):
        short, long = (trail(record, row) for record in records)
        assert len(short) == 120
        assert len(long) == 250
        same.append(torch.equal(short, long[:120]))
    # GeoDA splits its budget over its iterations in advance.
    assert all(same) == (name != "geoda")


@EVERY
def test_every_image_of_the_trace_hits_again_at_its_distance(name, norm):
    problem, answer = single(toy_problem(norm=norm, budget=250))
    oracle, record = played(name, problem, answer)
    numbers, distances = oracle.trace.lists()
    for row in range(3):
        assert len(numbers[row]) > 3
        assert distances[row] == sorted(distances[row], reverse=True)
        images = trail(record, row)[torch.tensor(numbers[row]) - 1]
        assert float(images.amin()) >= 0
        assert float(images.amax()) <= 1
        assert bool(hits(problem, answer, images, row).all())
        again = distance(images.double(), problem.images[row].double().expand_as(images), norm)
        assert again.tolist() == pytest.approx(distances[row], abs=1e-6)


@EVERY
def test_the_trace_has_every_hit_that_is_nearer_than_all_before(name, norm):
    problem = toy_problem(norm=norm, budget=120)
    answer = linear(problem, seed=3)
    oracle, record = played(name, problem, answer)
    for row, numbers in enumerate(oracle.trace.lists()[0]):
        shown = trail(record, row)
        away = distance(shown, problem.images[row].expand_as(shown), norm)
        away[~hits(problem, answer, shown, row)] = torch.inf
        before = torch.cat((away.new_tensor([torch.inf]), away.cummin(0).values[:-1]))
        assert numbers == ((away < before).nonzero()[:, 0] + 1).tolist()


@EVERY
def test_a_victim_that_is_always_wrong_is_hit_at_the_first_question(name, norm):
    problem = toy_problem(norm=norm, budget=60)
    oracle, _ = played(
        name, problem, lambda _, rows: true_label_logits(problem, rows, -torch.ones(len(rows)))
    )
    for numbers in oracle.trace.lists()[0]:
        assert numbers[:4] == [1, 2, 3, 4]  # and goes nearer at once
