"""SimBA: bases, orders, query formula, steps, both balls, exhausted directions, strength."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import Recorder, constant, digits, linear, streams, toy_oracle, toy_problem, turning

from benchmark.drive import drive
from benchmark.geometry import corners, distance
from benchmark.objective import Objective
from benchmark.rng import RowRng, seed_from
from benchmark.types import Aim, Norm
from registry.attacks.simba import simba
from registry.moves.bases import Cosines, Pixels, cosines, walks


def attack(problem, answer, **parameters):
    rng = RowRng([seed_from("simba", row) for row in range(len(problem.images))])
    oracle = toy_oracle(problem, answer)
    drive(simba(problem, rng, **parameters), oracle)
    return oracle


def trails(problem, record):
    rows, shown = torch.tensor(record.rows), torch.stack(record.images)
    return [shown[rows == row] for row in range(len(problem.images))]


def inner(problem):
    """Keep the images away from the edges of the box."""
    return replace(problem, images=problem.images * 0.2 + 0.4)


def sturdy(problem):
    """Answer like a linear victim, but the label by far: no loss of margin ever breaks it."""
    answer = linear(problem, seed=3)

    def lifted(images, rows):
        lift = torch.full((len(rows), 1), 1e3, dtype=images.dtype)
        return answer(images, rows).scatter_add(1, problem.labels[rows][:, None], lift)

    return lifted


def margins(problem, answer, trail, row):
    rows = torch.full((len(trail),), row)
    return Objective(problem).of(answer(trail, rows), rows)


def accepted(problem, answer, trail, row):
    """Numbers of the queries that were better than all before, the first left out."""
    values = margins(problem, answer, trail, row)
    lowest = values.cummin(0).values
    return ((values[1:] < lowest[:-1]).nonzero()[:, 0] + 1).tolist()


@pytest.mark.parametrize("size", [1, 7, 8, 28, 32])
def test_cosines_are_orthonormal(size):
    matrix = cosines(size)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)


def test_a_direction_is_a_plane_of_unit_length_in_single_precision():
    like = torch.zeros(1, 2, 28, 20)
    directions = torch.arange(2 * 28 * 20)
    planes = Cosines(like).pattern(directions, torch.ones(len(directions)))
    assert torch.allclose(planes.norm(dim=1), torch.ones(len(directions)), atol=1e-5)
    channel = planes[:560]
    assert torch.allclose(channel @ channel.T, torch.eye(560), atol=1e-5)
    assert Cosines(like).cell(directions).tolist() == [0] * 560 + [1] * 560


@pytest.mark.parametrize("order", ["random", "diagonal", "strided"])
@pytest.mark.parametrize("shape", [(3, 8, 7), (1, 6, 9), (2, 12, 5)])
def test_every_direction_comes_at_most_once(shape, order):
    like = torch.zeros(4, *shape)
    found = walks(streams(4), torch.arange(4), like, order, 4, 3)
    low = shape[0] * min(4, shape[1]) * min(4, shape[2])
    size = low if order == "random" else like[0].numel()
    assert found.shape == (4, size)
    for walk in found:
        assert len(walk.unique()) == size and int(walk.max()) < like[0].numel()


def test_strided_visits_the_low_block_and_then_shell_after_shell():
    found = walks(streams(3), torch.arange(3), torch.zeros(3, 2, 12, 9), "strided", 4, 3)
    far = torch.maximum(found % 108 // 9, found % 9)
    for walk in far:
        ends = [0, 2 * 16, 2 * 49, 2 * 10 * 9, 2 * 12 * 9]  # sides 4, 7, 10 and 12
        for number, bound in enumerate([4, 7, 10, 12]):
            assert int(walk[ends[number] : ends[number + 1]].max()) < bound
            assert int(walk[ends[number] :].max()) >= bound - 1
    assert int((found[0] != found[1]).sum()) > 0


def test_diagonal_goes_from_low_to_high_with_all_channels_at_each_frequency():
    found = walks(streams(2), torch.arange(2), torch.zeros(2, 3, 5, 4), "diagonal", 2, 1)
    sums = (found % 20 // 4 + found % 4)[0]
    assert bool((sums.diff() >= 0).all())
    assert (found[0] // 20).tolist() == [0, 1, 2] * 20
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 100])
def test_it_asks_both_signs_of_each_direction_until_the_budget_is_spent(budget, norm, basis):
    problem = toy_problem(budget=budget, norm=norm)
    record = Recorder(constant(problem))
    oracle = attack(problem, record, basis=basis)
    assert oracle.used.tolist() == [budget] * 3 == record.counts(3)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_exhausted_directions_end_the_attack_before_the_budget(basis):
    problem = toy_problem(shape=(1, 4, 5), budget=1000)
    oracle = attack(problem, constant(problem), basis=basis)
    assert oracle.used.tolist() == [1 + 2 * 20] * 3


@pytest.mark.parametrize("at", [1, 2, 9])
def test_it_stops_at_the_hit_and_others_go_on(at):
    problem = toy_problem(budget=20)
    oracle = attack(problem, turning(problem, [at, 1000, 15]))
    assert oracle.used.tolist() == [at, 20, 15]


def test_a_direction_costs_one_query_if_its_first_sign_succeeds_and_else_two():
    problem = inner(toy_problem(shape=(1, 5, 6), budget=1000, eps=0.3))
    answer = sturdy(problem)
    record = Recorder(answer)
    attack(problem, record, step=0.02, loss="margin")
    kind = Cosines(problem.images)
    everything = kind.pattern(torch.arange(30), torch.ones(30, dtype=torch.float64))
    for row, trail in enumerate(trails(problem, record)):
        taken, number, visited = accepted(problem, answer, trail, row), 1, []
        here = trail[0]
        assert torch.equal(here, problem.images[row])
        while number < len(trail):
            moved = everything @ (trail[number] - here).flatten()
            visited.append(int(moved.abs().argmax()))
            assert float(moved[visited[-1]]) == pytest.approx(-0.02)  # minus is tried first
            if number not in taken:
                number += 1
                moved = everything @ (trail[number] - here).flatten()
                assert int(moved.abs().argmax()) == visited[-1]
                assert float(moved[visited[-1]]) == pytest.approx(0.02)
            here = trail[number] if number in taken else here
            number += 1
        assert sorted(visited) == list(range(30))


def test_without_cutting_the_length_is_the_step_times_the_root_of_the_steps():
    problem = inner(toy_problem(budget=60, norm=Norm.L2, eps=1.0))
    answer = sturdy(problem)
    record = Recorder(answer)
    attack(problem, record, step=0.05, loss="margin")
    for row, trail in enumerate(trails(problem, record)):
        taken = accepted(problem, answer, trail, row)
        away = distance(trail[taken], problem.images[row].expand_as(trail[taken]), Norm.L2)
        steps = torch.arange(1, len(taken) + 1, dtype=torch.float64)
        assert torch.allclose(away, 0.05 * steps.sqrt()) and len(taken) > 20


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_under_linf_every_query_is_cut_to_ball_and_box(basis):
    problem = toy_problem(budget=300, eps=0.03)
    record = Recorder(sturdy(problem))
    attack(problem, record, basis=basis, step=0.2)
    low, high = corners(problem.images, 0.03)
    for row, trail in enumerate(trails(problem, record)):
        assert bool(((trail >= low[row]) & (trail <= high[row])).all())
        assert bool((trail == low[row]).any()) and bool((trail == high[row]).any())


def test_pixel_steps_move_every_value_of_a_linear_loss_to_its_best_corner():
    problem = toy_problem(shape=(1, 5, 6), classes=2, budget=100, eps=0.05)
    answer = sturdy(problem)
    record = Recorder(answer)
    attack(problem, record, basis="pixel", loss="margin")
    low, high = corners(problem.images, 0.05)
    units = torch.eye(30, dtype=torch.float64).view(30, 1, 5, 6)
    for row, trail in enumerate(trails(problem, record)):
        zero = margins(problem, answer, torch.zeros_like(units[:1]), row)
        slope = (margins(problem, answer, units, row) - zero).view(1, 5, 6)
        found = trail[margins(problem, answer, trail, row).argmin()]
        assert torch.equal(found, torch.where(slope > 0, low[row], high[row]))


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_an_l2_walk_asks_nothing_outside_the_ball_and_ends(basis):
    problem = toy_problem(budget=2000, norm=Norm.L2, eps=0.5)
    answer = sturdy(problem)
    record = Recorder(answer)
    oracle = attack(problem, record, basis=basis, step=0.2, loss="margin")
    assert int(oracle.used.max()) < 2000
    for row, trail in enumerate(trails(problem, record)):
        away = distance(trail, problem.images[row].expand_as(trail), Norm.L2)
        assert float(away.max()) <= 0.5
        assert len(accepted(problem, answer, trail, row)) >= 6


def test_away_from_the_box_an_l2_walk_ends_with_the_last_step_that_has_room():
    problem = inner(toy_problem(budget=2000, norm=Norm.L2, eps=0.5))
    answer = sturdy(problem)
    record = Recorder(answer)
    attack(problem, record, step=0.2, loss="margin")
    for row, trail in enumerate(trails(problem, record)):
        taken = accepted(problem, answer, trail, row)
        assert len(taken) == 6 and taken[-1] == len(trail) - 1


def test_candidates_are_passed_over_exactly_where_they_do_not_fit():
    problem = toy_problem(count=1, shape=(1, 5, 6), budget=500, norm=Norm.L2, eps=0.45)
    answer = sturdy(problem)
    record = Recorder(answer)
    attack(problem, record, order="diagonal", step=0.2, loss="margin")
    order = walks(streams(1), problem.rows, problem.images, "diagonal", 5, 1)[0].long()
    planes = Cosines(problem.images).pattern(order, torch.ones(30, dtype=torch.float64))
    expected, delta, best = [problem.images[0]], torch.zeros(30, dtype=torch.float64), None
    best = margins(problem, answer, problem.images, 0)
    for plane in planes:
        for sign in (-0.2, 0.2):
            shown = (problem.images + (delta + sign * plane).view(1, 1, 5, 6)).clamp(0, 1)
            if float((shown - problem.images).norm()) > 0.45:
                continue
            expected.append(shown[0])
            value = margins(problem, answer, shown, 0)
            if value < best:
                best, delta = value, delta + sign * plane
                break
    assert len(expected) == len(record.images) < 61
    assert torch.allclose(torch.stack(expected), torch.stack(record.images), atol=1e-12)


@pytest.mark.parametrize("kind", [Cosines, Pixels])
def test_no_step_is_shorter_than_its_bound(kind):
    problem = toy_problem(shape=(2, 6, 5))
    basis, size = kind(problem.images), 60
    delta = torch.zeros_like(problem.images)
    if kind is Cosines:
        delta = 0.1 * torch.randn(delta.shape, generator=torch.Generator().manual_seed(1)).to(delta)
    images = (problem.images + delta).clamp(0, 1)
    least = basis.shortest(images, problem.images, delta, 0.2)
    cells = torch.zeros(size, basis.cells, size // basis.cells, dtype=torch.float64)
    every = torch.arange(size)
    ones = torch.ones(size, dtype=torch.float64)
    cells[every, basis.cell(every)] = basis.pattern(every, ones)
    for place, sign in enumerate((-0.2, 0.2)):
        moved = (problem.images + delta)[:, None] + sign * cells.view(size, 2, 6, 5)
        exact = (moved.clamp(0, 1) - problem.images[:, None]).square().sum((2, 3, 4))
        assert bool((least[:, :, place] <= exact + 1e-12).all())
        assert float((exact - least[:, :, place]).max()) < 0.5 * float(exact.max())


def test_images_walk_in_different_orders():
    problem = toy_problem(budget=40)
    problem = replace(
        problem, images=problem.images[:1].repeat(3, 1, 1, 1), labels=problem.labels * 0
    )
    record = Recorder(constant(problem))
    attack(problem, record)
    first, second, third = trails(problem, record)
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize("loss", ["margin", "ce", "prob"])
def test_aimed_at_the_other_of_two_classes_it_asks_the_same(loss):
    problem = toy_problem(classes=2, budget=60, eps=0.05)
    aimed = replace(
        problem, targets=1 - problem.labels, threat=replace(problem.threat, aim=Aim.TARGETED)
    )
    records = [Recorder(linear(problem)) for _ in range(2)]
    for posed, record in zip((problem, aimed), records, strict=True):
        attack(posed, record, loss=loss)
    assert torch.equal(torch.stack(records[0].images), torch.stack(records[1].images))


def test_it_breaks_many_digits_of_a_real_victim():
    problem, answer = digits(budget=300)
    broken = attack(problem, answer).broken_at > 0
    # 49 % of 200 images fall at this budget; 60 images leave 6.5 points of standard error.
    assert 0.29 < float(broken.float().mean()) < 0.69
