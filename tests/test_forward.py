"""RGF, ZO-SGD, ZO-signSGD: query formula, differences, steps, wider probes, strength."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support import (
    Recorder,
    constant,
    digits,
    linear,
    toy_oracle,
    toy_problem,
    true_label_logits,
    turning,
)

from benchmark.catalogue import ATTACKS
from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.rng import RowRng, seed_from
from benchmark.types import Aim, Norm, Probes, Problem, Threat
from registry.attacks.rgf import rgf
from registry.attacks.zosgd import zosgd
from registry.attacks.zosignsgd import zosignsgd
from registry.moves.estimates import directions

ALL = pytest.mark.parametrize("method", [rgf, zosgd, zosignsgd])
NORMS = pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])


def attack(method, problem, answer, **parameters):
    rng = RowRng([seed_from("forward", row) for row in range(len(problem.images))])
    oracle = toy_oracle(problem, answer, region=problem.probes)
    drive(method(problem, rng, **parameters), oracle)
    return oracle


def trail(record, row=0):
    return torch.stack(record.images)[torch.tensor(record.rows) == row]


def grey(count, shape, norm, budget, eps=1.0, probes=Probes.FREE):
    """Images of 0.5, far from the box."""
    images = torch.full((count, *shape), 0.5, dtype=torch.float64)
    labels = torch.zeros(count, dtype=torch.int64)
    return Problem(images, labels, Threat(norm, eps, budget), 2, probes)


def sloped(slope, offset=50.0):
    """Two classes, whose margin has this gradient everywhere."""

    def answer(images, _rows):
        own = torch.stack([slope @ image.flatten() for image in images]) + offset
        return torch.stack((own, torch.zeros_like(own)), 1)

    return answer


def a_slope(size, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, generator=generator, dtype=torch.float64) * scale


def expected(budget, count, *, fresh):
    """Queries of a run that never succeeds: the clean image, then steps, the last one shorter."""
    left = budget - 1
    while left >= 2:
        used = min(count, left // 2 if fresh else left - 1)
        left -= 2 * used if fresh else used + 1
    return budget - left


@ALL
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("budget", [1, 2, 3, 4, 7, 11, 12, 13, 21, 100, 123])
def test_a_step_costs_its_probes_and_its_iterate_and_the_last_is_shorter(method, budget, fresh):
    problem = toy_problem(budget=budget)
    record = Recorder(linear_but_right(problem))
    oracle = attack(
        method, problem, record, directions=5, fresh_baseline=fresh, auto_sigma=method is rgf
    )
    spent = expected(budget, 5, fresh=fresh)
    assert spent >= budget - 1
    assert oracle.used.tolist() == [spent] * 3 == record.counts(3)


def linear_but_right(problem):
    """Scores that differ everywhere, and never a wrong label."""
    slope = a_slope(problem.images[0].numel())

    def answer(images, rows):
        return true_label_logits(
            problem, rows, torch.stack([1e3 + slope @ image.flatten() for image in images])
        )

    return answer


def test_the_cost_of_whole_steps_is_the_formula():
    assert expected(1 + 3 * 6, 5, fresh=False) == 19
    assert expected(1 + 3 * 10, 5, fresh=True) == 31
    assert [expected(budget, 5, fresh=False) for budget in (1, 2, 3, 7)] == [1, 1, 3, 7]


@ALL
def test_it_stops_at_the_hit_and_others_go_on(method):
    problem = toy_problem(budget=100)
    # The clean query is the first, the iterates are 7, 13, 19, ...
    oracle = attack(
        method, problem, turning(problem, [1, 13, 1000]), directions=5, auto_sigma=False
    )
    assert oracle.first_hit.tolist() == [1, 13, 0]
    assert oracle.used.tolist() == [1, 13, 100]


def test_a_fresh_baseline_is_asked_before_each_probe_but_the_first():
    problem = toy_problem(budget=21, probes=Probes.FREE)
    record = Recorder(linear_but_right(problem))
    attack(rgf, problem, record, directions=5, fresh_baseline=True)
    shown = trail(record)
    same = [bool(torch.equal(image, shown[0])) for image in shown[:10]]
    assert same == [True, False] * 5
    assert not torch.equal(shown[10], shown[0])
    same = [bool(torch.equal(image, shown[10])) for image in shown[10:20]]
    assert same == [True, False] * 5


@NORMS
def test_fresh_baselines_do_not_change_the_estimate_of_a_deterministic_victim(norm):
    problem = toy_problem(norm=norm, budget=1 + 5 + 1, eps=0.1)
    once, anew = Recorder(linear_but_right(problem)), Recorder(linear_but_right(problem))
    attack(rgf, problem, once, directions=5)
    twice = dataclasses.replace(problem, threat=dataclasses.replace(problem.threat, budget=11))
    attack(rgf, twice, anew, directions=5, fresh_baseline=True)
    assert torch.allclose(trail(once)[-1], trail(anew)[-1], atol=1e-12)


def test_sphere_directions_have_a_root_mean_square_of_one():
    like = torch.zeros((2, 3, 8, 7), dtype=torch.float64)
    rng = RowRng([1, 2])
    noise = directions(rng, torch.arange(2), 6, like, "sphere")
    assert torch.allclose(noise.flatten(2).square().mean(2), torch.ones(2, 6).double())


@pytest.mark.parametrize("kind", ["sphere", "gaussian"])
def test_probes_are_as_wide_as_asked(kind):
    problem = grey(1, (3, 16, 12), Norm.L2, 41)
    record = Recorder(sloped(a_slope(576)))
    attack(rgf, problem, record, directions=39, probe=0.02, kind=kind)
    offsets = (trail(record)[1:40] - 0.5).flatten(1)
    widths = offsets.square().mean(1).sqrt()
    assert float(widths.mean()) == pytest.approx(0.02, rel=0.01)
    assert (float(widths.std()) < 1e-8) == (kind == "sphere")


@ALL
@pytest.mark.parametrize("probes", list(Probes))
def test_probes_stay_where_the_policy_says(method, probes):
    problem = toy_problem(probes=probes, budget=64, eps=0.05)
    record = Recorder(constant(problem))
    attack(method, problem, record, probe=0.2, auto_sigma=False)
    shown = trail(record)
    away = distance(shown, problem.images[:1].expand_as(shown), Norm.LINF)
    assert bool(((shown >= 0) & (shown <= 1)).all()) == (probes is not Probes.FREE)
    assert bool((away <= 0.05 + 1e-6).all()) == (probes is Probes.BALL)
    assert bool((away[0::21] <= 0.05 + 1e-6).all())


@pytest.mark.parametrize("fresh", [False, True])
def test_the_step_is_the_mean_of_slopes_times_directions(fresh):
    """With a given rate ZO-SGD shows its estimate: each quotient is the slope along u."""
    slope = a_slope(60)
    problem = grey(2, (3, 4, 5), Norm.L2, 13 if fresh else 8, eps=1e3)
    record = Recorder(sloped(slope))
    given = {"directions": 6, "probe": 0.01, "rate": 1e-3, "fresh_baseline": fresh}
    attack(zosgd, problem, record, **given)
    for row in range(2):
        shown = trail(record, row)
        probed = shown[1:12:2] if fresh else shown[1:7]
        drawn = (probed - 0.5).flatten(1) / 0.01
        gradient = ((drawn @ slope)[:, None] * drawn).mean(0)
        moved = (shown[12 if fresh else 7] - 0.5).flatten()
        assert torch.allclose(moved, (-1e-3 * gradient).clamp(-0.5, 0.5), atol=1e-9)


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_the_estimate_turns_towards_the_gradient_as_the_formula_says(loss):
    size, count, rows = 300, 20, 200
    slope = a_slope(size, 0.01)
    problem = grey(rows, (1, 15, 20), Norm.L2, count + 2)
    record = Recorder(sloped(slope, offset=5.0))
    attack(rgf, problem, record, directions=count, probe=1e-3, loss=loss)
    steps = (torch.stack(record.images)[-rows:] - 0.5).flatten(1)
    cosine = -(steps @ slope) / (steps.norm(dim=1) * slope.norm())
    assert float(cosine.mean()) == pytest.approx((count / (size + count - 1)) ** 0.5, rel=0.05)


def test_steps_have_the_length_of_the_step():
    slope = a_slope(60)
    for method, norm, step, wanted in (
        (rgf, Norm.LINF, 0.03, 0.03),
        (rgf, Norm.L2, 0.1, 0.1),
        (zosignsgd, Norm.LINF, 0.03, 0.03),
        (zosignsgd, Norm.L2, 0.01, 0.01 * 60**0.5),
    ):
        record = Recorder(sloped(slope))
        attack(method, grey(1, (3, 4, 5), norm, 22), record, directions=20, step=step)
        moved = trail(record)[21:] - 0.5
        assert float(distance(moved, torch.zeros_like(moved), norm)) == pytest.approx(wanted)
        if method is zosignsgd:
            assert torch.allclose(moved.abs(), torch.full_like(moved, step))


def test_a_sign_step_in_l2_stays_in_the_ball():
    problem = toy_problem(norm=Norm.L2, eps=0.4, budget=100)
    record = Recorder(linear_but_right(problem))
    attack(zosignsgd, problem, record, directions=5, step=0.05)
    for row in range(3):
        iterates = trail(record, row)[0::6]
        away = distance(iterates, problem.images[row].expand_as(iterates), Norm.L2)
        assert float(away.max()) <= 0.4 + 1e-9
        assert float(away[-1]) > 0.3


@NORMS
def test_the_first_step_of_zosgd_sets_the_rate(norm):
    slope = a_slope(60)
    sizes = []
    for scale in (1e-6, 1.0, 1e6):
        problem = grey(1, (3, 4, 5), norm, 43, eps=0.2)
        record = Recorder(sloped(slope * scale, offset=1e9))
        attack(zosgd, problem, record, directions=20, first=0.01)
        moved = (trail(record)[21] - 0.5).flatten()
        sizes.append(float(moved.norm()))
    wanted = 0.002 * (60**0.5 if norm is Norm.LINF else 1.0)
    assert sizes == pytest.approx([wanted] * 3, rel=1e-3)


@ALL
@NORMS
@pytest.mark.parametrize("auto", [False, True])
def test_a_constant_victim_is_never_left_and_the_budget_is_spent(method, norm, auto):
    problem = toy_problem(norm=norm, budget=300)
    flat = dataclasses.replace(problem, labels=problem.labels * 0)
    record = Recorder(constant(flat))
    oracle = attack(method, flat, record, directions=7, auto_sigma=auto, probe=1e-5)
    assert bool((oracle.used >= 299).all())
    at_home = (trail(record) == flat.images[0]).flatten(1).all(1)
    assert int(at_home.sum()) >= 20


@NORMS
def test_flat_answers_make_the_probes_wider_up_to_the_ball(norm):
    problem = grey(2, (3, 4, 5), norm, 200, eps=0.05)
    record = Recorder(constant(problem))
    attack(rgf, problem, record, directions=5, probe=1e-5)
    widths = (trail(record) - 0.5).flatten(1).square().mean(1).sqrt()
    widest = 0.05 / (1 if norm is Norm.LINF else 60**0.5)
    steps = [1e-5 * 5**power for power in range(20)]
    rising = [step for step in steps if step < widest] + [widest]
    for number, wanted in enumerate(rising):
        start = 1 + 5 * number
        assert torch.allclose(widths[start : start + 5], torch.full((5,), wanted).double())
    assert float(widths.max()) == pytest.approx(widest)


def test_the_first_width_returns_when_it_shows_differences():
    problem = grey(2, (3, 4, 5), Norm.LINF, 100, eps=0.2)
    seen = []
    plain = linear_but_right(problem)

    def answer(images, rows):
        """Flat for the first 12 queries of each row."""
        seen.append(len(images))
        return plain(images, rows) if sum(seen) > 24 else constant(problem)(images, rows)

    record = Recorder(answer)
    attack(rgf, problem, record, directions=5, probe=1e-4, step=0.01)
    shown = trail(record)
    home = [0]
    widths = []
    for number in range(1, len(shown)):
        width = float((shown[number] - shown[home[-1]]).square().mean().sqrt())
        if width == pytest.approx(0.01, rel=1e-6):
            home.append(number)
        else:
            widths.append(width)
    assert max(widths) == pytest.approx(0.0025)
    assert sum(abs(width - 1e-4) < 1e-9 for width in widths) > 40
    assert sum(abs(width - 2.5e-3) < 1e-8 for width in widths) < 20


def test_an_image_that_widens_does_not_change_the_others():
    problem = toy_problem(budget=90)
    plain = linear_but_right(problem)

    def answer(images, rows):
        logits = plain(images, rows)
        logits[rows == 1] = true_label_logits(
            problem, rows[rows == 1], [3.0] * int((rows == 1).sum())
        )
        return logits

    together, alone = Recorder(answer), Recorder(plain)
    attack(rgf, problem, together)
    attack(rgf, problem, alone)
    assert torch.equal(trail(together, 0), trail(alone, 0))
    assert torch.equal(trail(together, 2), trail(alone, 2))
    assert len(trail(together, 1)) == 90


@ALL
@NORMS
def test_absurd_losses_give_no_absurd_images(method, norm):
    problem = toy_problem(norm=norm, budget=60)

    def answer(images, rows):
        return linear_but_right(problem)(images, rows) * 1e25

    floats = dataclasses.replace(problem, images=problem.images.float())
    oracle = attack(method, floats, lambda images, rows: answer(images.double(), rows).float())
    assert bool((oracle.used >= 59).all())  # the oracle refuses images with NaN


@ALL
@NORMS
def test_targeted_at_the_other_of_two_classes_is_untargeted(method, norm):
    problem = toy_problem(classes=2, norm=norm, budget=80, eps=0.02)
    targeted = dataclasses.replace(
        problem,
        targets=1 - problem.labels,
        threat=dataclasses.replace(problem.threat, aim=Aim.TARGETED),
    )
    one, other = Recorder(linear(problem)), Recorder(linear(problem))
    attack(method, problem, one)
    attack(method, targeted, other)
    assert torch.equal(torch.stack(one.images), torch.stack(other.images))


@ALL
def test_presets_are_settings_of_the_attack(method):
    entry = ATTACKS.get(method.__name__)
    for name in entry.facts.presets:
        assert entry.settings(name)["directions"] in {4, 15, 20, 30, 50, 100}


@pytest.mark.parametrize(("method", "share"), [(rgf, 0.61), (zosgd, 0.70), (zosignsgd, 0.65)])
def test_it_breaks_digits_of_a_real_victim(method, share):
    problem, answer = digits(budget=300, count=30)
    broken = attack(method, problem, answer).broken_at > 0
    # The shares are of 59 images; 29 leave 9 points of standard error.
    assert share - 0.25 < float(broken.float().mean()) < share + 0.25
