"""SignHunter: levels, flat order, query formula, linear optimality, restarts, strength."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from support import Recorder, constant, digits, linear, toy_oracle, toy_problem, turning

from benchmark.drive import drive
from benchmark.geometry import corners, distance
from benchmark.objective import Objective
from benchmark.rng import RowRng, seed_from
from benchmark.types import Aim, Norm
from registry.attacks.signhunt import chunks, signhunt


def attack(problem, answer, **parameters):
    rng = RowRng([seed_from("signhunt", row) for row in range(len(problem.images))])
    oracle = toy_oracle(problem, answer)
    drive(signhunt(problem, rng, **parameters), oracle)
    return oracle


def trails(problem, record):
    rows, shown = torch.tensor(record.rows), torch.stack(record.images)
    return [shown[rows == row] for row in range(len(problem.images))]


def losses(problem, answer, trail, row, loss="margin"):
    rows = torch.full((len(trail),), row)
    return Objective(problem, loss).of(answer(trail, rows), rows)


def unbreakable(problem):
    """A linear victim that always answers the label, however low its score falls.

    It has two classes; the margin is linear in the image, and far above 0.
    """
    answer = linear(problem, seed=3)

    def lifted(images, rows):
        logits = answer(images, rows)
        return logits.scatter_add(
            1, problem.labels[rows][:, None], torch.full((len(rows), 1), 1e3, dtype=logits.dtype)
        )

    return lifted


def passed(size):
    return len(list(chunks(size)))


@pytest.mark.parametrize(
    ("size", "flips"), [(1, 1), (2, 3), (784, 1608), (3072, 6655), (150528, 337201)]
)
def test_a_pass_has_the_official_number_of_flips(size, flips):
    assert passed(size) == flips


def test_levels_of_a_cifar_image_have_the_official_number_of_chunks():
    counts = Counter(stop - start for start, stop in chunks(3072))
    assert list(counts.values()) == [*(2**level for level in range(11)), 1536, 3072]


@pytest.mark.parametrize("size", [1, 5, 48, 75, 100])
def test_every_level_covers_every_value_once(size):
    covered = []
    for start, stop in chunks(size):
        covered = [] if start == 0 else covered
        assert start == len(covered)
        covered += range(start, stop)
    assert covered == list(range(size))


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 100, 500])
def test_it_asks_one_query_a_flip_and_spends_the_budget(budget, norm):
    problem = toy_problem(budget=budget, norm=norm)
    record = Recorder(constant(problem))
    oracle = attack(problem, record)
    assert oracle.used.tolist() == [budget] * 3 == record.counts(3)


@pytest.mark.parametrize("at", [1, 2, 9])
def test_it_stops_at_the_hit_and_others_go_on(at):
    problem = toy_problem(budget=20)
    oracle = attack(problem, turning(problem, [at, 1000, 15]))
    assert oracle.used.tolist() == [at, 20, 15]


@pytest.mark.parametrize("restart", ["official", "keep-origin"])
def test_every_query_lies_at_corners_of_the_ball(restart):
    one_pass = 1 + passed(168)
    problem = toy_problem(budget=one_pass if restart == "official" else 2 * one_pass)
    record = Recorder(linear(problem))
    attack(problem, record, restart=restart)
    low, high = corners(problem.images, problem.threat.eps)
    for row, trail in enumerate(trails(problem, record)):
        assert bool(((trail == low[row]) | (trail == high[row])).all())


def test_every_l2_query_has_the_length_of_the_ball_but_for_the_box():
    problem = toy_problem(norm=Norm.L2, eps=1.0, budget=800)
    problem = replace(problem, images=problem.images * 0.5 + 0.25)
    record = Recorder(unbreakable(problem))
    attack(problem, record)
    one_pass = 1 + passed(168)
    for row, trail in enumerate(trails(problem, record)):
        away = distance(trail, problem.images[row].expand_as(trail), Norm.L2)
        assert torch.allclose(away[:one_pass], torch.ones(one_pass, dtype=torch.float64))
        assert float(away.max()) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("order", "half"), [("hwc", (slice(None), slice(0, 2))), ("chw", (slice(0, 1), slice(None)))]
)
def test_the_second_level_flips_half_the_rows_or_half_the_channels(order, half):
    problem = toy_problem(count=1, shape=(2, 4, 5), budget=4, eps=0.01)
    record = Recorder(constant(problem))  # ties keep every flip
    attack(problem, record, order=order)
    low, high = corners(problem.images, 0.01)
    expected = low.clone()
    expected[0][half] = high[0][half]
    assert torch.equal(torch.stack(record.images), torch.cat((high, low, expected, high)))


def test_a_separable_loss_is_at_its_minimum_after_one_pass():
    for norm in Norm:
        for shape in [(3, 4, 4), (1, 8, 8), (3, 5, 5), (1, 10, 10)]:
            size = shape[0] * shape[1] * shape[2]
            problem = toy_problem(
                shape=shape, classes=2, norm=norm, eps=0.3, budget=1 + passed(size)
            )
            answer = unbreakable(problem)
            record = Recorder(answer)
            attack(problem, record, loss="margin")
            stride = 0.3 if norm is Norm.LINF else 0.3 / size**0.5
            low, high = corners(problem.images, stride)
            for row, trail in enumerate(trails(problem, record)):
                units = torch.eye(size, dtype=torch.float64).view(-1, *shape)
                zero = torch.zeros(1, *shape, dtype=torch.float64)
                base = losses(problem, answer, zero, row)
                slope = (losses(problem, answer, units, row) - base).view(shape)
                best = torch.where(slope > 0, low[row], high[row])
                least = float(losses(problem, answer, best[None], row))
                found = losses(problem, answer, trail, row).min()
                assert float(found) == pytest.approx(least, abs=1e-9)


def test_the_incumbent_never_gets_worse_within_a_pass():
    problem = toy_problem(budget=1 + passed(168), eps=0.1)
    answer = unbreakable(problem)
    record = Recorder(answer)
    attack(problem, record, loss="margin", order="chw")
    for row, trail in enumerate(trails(problem, record)):
        values = losses(problem, answer, trail, row)
        incumbent, best = trail[0].flatten(), values[0]
        for (start, stop), shown, value in zip(chunks(168), trail[1:], values[1:], strict=True):
            differs = (shown.flatten() != incumbent).nonzero()[:, 0]
            assert bool(((differs >= start) & (differs < stop)).all())  # all else is the best
            if value <= best:
                incumbent, best = shown.flatten(), value


def test_an_official_restart_begins_around_what_was_found():
    size = 30
    one_pass = 1 + passed(size)
    problem = toy_problem(shape=(1, 5, 6), classes=2, eps=0.1, budget=one_pass + 2)
    answer = unbreakable(problem)
    record = Recorder(answer)
    attack(problem, record, loss="margin")
    low, high = corners(problem.images, 0.1)
    for row, trail in enumerate(trails(problem, record)):
        found = trail[:one_pass][losses(problem, answer, trail[:one_pass], row).argmin()]
        up = torch.minimum(found + 0.1, high[row])
        down = torch.maximum(found - 0.1, low[row])
        assert torch.equal(trail[one_pass], up)
        assert torch.equal(trail[one_pass + 1], down)


def test_keeping_the_origin_flips_the_signs_found_so_far():
    one_pass = 1 + passed(30)
    problem = toy_problem(shape=(1, 5, 6), classes=2, eps=0.1, budget=one_pass + 1)
    answer = unbreakable(problem)
    record = Recorder(answer)
    attack(problem, record, loss="margin", restart="keep-origin")
    low, high = corners(problem.images, 0.1)
    for row, trail in enumerate(trails(problem, record)):
        found = trail[:one_pass][losses(problem, answer, trail[:one_pass], row).argmin()]
        opposite = torch.where(found == high[row], low[row], high[row])
        assert torch.equal(trail[one_pass], opposite)


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


def test_it_breaks_most_digits_of_a_real_victim():
    problem, answer = digits(budget=100)
    broken = attack(problem, answer).broken_at > 0
    # 82 % of 200 images fall at this budget; 60 images leave 5 points of standard error.
    assert 0.67 < float(broken.float().mean()) < 0.97
