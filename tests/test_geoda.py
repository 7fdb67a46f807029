"""GeoDA: the plan of probes, every question against a plain loop, low frequencies, optimality."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from labels import attacked, flat, follow, hits, trail
from scipy import fft
from support import constant, digits, linear, toy_problem

from benchmark.geometry import distance, length
from benchmark.rng import RowRng, seed_from
from benchmark.types import Norm
from registry.attacks.geoda import geoda, shares

GROWTH = 0.6 ** (-2 / 3)


def away(image, centre, norm):
    return float(distance(image[None], centre[None], norm))


def low(noise, shape):
    """An image of the coefficients drawn, by another library."""
    whole = torch.zeros(shape, dtype=torch.float64)
    whole[:, : noise.shape[1], : noise.shape[2]] = noise
    return torch.from_numpy(fft.idctn(whole.numpy(), axes=(-2, -1), norm="ortho"))


def bisected(clean, far, tolerance):
    least, most = 0.0, 1.0
    while most - least > tolerance / float((far - clean).norm()):
        middle = (least + most) / 2
        if (yield clean + middle * (far - clean)):
            most = middle
        else:
            least = middle
    return clean + most * (far - clean)


def spelled_out(problem, row, count, probe, reach=0.5, tolerance=1e-4):
    """Ask about one image, one question after the other; each hit or miss is sent in."""
    clean, norm, plan = problem.images[row], problem.threat.norm, shares(problem.questions)
    rng, shape = RowRng([seed_from("labels", row)]), problem.images.shape[1:]
    size = (shape[0], min(count, shape[1]), min(count, shape[2]))

    def noise(*size):
        return rng.normal(torch.tensor([0]), size)[0].double()

    tries = 1
    while not (yield (far := (clean + 0.02 * tries * noise(*shape)).clamp(0, 1))):
        tries += 1
    point, normal = (yield from bisected(clean, far, tolerance)), torch.zeros_like(clean)
    for turn in itertools.count():
        number = plan[min(turn, len(plan) - 1)]
        for _ in range(number):
            shown = (point + probe * low(noise(*size), shape)).clamp(0, 1)
            hit = yield shown
            normal = normal + (1 if hit else -1) * (shown - point) / number
        way = normal / normal.norm() if norm is Norm.L2 else normal.sign()
        for look in range(1, 21):
            step = look * reach * away(point, clean, norm)
            if (yield (shown := (clean + step * way).clamp(0, 1))):
                point = yield from bisected(clean, shown, tolerance)
                break


def assert_as_spelled_out(problem, shown, found, row, **parameters):
    return follow(spelled_out(problem, row, **parameters), shown, found)


def fooled_early(norm, budget):
    """Attack one image whose first two questions hit and no other; its questions."""
    problem = flat(norm, budget, count=1)[0]
    problem.images[:, :, ::2] = 0.1  # so dark that rays must be clipped
    asked = []

    def answer(images, rows):
        asked.extend(rows.tolist())
        right = torch.arange(len(asked) - len(rows), len(asked)) >= 2
        return torch.stack([right, ~right], 1).double()

    shown = trail(attacked(geoda, problem, answer, probe=2e-4)[1], 0)
    return problem, shown, torch.arange(budget) < 2


def test_the_plan_splits_budgets_as_the_official_code():
    assert shares(1000) == [77, 108, 152, 213, 300]
    for budget, count, first, last in [(2500, 8, 65, 710), (10_000, 12, 67, 2847)]:
        plan = shares(budget)
        assert (len(plan), plan[0], plan[-1]) == (count, first, last)


def test_every_budget_has_a_plan_that_it_can_pay():
    for budget in [*range(1, 1200), 4000, 10_000, 40_000]:
        plan = shares(budget)
        assert min(plan) >= 1
        assert plan[0] <= 80
        assert sum(plan) <= max(budget, 1)
        if budget >= 250:  # what is reserved is 25 for each iteration
            rest = budget - sum(plan)
            assert 25 * len(plan) - 12 <= rest <= 25 * (len(plan) + 1) + 12


def test_each_iteration_has_the_same_factor_more_probes_than_the_one_before():
    for budget in (300, 1000, 2500, 10_000):
        plan = shares(budget)
        for before, after in itertools.pairwise(plan):
            assert abs(after - GROWTH * before) <= 1.3  # both are rounded


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("budget", [1, 2, 100, 600])
def test_every_question_is_that_of_a_plain_loop(norm, budget):
    problem, answer, _ = flat(norm, budget)
    _, record = attacked(geoda, problem, answer, frequencies=5, probe=0.01)
    for row in range(4):
        shown = trail(record, row)
        found = hits(problem, answer, shown, row)
        assert len(shown) == budget
        assert_as_spelled_out(problem, shown, found, row, count=5, probe=0.01)


@pytest.mark.parametrize("norm", list(Norm))
def test_every_question_is_that_of_a_plain_loop_at_the_edge_of_the_box(norm):
    problem = toy_problem(budget=600, norm=norm)  # pixels of 0 and 1, four classes
    answer = linear(problem, seed=3)
    _, record = attacked(geoda, problem, answer, probe=0.05, reach=0.8, tolerance=1e-3)
    given = {"count": 10, "probe": 0.05, "reach": 0.8, "tolerance": 1e-3}
    for row in range(3):
        shown = trail(record, row)
        found = hits(problem, answer, shown, row)
        assert_as_spelled_out(problem, shown, found, row, **given)


def begin(problem, shown, found, row):
    """Number of questions up to the end of the first bisection."""
    first = int(found.nonzero()[0])
    gap = float((shown[first] - problem.images[row]).norm())
    return first + 1 + math.ceil(math.log2(gap / 1e-4))


def test_probes_leave_the_nearest_hit_only_in_low_frequencies():
    problem, answer, _ = flat(Norm.L2, 1000)
    _, record = attacked(geoda, problem, answer, frequencies=3, probe=2e-4)
    for row in range(4):
        shown = trail(record, row)
        found = hits(problem, answer, shown, row)
        first = begin(problem, shown, found, row)
        nearest = shown[:first][found[:first]][-1]
        moved = shown[first : first + 77] - nearest
        waves = torch.from_numpy(fft.dctn(moved.numpy(), axes=(-2, -1), norm="ortho"))
        inside = waves[:, :, :3, :3].clone()
        waves[:, :, :3, :3] = 0.0
        assert float(waves.abs().max()) < 1e-12
        assert float(inside.std()) == pytest.approx(2e-4, rel=0.1)


@pytest.mark.parametrize("norm", list(Norm))
def test_a_ray_looks_at_multiples_of_half_the_distance_from_the_clean_image(norm):
    problem, shown, found = fooled_early(norm, 300)
    clean, plan = problem.images[0], shares(300)
    ray = begin(problem, shown, found, 0) + plan[0]
    looks = shown[ray : ray + 20]
    stride = 0.5 * away(shown[1], clean, norm)
    assert away(looks[0], clean, norm) == pytest.approx(stride)
    way = (looks[0] - clean) / stride
    for number, look in enumerate(looks, 1):
        assert torch.allclose(look, (clean + number * stride * way).clamp(0, 1), atol=1e-9)


@pytest.mark.parametrize("norm", list(Norm))
def test_a_ray_without_a_hit_leaves_the_point(norm):
    problem, shown, found = fooled_early(norm, 300)
    plan = shares(300)
    again = begin(problem, shown, found, 0) + plan[0] + 20
    probes = shown[again : again + plan[1]] - shown[1]
    assert float(length(probes).max()) < 2e-4 * 2 * 192**0.5
    assert float((shown[again - 1] - shown[1]).norm()) > 0.1
    assert float((shown[again + plan[1]] - shown[1]).norm()) > 0.1  # the next ray
    assert_as_spelled_out(problem, shown, found, 0, count=10, probe=2e-4)


def test_a_victim_that_is_never_fooled_gets_the_start_only():
    problem = toy_problem(budget=300)
    oracle, record = attacked(geoda, problem, constant(problem))
    assert oracle.used.tolist() == [108] * 3  # 100 noise images and 8 colours
    assert len(record.rows) == 324


@pytest.mark.parametrize("norm", list(Norm))
def test_it_comes_near_the_least_distance_on_a_flat_boundary(norm):
    problem, answer, least = flat(norm, 2500)
    found = attacked(geoda, problem, answer)[0].trace.nearest / least
    # Measured: 1.07 to 1.17, 1.14 on average in linf and 1.11 in l2.
    assert float(found.mean()) < 1.17
    assert float(found.max()) < 1.22
    assert float(found.min()) > 1 - 1e-9


def test_low_frequencies_alone_serve_a_smooth_boundary_better():
    problem, _, _ = flat(Norm.L2, 500)
    weight = low(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]] * 3).double(), (3, 8, 8)).flatten()
    clean = problem.images.flatten(1) @ weight
    sign = 1.0 - 2.0 * problem.labels

    def answer(images, rows):
        score = images.flatten(1) @ weight - clean[rows] + 0.1 * sign[rows] * float(weight.norm())
        return torch.stack([score, torch.zeros_like(score)], 1)

    few, all_ = (
        attacked(geoda, problem, answer, frequencies=count)[0].trace.nearest / 0.1
        for count in (2, 8)
    )
    assert float(few.max()) < 1.1
    assert float(all_.min()) > 1.2


def test_it_breaks_most_digits_of_a_real_victim():
    problem, answer = digits(300, count=30)
    nearest = attacked(geoda, problem, answer)[0].trace.nearest
    # Measured: 0.76, and 0.17 for as many random images in the ball.
    assert float((nearest <= 0.1).double().mean()) > 0.55
