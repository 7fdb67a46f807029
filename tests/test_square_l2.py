"""Square attack under l2: bumps, conservation of mass, windows; and the refreshed incumbent."""

from __future__ import annotations

import pytest
import torch
from support import Recorder, constant, linear, toy_oracle, toy_problem, true_label_logits

from benchmark.drive import drive
from benchmark.rng import RowRng, seed_from
from benchmark.types import Norm, Problem, Threat
from registry.attacks.square import square
from registry.moves.windows import bump, overlap, sides


def attack(problem, answer, **parameters):
    rng = RowRng([seed_from("square", row) for row in range(len(problem.images))])
    oracle = toy_oracle(problem, answer)
    drive(square(problem, rng, **parameters), oracle)
    return oracle


def grey(shape=(3, 16, 13), count=3, budget=80, eps=0.5, labels=0):
    """Images so far from black and white that nothing is clipped."""
    images = torch.full((count, *shape), 0.5, dtype=torch.float64)
    threat = Threat(Norm.L2, eps, budget)
    return Problem(images, torch.full((count,), labels), threat, 4)


def trails(problem, record):
    rows, shown = torch.tensor(record.rows), torch.stack(record.images)
    return [shown[rows == row] for row in range(len(problem.images))]


@pytest.mark.parametrize(("height", "width"), [(1, 3), (2, 5), (3, 5), (4, 9), (5, 11)])
def test_a_peak_falls_with_the_rings_around_its_centre(height, width):
    middle, far = (height // 2, width // 2), max(height // 2, width // 2)
    wanted = torch.zeros(height, width)
    for i in range(height):
        for j in range(width):
            ring = max(abs(i - middle[0]), abs(j - middle[1]))
            wanted[i, j] = sum(1 / (k + 1) ** 2 for k in range(ring, far + 1))
    side = width
    whole = bump(side)
    part = whole[: side // 2] if height == side // 2 else -whole[side // 2 :]
    assert part.shape == wanted.shape
    torch.testing.assert_close(part / part.norm(), wanted / wanted.norm())


@pytest.mark.parametrize("side", [1, 2, 3, 5, 11, 71])
def test_a_bump_has_unit_length_and_two_opposite_halves(side):
    whole = bump(side)
    assert float(whole.norm()) == pytest.approx(1.0)
    assert bool((whole[: side // 2] > 0).all()) and bool((whole[side // 2 :] < 0).all())


@pytest.mark.parametrize(
    ("size", "p", "expected"),
    [
        (32, 0.1, [11, 7, 5, 5, 3, 3, 3, 3, 3, 3]),
        (224, 0.1, [71, 51, 35, 25, 19, 13, 9, 7, 5, 3]),
    ],
)
def test_l2_sides_are_the_official_odd_ones(size, p, expected):
    last = torch.tensor([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, 9999])
    assert sides(last, 10_000, p, (size, size), odd=True).tolist() == expected


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 3), (4, 4), (7, 18), (32, 32)])
def test_sides_fit_into_any_image(shape):
    for odd in (True, False):
        found = sides(torch.arange(50), 50, 1.0, shape, odd=odd)
        assert bool((found >= 1).all()) and bool((found <= max(min(shape) - 1, 1)).all())
        assert not odd or bool((found % 2 == 1).all())


def test_the_overlap_is_that_of_the_windows():
    one, other = torch.tensor([[0, 0], [2, 3]]), torch.tensor([[1, 2], [5, 3]])
    found = overlap(one, other, 3).view(2, 3, 3)
    for place in range(2):
        for i in range(3):
            for j in range(3):
                row, col = int(other[place, 0]) + i, int(other[place, 1]) + j
                inside = 0 <= row - int(one[place, 0]) < 3 and 0 <= col - int(one[place, 1]) < 3
                assert bool(found[place, i, j]) == inside


@pytest.mark.parametrize("answer", [constant, linear])
def test_every_query_lies_on_the_sphere_when_nothing_is_clipped(answer):
    problem = grey()
    record = Recorder(answer(problem))
    attack(problem, record)
    for row, trail in enumerate(trails(problem, record)):
        lengths = (trail - problem.images[row]).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5), atol=1e-9, rtol=0)


def test_float32_rounding_does_not_add_up():
    problem = grey(shape=(3, 8, 8), count=2, budget=2000)
    problem = Problem(problem.images.float(), problem.labels, problem.threat, 4)
    generator = torch.Generator().manual_seed(0)

    def falling(images, rows):  # every proposal is kept with chance one half
        values = torch.rand(len(rows), generator=generator) - 0.001 * len(record.rows)
        return true_label_logits(problem, rows, 1000 + values).float()

    record = Recorder(falling)
    attack(problem, record)
    lengths = (torch.stack(record.images[-2:]) - problem.images).flatten(1).double().norm(dim=1)
    assert float((lengths / 0.5 - 1).abs().max()) < 2e-6


def test_clipping_loses_no_mass_for_long():
    problem = toy_problem(shape=(3, 16, 13), norm=Norm.L2, eps=2.0, budget=300)

    def falling(_images, rows):  # every proposal is kept
        return true_label_logits(problem, rows, torch.full((len(rows),), 1e6 - len(record.rows)))

    record = Recorder(falling)
    attack(problem, record)
    for row, trail in enumerate(trails(problem, record)):
        lengths = (trail - problem.images[row]).flatten(1).norm(dim=1)
        assert bool((lengths <= 2.0 * (1 + 1e-9)).all())
        assert float(lengths[-50:].mean()) > 0.9 * 2.0


def test_a_proposal_changes_two_windows_at_most():
    problem = grey(count=2, budget=60)
    record = Recorder(constant(problem))  # nothing is ever kept
    attack(problem, record)
    for trail in trails(problem, record):
        for number, shown in enumerate(trail[1:]):
            side = int(sides(torch.tensor([number]), 60, 0.1, (16, 13), odd=True)[0])
            changed = (shown - trail[0]).abs().amax(0) > 1e-12
            assert 0 < int(changed.sum()) <= 2 * side * side


def test_the_start_is_five_tiles_by_five_of_equal_length():
    problem = grey(shape=(1, 17, 22), count=1, budget=1)
    record = Recorder(constant(problem))
    attack(problem, record)
    delta = record.images[0] - problem.images[0]
    tiles = delta[0, 1:16, 3:18].view(5, 3, 5, 3)
    lengths = tiles.square().sum((1, 3)).sqrt()
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5 / 5))
    outside = delta.clone()
    outside[0, 1:16, 3:18] = 0
    assert not bool(outside.any())


def test_a_refresh_asks_the_kept_image_again_and_is_charged():
    problem = toy_problem(budget=40)
    record = Recorder(constant(problem))
    oracle = attack(problem, record, refresh=3)
    assert oracle.used.tolist() == [40] * 3
    for trail in trails(problem, record):
        for place in range(4, 40, 4):  # the start, then three proposals and one refresh in turn
            assert torch.equal(trail[place], trail[0])
            assert not torch.equal(trail[place - 1], trail[0])


def test_a_refresh_frees_an_attack_from_one_lucky_answer():
    def kept(refresh):
        problem = toy_problem(shape=(1, 8, 8), count=20, eps=0.05, budget=200)
        plain = linear(problem)
        asked = [0] * 20

        def lucky_at_first(images, rows):
            logits = plain(images, rows)
            for place, row in enumerate(rows.tolist()):
                asked[row] += 1
                if asked[row] == 1:  # an answer so good that nothing honest beats it
                    logits[place, problem.labels[row]] -= 0.999
            return logits + 50 * torch.nn.functional.one_hot(problem.labels[rows], 4)

        record = Recorder(lucky_at_first)
        attack(problem, record, refresh=refresh)
        last = torch.stack(record.images[-20:])
        margins = plain(last, torch.arange(20))
        own = margins.gather(1, problem.labels[:, None])[:, 0]
        return float(own.mean())

    assert kept(5) < kept(0) - 0.1
