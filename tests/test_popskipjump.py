"""PopSkipJump: the search by information, how many probes, its steps, noise, strength."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from labels import attacked, broken_by_noise, flat, trail
from support import Recorder, digits, streams, toy_oracle, toy_problem, true_label_logits
from torch.distributions import Bernoulli

from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.types import Access, Goal, Norm, Probes, Threat
from registry.attacks.hopskipjump import hopskipjump
from registry.attacks.popskipjump import _PopSkipJump, _sharp, answer_slope, popskipjump
from registry.moves.infomax import NOISES, SLOPES, InfoMax
from registry.moves.phases import DONE, blend, clip_around, phased

TERMS = {"access": Access.LABEL, "region": Probes.BOX, "goal": Goal.NEAREST}
NORMS = pytest.mark.parametrize("norm", list(Norm))
PLACES = torch.linspace(0.2, 0.8, 20, dtype=torch.float64)


def searched(grid, *curves, count=20):
    """Searches where the true label has chance curve(x) in turn, and what the last one asked."""
    problem = toy_problem(count, (1, 1, 3), budget=2000, classes=2)
    at, source = torch.full_like(problem.labels, DONE), torch.Generator().manual_seed(3)

    def point(rows, place):
        return place.view(-1, 1, 1, 1).expand(-1, 1, 1, 3)

    def answer(images, rows, curve):
        chance = curve(images[:, 0, 0, 0], rows)
        true = torch.rand(len(rows), generator=source, dtype=torch.float64) < chance
        return true_label_logits(problem, rows, torch.where(true, 1.0, -1.0))

    search = InfoMax(problem, grid, point, lambda rows: at.index_fill_(0, rows, DONE))
    for curve in curves:
        at[:] = 0
        search.begin(problem.rows)
        record = Recorder(partial(answer, curve=curve))
        oracle = toy_oracle(problem, record, run_to_budget=True, **TERMS)
        drive(phased(problem, [search.phase], at), oracle)
    return search, [trail(record, row)[:, 0, 0, 0] for row in range(count)]


def sigmoid(slope, noise):
    return lambda x, rows: noise + (1 - 2 * noise) * torch.sigmoid(4 * slope * (x - PLACES[rows]))


@pytest.mark.parametrize(("slope", "cells"), [(5.0, 3.5), (20.0, 1.5)])
def test_a_search_finds_place_slope_and_noise_of_most_boundaries(slope, cells):
    search, asked = searched(100, sigmoid(slope, 0.1))
    assert int(((search.place - PLACES).abs() * 100 < cells).sum()) >= 16
    decades = (search.slope / slope).log10().abs()
    assert float(decades.median()) < 0.25 and int((decades < 0.5).sum()) >= 13
    assert int(((search.noise - 0.1).abs() < 0.06).sum()) >= 10
    assert 20 < sum(map(len, asked)) / 20 < 150


def test_a_boundary_without_noise_takes_few_questions():
    search, asked = searched(100, lambda x, rows: (x > PLACES[rows]).double())
    assert float((search.place - PLACES).abs().max()) <= 0.01 + 1e-6
    assert not bool(search.noise.any())
    assert bool((search.slope > 99).all())
    assert max(map(len, asked)) <= 30


@pytest.mark.parametrize(("chance", "place"), [(0.0, 0.99), (1.0, 0.0), (0.5, None)])
def test_a_search_ends_on_victims_without_a_boundary(chance, place):
    search, asked = searched(100, lambda x, rows: chance + 0 * x, count=8)
    if place is None:
        assert max(map(len, asked)) <= 500
        assert float(search.noise.median()) == pytest.approx(0.3)
    else:
        assert max(map(len, asked)) < 20
        torch.testing.assert_close(search.place, torch.full_like(search.place, place))
    assert float(search.place.max()) < 1.0  # the clean image is no boundary


def test_a_search_that_does_not_settle_ends_after_500_questions(monkeypatch):
    monkeypatch.setattr("registry.moves.infomax._STEADY", 10**9)
    _, asked = searched(10, sigmoid(5.0, 0.1), count=3)
    assert [len(places) for places in asked] == [500] * 3


def test_noise_is_found_once_and_kept():
    noisy, still = sigmoid(20.0, 0.2), sigmoid(20.0, 0.0)
    first, _ = searched(30, noisy)
    again, _ = searched(30, noisy, still)
    assert torch.equal(first.noise, again.noise) and float(again.noise.median()) > 0.1
    assert int((again.place - PLACES).abs().lt(1.5 / 30).sum()) >= 18


def test_every_question_is_the_one_that_tells_most():
    grid, answers = 12, torch.tensor([[1, 0, 0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0, 1, 1]]) == 1
    problem = toy_problem(2, (1, 1, 3), classes=2)
    search = InfoMax(problem, grid, lambda _, place: place.view(-1, 1, 1, 1), lambda _: None)
    search.begin(problem.rows)
    x = torch.linspace(0, 1, grid + 1).double()
    noise = torch.tensor(NOISES).double().view(-1, 1, 1, 1)
    slope = torch.logspace(-1, 2, SLOPES).double().view(-1, 1, 1)
    true = noise + (1 - 2 * noise) * torch.sigmoid(4 * slope * (x - x[:, None]))
    guesses = true[..., 0].numel()
    chance = [torch.full(true.shape[:3], 1 / guesses, dtype=torch.float64) for _ in range(2)]
    for hit in answers.T:
        queries = search.phase.ask(problem.rows)
        for row, asked in enumerate(queries.images[:, 0, 0, 0]):
            share = chance[row][..., None]
            known = (share * true).sum((0, 1, 2))
            told = Bernoulli(known).entropy() - (share * Bernoulli(true).entropy()).sum((0, 1, 2))
            number = int((asked * grid).round())
            assert float(told[number]) > float(told.max()) - 2e-6
            chance[row] = chance[row] * (1 - true[..., number] if hit[row] else true[..., number])
            chance[row] /= chance[row].sum()
        search.phase.tell(queries, hit)
        known = search._chance / search._chance.sum((1, 2, 3), keepdim=True)
        torch.testing.assert_close(known, torch.stack(chance), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("miss", [0.0, 0.3, 1.0])
def test_the_slope_of_answers_is_their_mean_with_a_normal(miss):
    slopes = torch.tensor([0.05, 0.3, 1.0, 4.0, 100.0], dtype=torch.float64)
    x = torch.linspace(-10, 10, 400_001, dtype=torch.float64)
    density = (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
    answers = (2 * slopes[:, None] * (x - miss)).clamp(-1, 1)
    expected = torch.trapezoid(answers * x * density, x)
    torch.testing.assert_close(answer_slope(slopes, miss), expected, rtol=1e-4, atol=1e-9)
    sharp = answer_slope(torch.tensor([1e4], dtype=torch.float64), miss)
    assert float(sharp) == pytest.approx(_sharp(miss), rel=1e-6)
    assert _sharp(miss) == pytest.approx(math.sqrt(2 / math.pi) * math.exp(-(miss**2) / 2))


def blurred(norm, budget, share, count=4, wrong=0.0):
    """`flat`, and its answers with logistic noise as wide as a share of the least margin."""
    problem, plain, least = flat(norm, budget, count)
    width = share * plain(problem.images, problem.rows)[:, 0].abs().min()
    source = torch.Generator().manual_seed(1)

    def answer(images, rows):
        chance = torch.rand((2, len(rows)), generator=source, dtype=torch.float64)
        score = plain(images, rows)[:, 0] + width * chance[0].logit(1e-9)
        score *= torch.where(chance[1] < wrong, -1.0, 1.0)
        return torch.stack((score, torch.zeros_like(score)), 1)

    return problem, plain, answer, least


def estimates(problem, answer, grid):
    """What each estimate of a row's normal was based on, and all that was asked."""
    state = _PopSkipJump(problem, streams(len(problem.images)), (40, 50_000), grid)
    record, begin = Recorder(answer), state._votes.begin
    found = [[] for _ in problem.images]

    def noted(rows, count, radius):
        for place, row in enumerate(rows.tolist()):
            known = {"slope": float(state._search.slope[row]), "used": record.rows.count(row)}
            known |= {"noise": float(state._search.noise[row]), "count": int(count[place])}
            known |= {"point": state._point[row].clone(), "far": state._far[row].clone()}
            found[row].append(SimpleNamespace(radius=float(radius[place]), **known))
        begin(rows, count, radius)

    state._votes.begin = noted
    oracle = toy_oracle(problem, record, run_to_budget=True, **TERMS)
    drive(phased(problem, state.phases, state.at), oracle)
    return found, record


@NORMS
def test_probes_are_as_many_as_noise_and_slope_call_for_and_a_step_follows(norm):
    problem, _, answer, _ = blurred(norm, 2000, 0.03, wrong=0.1)
    found, record = estimates(problem, answer, 60)
    assert max(row[0].noise for row in found) > 0.04
    deviation, miss = (1 / 60, 1.0) if norm is Norm.L2 else (192**0.5 / 60, 192**-0.5)
    answers = problem.adversarial(torch.cat(record.logits).argmax(1), torch.tensor(record.rows))
    for row, image in enumerate(problem.images):
        asked, hit = trail(record, row), answers[torch.tensor(record.rows) == row]
        assert len(found[row]) > 1
        for turn, (one, following) in enumerate(pairwise(found[row]), 1):
            along = torch.tensor([one.slope * deviation], dtype=torch.float64)
            seen = (1 - 2 * one.noise) * float(answer_slope(along, miss))
            assert one.count == int(40 * turn**0.5 * (_sharp(miss) / seen) ** 2 + 1e-9)
            away = float(distance(one.far[None], image[None], norm))
            assert one.radius == pytest.approx(away * deviation * 192**0.5)
            stop = one.used + one.count
            moved = (asked[one.used : stop] - one.point).flatten(1)
            free = (asked[one.used : stop] - 0.5).abs().flatten(1).amax(1) < 0.5
            lengths = moved[free].norm(dim=1)
            torch.testing.assert_close(lengths, torch.full_like(lengths, one.radius))
            votes = 2.0 * hit[one.used : stop].double() - 1
            normal = ((votes - votes.mean()) @ moved).view_as(image)
            normal = normal.sign() if norm is Norm.LINF else normal / normal.norm()
            stride = distance(one.point[None], image[None], norm) / turn**0.5
            far = (one.point + stride * normal).clamp(0, 1)
            torch.testing.assert_close(following.far, far, rtol=0, atol=1e-9)
            share = torch.linspace(1, 0, 61).double()
            reach = share * distance(far[None], image[None], norm)
            ends = image.expand(61, -1, -1, -1), far.expand(61, -1, -1, -1)
            places = blend(*ends, share) if norm is Norm.L2 else clip_around(*ends, reach)
            searched_at = asked[stop : following.used].flatten(1)
            assert float(torch.cdist(searched_at, places.flatten(1)).amin(1).max()) < 1e-6


def test_a_noisier_victim_is_asked_more_probes():
    counts = []
    for share in (0.0, 0.1, 0.4):
        problem, _, answer, _ = blurred(Norm.L2, 300, share, count=8)
        found, _ = estimates(problem, answer, 60)
        counts.append(sum(row[0].count for row in found) / 8)
    assert 40 <= counts[0] < 45
    assert counts[1] > 2 * counts[0] and counts[2] > 3 * counts[1]


@NORMS
def test_against_noise_it_comes_nearer_than_hopskipjump(norm):
    mean = {}
    for method in (hopskipjump, popskipjump):
        problem, plain, answer, least = blurred(norm, 1000, 0.01, count=6)
        _, record = attacked(method, problem, answer)
        rows, shown = torch.tensor(record.rows), torch.stack(record.images)
        away = distance(shown, problem.images[rows], norm)
        away[~problem.adversarial(torch.cat(record.logits).argmax(1), rows)] = torch.inf
        best = [int(torch.where(rows == row, away, torch.inf).argmin()) for row in range(6)]
        here, there = (plain(at, problem.rows)[:, 0] for at in (problem.images, shown[best]))
        true = away[best] * here / (here - there)  # where the boundary lies behind or before it
        mean[method] = float((true / least).mean())
    assert 1 < mean[popskipjump] < 0.85 * mean[hopskipjump]


def test_it_breaks_digits_that_noise_does_not():
    problem, answer = digits(budget=400, count=40)
    problem = replace(problem, threat=Threat(Norm.L2, 2.0, 400))
    oracle = toy_oracle(problem, answer, **TERMS)
    drive(popskipjump(problem, streams(len(problem.images))), oracle)
    # 79 % of the images, and 15 % by noise; 40 images leave 6 points of standard error.
    assert float((oracle.broken_at > 0).float().mean()) > 0.6
    assert broken_by_noise(problem, answer) < 0.3
