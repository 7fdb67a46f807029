"""RayS: every question by the book, cost of a block, geometry of blocks, radius, stop, strength."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from labels import attacked, broken_by_noise, flat, hits, trail
from support import Recorder, constant, digits, linear, toy_oracle, toy_problem, true_label_logits

from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.types import Access, Goal, Norm, Probes
from registry.attacks.rays import rays

SHAPES = [(3, 8, 7), (1, 6, 9), (1, 5, 6), (3, 4, 4), (1, 8, 8)]  # 168, 54, 30, 48, 64 values


def blocks(size):
    """First and last place of the blocks, level by level."""
    level = 0
    while True:
        width = -(-size // 2**level)
        for start in range(0, size, width):
            yield slice(start, min(start + width, size))
        level += width > 1


def by_the_book(image, hit, budget, tolerance=1e-3):
    """Questions about one image: Algorithm 3 in plain steps, black and then white first."""
    size, asked, radius = image.numel(), [], math.inf
    width = tolerance / size**0.5
    signs = torch.ones(size, dtype=image.dtype)

    def shown(ray, reach):
        asked.append((image.flatten() + reach * ray).clamp(0, 1).view_as(image))
        return hit(asked[-1])

    for number, block in enumerate(blocks(size)):
        ray = signs.clone()
        ray[block] *= -1
        high, low = min(radius, 1.0), 0.0
        found = shown(ray, high)
        if number == 0 and not found:
            ray = -ray
            found = shown(ray, high)
        for _ in range(max(math.ceil(math.log2(high / width)), 0) if found else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if shown(ray, middle) else (middle, high)
        if found and high < radius:
            signs, radius = ray, high
        if len(asked) >= budget:
            return torch.stack(asked[:budget])
    raise AssertionError


def always_wrong(problem):
    return lambda _images, rows: true_label_logits(problem, rows, -torch.ones(len(rows)))


@pytest.mark.parametrize("tolerance", [1e-3, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_asks_what_the_algorithm_asks(shape, tolerance):
    problem = toy_problem(shape=shape, budget=350)
    answer = linear(problem)
    _, record = attacked(rays, problem, answer, tolerance=tolerance)
    for row, image in enumerate(problem.images):

        def hit(shown, row=row):
            return bool(hits(problem, answer, shown[None], row))

        expected = by_the_book(image, hit, 350, tolerance)
        torch.testing.assert_close(trail(record, row), expected, rtol=0, atol=1e-12)


def test_the_first_ray_is_black_and_where_it_misses_white_follows():
    problem = toy_problem(budget=2)
    black_fools = [True, False, False]

    def answer(images, rows):
        fooled = [
            black_fools[row] and float(image.max()) == 0
            for image, row in zip(images, rows.tolist(), strict=True)
        ]
        return true_label_logits(problem, rows, 1.0 - 2.0 * torch.tensor(fooled).double())

    _, record = attacked(rays, problem, answer)
    trails = [trail(record, row) for row in range(3)]
    assert not any(bool(asked[0].any()) for asked in trails)
    assert all(bool((asked[1] == 1).all()) for asked in trails[1:])
    torch.testing.assert_close(trails[0][1], (problem.images[0] - 0.5).clamp(0, 1))


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 1e-3])
def test_a_block_that_hits_costs_one_query_and_its_halvings(tolerance):
    problem = toy_problem(budget=40)
    _, record = attacked(rays, problem, always_wrong(problem), tolerance=tolerance)
    halvings = math.ceil(math.log2(168**0.5 / tolerance))
    for row, image in enumerate(problem.images):
        asked = trail(record, row)
        radius = 0.5 ** torch.arange(halvings + 1, dtype=torch.float64)
        torch.testing.assert_close(asked[: halvings + 1], (image - radius.view(-1, 1, 1, 1)).relu())
        away = (asked[halvings + 1 :] - image).flatten(1)
        inner = (image.flatten() > 0.25) & (image.flatten() < 0.75)
        assert away[:, inner].abs().sub(radius[-1]).abs().max() < 1e-12  # narrow already: 1 each
        flipped = list(islice(blocks(168), 1, 40 - halvings))
        for delta, block in zip(away, flipped, strict=True):
            assert bool((delta[block][inner[block]] > 0).all())
            assert int((delta[inner] > 0).sum()) == int(inner[block].sum())


@pytest.mark.parametrize("budget", [1, 2, 3, 50, 700])
def test_a_constant_victim_gets_exactly_the_budget_in_corners_of_the_box(budget):
    problem = toy_problem(budget=budget)
    oracle, record = attacked(rays, problem, constant(problem))
    assert oracle.used.tolist() == [budget] * 3 == record.counts(3)
    shown = torch.stack(record.images)
    assert bool(((shown == 0) | (shown == 1)).all())
    assert not bool(oracle.first_hit.any())
    assert bool(oracle.trace.nearest.isinf().all())


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_halve_in_the_order_channel_row_column(shape):
    size = math.prod(shape)
    deepest = math.ceil(math.log2(size))
    sweep = sum(-(-size // -(-size // 2**level)) for level in range(deepest + 1))
    problem = toy_problem(count=1, shape=shape, budget=1 + sweep + size)
    _, record = attacked(rays, problem, constant(problem))
    black = trail(record, 0).flatten(1) == 0
    places = [flags.nonzero()[:, 0] for flags in black]
    assert len(places[1]) == 0  # white, out of turn
    del places[1]
    for level in range(deepest + 2):  # the last level again and again
        width = max(-(-size // 2**level), 1)
        level_blocks = [places.pop(0) for _ in range(-(-size // width))]
        assert {len(block) for block in level_blocks[:-1]} <= {width}
        assert torch.equal(torch.cat(level_blocks), torch.arange(size))


def test_every_query_goes_equally_far_in_every_value():
    problem, answer, _ = flat(Norm.LINF, 400)
    _, record = attacked(rays, problem, answer)
    for row, image in enumerate(problem.images):
        delta = trail(record, row) - image
        room = torch.where(delta > 0, 1 - image, image)
        reach = delta.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        torch.testing.assert_close(delta.abs(), torch.minimum(reach, room).expand_as(delta))


def test_no_query_lies_beyond_the_nearest_hit():
    problem, answer, least = flat(Norm.LINF, 600)
    _, record = attacked(rays, problem, answer)
    for row, image in enumerate(problem.images):
        asked = trail(record, row)
        away = distance(asked, image.expand_as(asked), Norm.LINF)
        hit = hits(problem, answer, asked, row)
        nearest = torch.where(hit, away, torch.inf).cummin(0).values
        assert bool((away[1:] <= nearest[:-1] + 1e-12).all())
        assert float(nearest[-1]) < 0.5 * float(nearest[hit][0])
        assert float(nearest[-1]) >= float(least[row])


def test_one_sweep_of_single_values_finds_the_least_distance_of_a_linear_boundary():
    problem, answer, least = flat(Norm.LINF, 1500, shape=(3, 4, 4))
    oracle, _ = attacked(rays, problem, answer)
    assert bool((oracle.trace.nearest >= least - 1e-9).all())
    assert float((oracle.trace.nearest / least).max()) < 1.01


def test_the_run_ends_at_the_first_hit_in_the_ball():
    problem, answer, least = flat(Norm.LINF, 800)
    _, record = attacked(rays, problem, answer)
    radius = 4 * float(least.mean())
    posed = replace(problem, threat=replace(problem.threat, eps=radius))
    halting = Recorder(answer)
    terms = {"access": Access.LABEL, "region": Probes.BOX, "goal": Goal.NEAREST}
    oracle = toy_oracle(posed, halting, **terms)
    drive(rays(posed, None), oracle)
    for row, image in enumerate(problem.images):
        asked = trail(record, row)
        near = distance(asked, image.expand_as(asked), Norm.LINF) <= radius + 1e-6
        first = int((near & hits(problem, answer, asked, row)).nonzero()[0]) + 1
        assert int(oracle.used[row]) == int(oracle.broken_at[row]) == first < 800
        assert torch.equal(trail(halting, row), asked[:first])


def test_it_breaks_digits_that_noise_does_not():
    problem, answer = digits(budget=200)
    terms = {"access": Access.LABEL, "region": Probes.BOX, "goal": Goal.NEAREST}
    oracle = toy_oracle(problem, answer, **terms)
    drive(rays(problem, None), oracle)
    # 80 % of the images, and 14 % by noise; 60 images leave 5 points of standard error.
    assert 0.65 < float((oracle.broken_at > 0).float().mean()) < 0.95
    assert broken_by_noise(problem, answer) < 0.3
