"""Square attack: schedule, windows, query formula, optimality on linear models, strength."""

from __future__ import annotations

import pytest
import torch
from support import Recorder, constant, digits, linear, toy_oracle, toy_problem, turning

from benchmark.drive import drive
from benchmark.geometry import corners
from benchmark.rng import RowRng, seed_from
from registry.attacks.square import square
from registry.moves.windows import sides as window_sides


def sides_of(spent, span, p, shape):
    return window_sides(spent, span, p, shape, odd=False)


def attack(problem, answer, **parameters):
    rng = RowRng([seed_from("square", row) for row in range(len(problem.images))])
    oracle = toy_oracle(problem, answer)
    drive(square(problem, rng, **parameters), oracle)
    return oracle


def trails(problem, record):
    rows = torch.tensor(record.rows)
    shown = torch.stack(record.images)
    return [shown[rows == row] for row in range(len(problem.images))]


@pytest.mark.parametrize(
    ("p", "sides"),
    [
        (0.05, [7, 5, 4, 3, 2, 1, 1, 1, 1, 1]),
        (0.3, [18, 12, 9, 6, 4, 3, 2, 2, 1, 1]),
        (0.8, [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]),
    ],
)
def test_the_side_follows_the_official_schedule(p, sides):
    last = torch.tensor([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, 9999])
    assert sides_of(last, 10_000, p, (32, 32)).tolist() == sides
    first = torch.tensor([0, *(last[:-1] + 1).tolist()])
    assert sides_of(first, 10_000, p, (32, 32)).tolist() == sides


@pytest.mark.parametrize("divisor", range(10))
def test_a_compressed_schedule_of_100_queries_has_the_official_bands(divisor):
    counts = [1, 0, 2, 3, 5, 10, 20, 20, 20, 18]  # 99 proposals follow the stripes
    sides = sides_of(torch.arange(99), 100, 1.0, (4096, 4096))
    expected = round(4095 if divisor == 0 else (4096**2 / 2**divisor) ** 0.5)
    assert int((sides == expected).sum()) == counts[divisor]


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 100])
def test_it_asks_one_query_an_iteration_and_spends_the_budget(budget):
    problem = toy_problem(budget=budget)
    record = Recorder(constant(problem))
    oracle = attack(problem, record)
    assert oracle.used.tolist() == [budget] * 3 == record.counts(3)


@pytest.mark.parametrize("at", [1, 2, 9])
def test_it_stops_at_the_hit_and_others_go_on(at):
    problem = toy_problem(budget=20)
    oracle = attack(problem, turning(problem, [at, 1000, 15]))
    assert oracle.used.tolist() == [at, 20, 15]
    assert oracle.first_hit.tolist() == [at, 0, 15]


@pytest.mark.parametrize("shape", [(3, 8, 7), (1, 6, 9), (3, 32, 32)])
def test_every_query_lies_at_corners_of_the_ball(shape):
    problem = toy_problem(shape=shape, budget=60)
    record = Recorder(linear(problem))
    attack(problem, record)
    low, high = corners(problem.images, problem.threat.eps)
    for row, trail in enumerate(trails(problem, record)):
        assert bool(((trail == low[row]) | (trail == high[row])).all())


def test_the_first_query_is_vertical_stripes():
    problem = toy_problem(shape=(3, 9, 8), budget=1)
    record = Recorder(constant(problem))
    attack(problem, record)
    _, high = corners(problem.images, problem.threat.eps)
    up = torch.stack(record.images) == high
    assert torch.equal(up, up[:, :, :1].expand_as(up))
    assert len(torch.unique(up[:, :, 0].flatten(1), dim=0)) == 3


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_a_proposal_changes_one_window_and_never_nothing(p):
    problem = toy_problem(shape=(3, 16, 12), budget=120, eps=0.001)
    answer = linear(problem)
    record = Recorder(answer)
    oracle = attack(problem, record, p=p)
    assert oracle.used.tolist() == [120] * 3
    for row, trail in enumerate(trails(problem, record)):
        incumbent, best = trail[0], None
        for number, shown in enumerate(trail):
            logits = answer(shown[None], torch.tensor([row]))[0]
            others = logits.clone()
            others[problem.labels[row]] = -torch.inf
            loss = float(logits[problem.labels[row]] - others.max())
            if number:
                changed = (shown - incumbent).abs() > 1e-7
                side = int(sides_of(torch.tensor([number - 1]), 120, p, (16, 12))[0])
                where = changed.any(0).nonzero()
                assert len(where) > 0
                assert int((where.max(0).values - where.min(0).values).max()) < side
            if best is None or loss < best:
                incumbent, best = shown, loss


def test_windows_reach_the_last_row_and_column():
    problem = toy_problem(shape=(1, 6, 6), budget=300, eps=0.01)
    record = Recorder(constant(problem))
    attack(problem, record)
    moved = torch.stack([trail[1:] != trail[0] for trail in trails(problem, record)])
    assert bool(moved[..., -1, :].any()) and bool(moved[..., :, -1].any())


def test_a_constant_victim_never_moves_the_incumbent():
    problem = toy_problem(shape=(3, 8, 8), budget=200)
    record = Recorder(constant(problem))
    attack(problem, record)
    for trail in trails(problem, record):
        changed = (trail[1:] != trail[0]).any(1).flatten(1).sum(1)
        assert int(changed.max()) <= 7 * 7


def test_a_linear_loss_falls_towards_its_bound_with_the_budget():
    problem = toy_problem(shape=(1, 5, 5), classes=2, eps=0.01, budget=2000, count=2)
    answer = linear(problem, seed=3)
    record = Recorder(answer)
    attack(problem, record)
    for row, trail in enumerate(trails(problem, record)):
        logits = answer(trail, torch.full((len(trail),), row))
        label = int(problem.labels[row])
        losses = logits[:, label] - logits[:, 1 - label]
        low, high = corners(problem.images[row : row + 1], 0.01)
        weight = answer(
            torch.eye(25, dtype=torch.float64).view(25, 1, 5, 5), torch.full((25,), row)
        )
        base = answer(torch.zeros_like(low), torch.tensor([row]))
        slope = (weight - base)[:, label] - (weight - base)[:, 1 - label]
        best = torch.where(slope > 0, low.flatten(), high.flatten())
        bound = float((slope * best).sum() + base[0, label] - base[0, 1 - label])
        assert float(losses.min()) >= bound - 1e-9
        assert float(losses.min()) == pytest.approx(bound, abs=0.02 * float(losses[0] - bound))


def test_it_breaks_most_digits_of_a_real_victim():
    problem, answer = digits(budget=300)
    broken = attack(problem, answer).broken_at > 0
    # 82 % of 200 images fall at this budget; 60 images leave 5 points of standard error.
    assert 0.67 < float(broken.float().mean()) < 0.97
