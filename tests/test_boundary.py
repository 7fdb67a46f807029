"""Boundary attack: every question against a plain loop, spheres, windows, convergence, strength."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from labels import attacked, blended, flat, follow, hits, trail
from support import constant, digits, linear, toy_problem

from benchmark.geometry import distance
from benchmark.rng import RowRng, seed_from
from benchmark.types import Norm, Threat
from registry.attacks.boundary import boundary


class Share:
    """How often the last so many succeeded, once there are so many."""

    def __init__(self, size):
        self.size, self.results = size, []

    def factor(self, low, high):
        """What steps are multiplied by; a change empties the window."""
        if len(self.results) < self.size:
            return 1.0
        share = sum(self.results[-self.size :]) / self.size
        factor = 1.5 if share > high else 1 / 1.5 if share < low else 1.0
        self.results = self.results if factor == 1.0 else []
        return factor


def started(clean, rng):
    """Look at noise, after ten of it at every corner of the colour cube; blend what hit."""
    for number in itertools.count():
        colour = [float(digit) for digit in f"{(number - 10) % 8:03b}"]
        far = torch.tensor(colour).double()[:, None, None].expand_as(clean)
        if not 10 <= number < 18:
            far = rng.uniform(torch.tensor([0]), clean.shape)[0].double()
        if (yield far):
            break
    return (yield from blended(clean, far))


def spelled_out(problem, row, sideways=0.01, inward=0.01, every=10, log=None):
    """Ask about one image, one question after the other; each hit or miss is sent in."""
    clean, shape = problem.images[row], problem.images.shape[1:]
    rng, me = RowRng([seed_from("labels", row)]), torch.tensor([0])
    point = yield from started(clean, rng)
    looks, steps, turn = Share(100), Share(30), 0
    while inward >= 1e-7:
        turn += 1
        delta = point - clean
        away, unit = delta.norm(), delta / delta.norm()
        noise = rng.normal(me, shape)[0].double()
        noise = noise - (noise * unit).sum() * unit
        side = sideways * away * noise / noise.norm()
        sphere = (clean + (delta + side) / (1 + sideways**2) ** 0.5).clamp(0, 1)
        looked = turn % every == 0
        if looked:
            looks.results.append((yield sphere))
        left = sphere - clean
        stride = max(float(inward * away + left.norm() - away), 0.0)
        image = (sphere - stride * left / left.norm()).clamp(0, 1)
        hit = yield image
        if hit and (image - clean).norm() < away:
            point = image
        if looked:
            steps.results.append(hit)
            factor = looks.factor(0.2, 0.5)
            sideways, inward = sideways * factor, inward * factor
            inward *= steps.factor(0.1, 0.25)
            if log is not None:
                log.append((sideways, inward))
    yield None


def assert_as_spelled_out(problem, shown, found, row, **parameters):
    return follow(spelled_out(problem, row, **parameters), shown, found)


def scripted(rule, budget, **parameters):
    """Attack one image that is fooled by the questions, numbered from 1, that the rule names."""
    problem = flat(Norm.L2, budget, count=1)[0]
    asked = []

    def answer(images, rows):
        asked.extend(rows.tolist())
        wrong = torch.tensor([rule(len(asked))])
        return torch.stack([~wrong, wrong], 1).double()

    shown = trail(attacked(boundary, problem, answer, **parameters)[1], 0)
    return problem, shown, torch.tensor([rule(number) for number in range(1, len(shown) + 1)])


@pytest.mark.parametrize("given", [{}, {"sideways": 0.3, "inward": 0.05, "every": 1}])
def test_every_question_is_that_of_a_plain_loop(given):
    problem, answer, _ = flat(Norm.L2, 500, count=2)
    _, record = attacked(boundary, problem, answer, **given)
    for row in range(2):
        shown = trail(record, row)
        assert len(shown) == 500
        assert_as_spelled_out(problem, shown, hits(problem, answer, shown, row), row, **given)


def test_every_question_is_that_of_a_plain_loop_at_the_edge_of_the_box():
    problem = toy_problem(budget=400, norm=Norm.L2)  # pixels of 0 and 1, four classes
    answer = linear(problem)
    _, record = attacked(boundary, problem, answer, every=3)
    for row in range(3):
        shown = trail(record, row)
        assert_as_spelled_out(problem, shown, hits(problem, answer, shown, row), row, every=3)


def distances(problem, shown, row):
    return distance(shown, problem.images[row].expand_as(shown), Norm.L2)


def accepted(found, away, first):
    """Distances kept after each question from the first on; only nearer hits are."""
    kept = [float(away[:first][found[:first]].min())]
    for hit, now in zip(found[first:].tolist(), away[first:].tolist(), strict=True):
        kept.append(now if hit and now < kept[-1] else kept[-1])
    return kept


def test_the_look_of_every_tenth_step_lies_on_the_sphere_of_the_point_held():
    problem, answer, _ = flat(Norm.L2, 1000, count=2)
    _, record = attacked(boundary, problem, answer)
    for row in range(2):
        shown = trail(record, row)
        found, away = hits(problem, answer, shown, row), distances(problem, shown, row)
        first = int(found.nonzero()[0]) + 11  # a start, and ten questions that blend it
        kept = accepted(found, away, first)
        inside = (shown > 0).flatten(1).all(1) & (shown < 1).flatten(1).all(1)
        looks = [n for n in range(first + 9, 1000, 11) if inside[n]]
        assert len(looks) > 50
        for number in looks:
            assert float(away[number]) == pytest.approx(kept[number - first], rel=1e-9)
        others = [n for n in range(first, 1000) if (n - first) % 11 != 9 and inside[n]]
        assert all(float(away[n]) < kept[n - first] * (1 - 1e-9) for n in others)


def test_each_step_that_is_kept_shortens_the_distance_by_the_inward_step():
    problem, shown, _ = scripted(lambda number: True, 211, inward=0.02, every=500)
    away = distances(problem, shown, 0)[10:]
    assert torch.allclose(away[1:] / away[:-1], torch.full((200,), 0.98).double(), atol=1e-9)


@pytest.mark.parametrize("hit", [True, False])
def test_steps_change_only_when_a_window_is_full(hit):
    log = []
    problem, shown, found = scripted(lambda number: number == 1 or hit, 411, every=1)
    assert_as_spelled_out(problem, shown, found, 0, every=1, log=log)
    assert len(log) == 200  # both steps after each of two hundred turns
    factor = 1.5 if hit else 1 / 1.5
    sideways = [0.01] * 99 + [0.01 * factor] * 100 + [0.01 * factor**2]
    assert [a for a, _ in log] == pytest.approx(sideways)
    own = [factor ** ((turn + 1) // 30 + (turn + 1) // 100) for turn in range(200)]
    assert [b for _, b in log] == pytest.approx([0.01 * f for f in own])


def test_steps_stay_while_both_shares_are_moderate():
    def rule(number):
        if number <= 11:
            return number == 1
        turn, step = divmod(number - 12, 2)
        return turn % 5 == 0 if step else turn % 3 == 0  # looks 34 %, steps 20 %

    log = []
    problem, shown, found = scripted(rule, 511, every=1)
    assert_as_spelled_out(problem, shown, found, 0, every=1, log=log)
    assert log == [(0.01, 0.01)] * 250


def test_a_converged_image_asks_no_more():
    problem, shown, found = scripted(lambda number: number == 1, 5000, inward=1e-6, every=1)
    # It takes six changes: at every thirtieth turn, and one more at the hundredth.
    assert len(shown) == 1 + 10 + 2 * 150
    ending = assert_as_spelled_out(problem, shown, found, 0, inward=1e-6, every=1)
    assert ending is None


def test_a_victim_that_is_never_fooled_gets_the_start_only():
    problem = toy_problem(budget=300, norm=Norm.L2)
    oracle, _ = attacked(boundary, problem, constant(problem))
    assert oracle.used.tolist() == [108] * 3  # 100 noise images and 8 colours


def test_it_breaks_half_the_digits_of_a_real_victim():
    problem, answer = digits(300, count=30)
    posed = replace(problem, threat=Threat(Norm.L2, 2.0, 300))
    nearest = attacked(boundary, posed, answer)[0].trace.nearest
    # Measured: 0.52, and 0.28 for as many random images on the sphere.
    assert float((nearest <= 2.0).double().mean()) > 0.38
