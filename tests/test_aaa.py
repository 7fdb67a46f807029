"""AAA: its targets, its solvers against brute force and a reference, labels, temperature."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits import awkward_logits, digits_accuracy
from support import refusal, tiny_dataset, tiny_victim

from benchmark.catalogue import DEFENSES
from benchmark.data import Split
from benchmark.defense import QueryContext
from benchmark.errors import SpecError
from benchmark.rng import RowRng
from registry.defenses.aaa_linear import AAALinear
from registry.defenses.aaa_sine import AAASine
from registry.parts.aaa import linear_target, sine_target
from registry.parts.margins import lead, leaders, margin, with_margin
from registry.parts.solvers import Goal, adam, best_margin, exact
from registry.parts.temperature import calibrated_temperature, fitted_temperature

FORMS = [AAALinear, AAASine]
CONTEXT = QueryContext(RowRng([1]), torch.zeros(1, dtype=torch.int64))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def random_logits(count, classes, scale=4.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(classes)
    return (torch.randn(count, classes, generator=generator, dtype=torch.float64) * scale).to(dtype)


def random_goal(logits, tau=6.0, beta=5.0, temperature=1.0):
    """A target far from the margin, and the confidence at a temperature."""
    chances = (logits.double() / temperature).softmax(1).amax(1, keepdim=True)
    return Goal(linear_target(margin(logits), tau, 1.0), chances, beta)


def objective(answers, logits, goal):
    """|m(z') - t| + beta |softmax(z')_y - p|, (n,), with y the label before."""
    top = answers.double().topk(2, 1).values
    own = answers.double().softmax(1).gather(1, logits.argmax(1, keepdim=True))
    missed = (top[:, :1] - top[:, 1:] - goal.targets).abs()
    return (missed + goal.beta * (own - goal.chances).abs())[:, 0]


# --- targets ---


def test_linear_targets_at_the_ends_and_the_middle_of_cells():
    below = math.nextafter(6.0, 0.0)
    found = linear_target(column(0.0, 3.0, below, 6.0, 9.0, 11.5), 6.0, 1.0)
    torch.testing.assert_close(found, column(6.0, 3.0, 0.0, 12.0, 9.0, 6.5), rtol=0, atol=1e-12)
    halved = linear_target(column(0.0, 3.0, below, 7.0), 6.0, 0.5)
    torch.testing.assert_close(halved, column(4.5, 3.0, 1.5, 10.0), rtol=0, atol=1e-12)
    attractors = linear_target(column(0.5, 5.5, 17.0), 6.0, 0.0)
    assert attractors.flatten().tolist() == [3.0, 3.0, 15.0]


def test_sine_targets_at_the_ends_and_the_middle_of_cells():
    below = math.nextafter(6.0, 0.0)
    found = sine_target(column(0.0, 1.5, 3.0, 4.5, below, 13.5), 6.0, 0.7)
    expected = column(0.0, 1.5 + 4.2, 3.0, 4.5 - 4.2, 6.0, 13.5 + 4.2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 9), st.floats(0.001, 0.999), st.floats(0.1, 20))
def test_the_linear_map_is_an_involution_that_keeps_each_cell(cell, place, tau):
    true = column((cell + place) * tau)
    shown = linear_target(true, tau, 1.0)
    assert cell * tau <= float(shown) <= (cell + 1) * tau
    assert float(linear_target(shown, tau, 1.0)) == pytest.approx(float(true), abs=1e-9 * tau)


@settings(deadline=None)
@given(st.floats(0, 60), st.floats(0.5, 20), st.floats(0, 0.73))
def test_the_sine_is_the_papers_expression_with_the_attractor(true, tau, alpha):
    attractor = (math.floor(true / tau) + 0.5) * tau
    paper = true - alpha * tau * math.sin(math.pi * (1 - 2 * (true - attractor) / tau))
    assert float(sine_target(column(true), tau, alpha)) == pytest.approx(paper, abs=1e-9 * tau)


def test_no_sine_target_is_negative_up_to_the_limit_of_alpha_and_some_are_above():
    margins = torch.linspace(0, 24, 100_001, dtype=torch.float64)
    assert float(sine_target(margins, 6.0, 0.73).min()) >= 0
    assert float(sine_target(margins, 6.0, 0.735).min()) < 0
    usual = sine_target(margins[margins > 3], 6.0, 0.7)
    assert float(usual.min()) == pytest.approx(6 * 0.0318, abs=1e-3)
    assert float(margins[margins > 3][usual.argmin()]) == pytest.approx(6 * 0.713, abs=1e-2)
    message = refusal(SpecError, lambda: DEFENSES.choose("aaa-sine[alpha=0.74]"))
    assert "alpha=0.74" in message


# --- margins ---


def test_leaders_are_the_first_of_equal_classes():
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0], [2.0, 1.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    best, second = leaders(logits)
    assert best.flatten().tolist() == [1, 0, 0]
    assert second.flatten().tolist() == [2, 2, 1]
    assert margin(logits).flatten().tolist() == [0.0, 0.0, 0.0]


def test_a_margin_is_set_by_the_best_logit_alone():
    logits = random_logits(200, 7, dtype=torch.float32)
    wanted = torch.linspace(0, 50, 200)[:, None]
    moved = with_margin(logits, wanted)
    torch.testing.assert_close(margin(moved), wanted.clamp_min(1e-6), rtol=1e-6, atol=1e-5)
    best = logits.argmax(1, keepdim=True)
    assert torch.equal(moved.argmax(1, keepdim=True), best)
    assert torch.equal(moved.scatter(1, best, 0.0), logits.scatter(1, best, 0.0))


@pytest.mark.parametrize("level", [0.0, 1e-3, -5.0, 15.0, 40.0, -3e4])
def test_a_label_is_lifted_above_its_equals_by_next_to_nothing(level):
    logits = torch.full((2, 4), level)
    logits[1, 2] -= 1.0
    labels = torch.tensor([[3], [2]])
    found = lead(logits, labels)
    assert torch.equal(found.argmax(1, keepdim=True), labels)
    lift = found.gather(1, labels) - level
    assert float(lift.max()) <= max(1.1e-6 + 1e-6, 1e-6 * abs(level))
    shown = found.log_softmax(1)
    assert torch.equal(shown.argmax(1, keepdim=True), labels)
    leading = found.clone()
    leading[:, 3] += 5
    assert torch.equal(lead(leading, labels[:1].expand(2, 1)), leading)


# --- solvers ---


@pytest.mark.parametrize("form", FORMS)
def test_the_margin_solver_meets_the_target_and_touches_the_best_logit_only(form):
    logits = random_logits(2000, 10, dtype=torch.float32)
    answers = form().on_logits(logits, CONTEXT)
    torch.testing.assert_close(margin(answers), form().target(margin(logits)), rtol=0, atol=1e-5)
    best = logits.argmax(1, keepdim=True)
    assert torch.equal(answers.scatter(1, best, 0.0), logits.scatter(1, best, 0.0))
    assert not torch.allclose(answers, logits)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("solver", ["margin", "exact"])
@pytest.mark.parametrize("form", FORMS)
def test_labels_are_kept_on_awkward_logits(form, solver, classes):
    defense = form(solver=solver)
    logits = awkward_logits(classes, defense.tau, 10_000 if classes < 100 else 2000)
    answers = defense.on_logits(logits, CONTEXT)
    assert answers.dtype == torch.float32 and bool(answers.isfinite().all())
    assert torch.equal(answers.argmax(1), logits.argmax(1))
    assert float(margin(answers).min()) > 0


PLACES = [(p, t) for p in (0.3, 0.34, 0.5, 0.7, 0.9, 0.99) for t in (0.0, 0.3, 1.0, 2.5, 6.0)]


@pytest.mark.parametrize("beta", [1.0, 4.0, 5.0, 20.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_exact_solver_is_as_good_as_a_search_of_a_grid(classes, beta):
    """Every answer that keeps the label, up to a shift, is (0, -a, -b, ...) with a, b >= 0."""
    step = {2: 0.001, 3: 0.02, 4: 0.2}[classes]
    line = torch.cat((torch.arange(0, 9, step, dtype=torch.float64), torch.tensor([40.0])))
    gaps = torch.cartesian_prod(*[line] * (classes - 1)).view(-1, classes - 1)
    grid = torch.cat((torch.zeros(len(gaps), 1), -gaps), 1).double()
    feasible = [(p, t) for p, t in PLACES if p >= 1 / classes]
    logits = random_logits(len(feasible), classes)
    goal = Goal(column(*[t for _, t in feasible]), column(*[p for p, _ in feasible]), beta)
    found = objective(exact(logits, goal), logits, goal)
    first = torch.zeros_like(grid)
    first[:, 0] = 1
    for row, (p, t) in enumerate(feasible):
        searched = objective(grid, first, Goal(column(t), column(p), beta)).min()
        lift = (1 + beta) * 1e-6  # of the label where nothing else separates it
        assert float(found[row]) <= float(searched) + lift, (p, t)
        assert float(found[row]) >= float(searched) - (2 + beta) * step, (p, t)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 1000),
    st.floats(0.001, 0.9999),
    st.floats(0, 30),
    st.floats(0.1, 100),
)
def test_the_best_margin_is_that_of_a_search_along_the_margin(classes, share, target, beta):
    """At margin m the probability can be all between psi(m) and phi(m), and nothing else."""
    chance = 1 / classes + share * (1 - 1 / classes)
    found = float(best_margin(Goal(column(target), column(chance), beta), classes))
    margins = np.append(np.linspace(0, 40, 40_001), found)
    low, high = 1 / (1 + (classes - 1) * np.exp(-margins)), 1 / (1 + np.exp(-margins))
    outside = np.maximum(low - chance, 0) + np.maximum(chance - high, 0)
    costs = np.abs(margins - target) + beta * outside
    assert costs[-1] <= costs[:-1].min() + 1e-9


def test_each_case_of_the_best_margin_by_hand():
    """Ten classes and beta 5: q+ = 0.724 is at margin 0.962, q- = 0.276 at ln 9 - 0.962."""
    edge = math.log((1 + math.sqrt(0.2)) / (1 - math.sqrt(0.2)))
    cases = [
        (2.0, 0.8, 2.0),  # within reach
        (0.1, 0.7, math.log(7 / 3)),  # too short: up to where the probability is reached
        (0.1, 0.99, edge),  # too short: up to where a longer margin stops paying
        (1.5, 0.99, 1.5),  # too short, but longer does not pay at all
        (6.0, 0.9, 6.0),  # too long, and a shorter one does not pay
        (3.4, 0.3, math.log(0.3 / 0.7) + math.log(9)),  # too long: down to the probability
        (3.4, 0.11, math.log(9) - edge),  # too long: down to where it stops paying
        (1.0, 0.11, 1.0),  # too long, but below where shortening pays
    ]
    goal = Goal(column(*[c[0] for c in cases]), column(*[c[1] for c in cases]), 5.0)
    expected = column(*[c[2] for c in cases])
    torch.testing.assert_close(best_margin(goal, 10), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_the_exact_solver_is_never_worse_than_adam_where_adam_keeps_the_label(classes, temperature):
    logits = random_logits(300, classes)
    goal = random_goal(logits, temperature=temperature)
    best, descended = exact(logits, goal), adam(logits, goal, 100, 0.1)
    kept = descended.argmax(1) == logits.argmax(1)
    assert int(kept.sum()) > 250
    better = objective(descended, logits, goal) - objective(best, logits, goal)
    assert float(better[kept].min()) > -1e-6
    assert float(better.mean()) > 0.01


def test_the_exact_solver_reaches_margin_and_probability_where_both_can_be():
    logits = random_logits(3000, 10)
    goal = random_goal(logits, temperature=2.0)
    answers = exact(logits, goal)
    low, high = (goal.targets - math.log(9)).sigmoid(), goal.targets.sigmoid()
    possible = ((low <= goal.chances) & (goal.chances <= high))[:, 0]
    assert 300 < int(possible.sum()) < 2700
    assert float(objective(answers, logits, goal)[possible].max()) < 1e-6
    assert float(objective(answers, logits, goal)[~possible].min()) > 1e-6


def test_the_exact_solver_keeps_the_order_of_classes_and_the_labels_own_logit():
    logits = random_logits(1000, 10)
    answers = exact(logits, random_goal(logits))
    best, second = leaders(logits)
    assert torch.equal(answers.gather(1, best), logits.gather(1, best))
    others = answers.scatter(1, best, -torch.inf)
    torch.testing.assert_close(others.amax(1, keepdim=True), answers.gather(1, second))
    ordered = answers.gather(1, logits.argsort(1))
    assert float(ordered.diff(dim=1).min()) >= -1e-12


def test_adam_is_torchs_adam_on_the_published_loss():
    logits = random_logits(40, 10)
    goal = random_goal(logits)
    parameter = torch.nn.Parameter(logits.clone())
    optimiser = torch.optim.Adam([parameter], lr=0.1)
    labels = logits.argmax(1, keepdim=True)
    for _ in range(100):
        optimiser.zero_grad()
        top = parameter.topk(2, 1).values
        own = parameter.softmax(1).gather(1, labels)
        missed = (top[:, :1] - top[:, 1:] - goal.targets).abs()
        (missed + goal.beta * (own - goal.chances).abs()).sum().backward()
        optimiser.step()
    found = adam(logits, goal, 100, 0.1)
    torch.testing.assert_close(found, parameter.detach(), rtol=0, atol=1e-9)
    before, after = (objective(z, logits, goal).mean() for z in (logits, found))
    assert float(after) < 0.7 * float(before)


@pytest.mark.parametrize("solver", ["margin", "adam", "exact"])
def test_an_answer_does_not_depend_on_how_many_are_asked_together(solver):
    logits = random_logits(16, 10, dtype=torch.float32)
    defense = AAALinear(solver=solver)
    together = defense.on_logits(logits, CONTEXT)
    alone = torch.cat([defense.on_logits(row[None], CONTEXT) for row in logits])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_adam_may_change_a_label_and_says_so():
    logits = random_logits(3000, 10, scale=1.0)
    changed = AAASine(solver="adam").on_logits(logits, CONTEXT).argmax(1) != logits.argmax(1)
    assert 0 < int(changed.sum()) < 60
    assert not AAASine(solver="adam").traits.keeps_label
    assert AAASine().traits.keeps_label and AAASine(solver="exact").traits.keeps_label


# --- temperature ---


def test_the_temperature_that_made_the_labels_is_found_whatever_the_scale():
    logits = random_logits(20_000, 5, scale=3.0)
    generator = torch.Generator().manual_seed(0)
    labels = (logits / 1.7).softmax(1).multinomial(1, generator=generator)[:, 0]
    found = fitted_temperature(logits, labels)
    assert found == pytest.approx(1.7, rel=0.03)
    assert fitted_temperature(3 * logits, labels) == pytest.approx(3 * found, rel=1e-3)


def test_the_temperature_is_bounded_where_all_labels_are_right_or_none_is():
    logits = random_logits(100, 5)
    assert fitted_temperature(logits, logits.argmax(1)) == pytest.approx(0.05, rel=0.01)
    assert fitted_temperature(logits, logits.argmin(1)) == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize("count", [60, 450])  # 20 and 150 calibration images: one chunk and three
def test_calibration_sees_the_calibration_split_and_no_other(count):
    data, victim = tiny_dataset(count=count), tiny_victim()
    seen = []
    watched = replace(data, read=lambda ids: seen.extend(ids.tolist()) or data.read(ids))
    found = calibrated_temperature(victim, watched)
    assert seen == data.splits[Split.CALIBRATE].tolist()
    samples = data.take(Split.CALIBRATE, count // 3)
    expected = fitted_temperature(victim(samples.images), samples.labels)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_solver_that_keeps_confidence_calibrates_it_unless_told_a_temperature():
    victim, data = tiny_victim(), tiny_dataset()
    logits = random_logits(50, 4)
    answers = {}
    for given_ in (None, 1.0, calibrated_temperature(victim, data)):
        defense = AAALinear(solver="exact", temperature=given_)
        defense.prepare(victim, data)
        answers[given_] = defense.on_logits(logits, CONTEXT)
    calibrated, one, same = answers.values()
    assert torch.equal(calibrated, same) and not torch.allclose(calibrated, one, atol=1e-3)
    fitted = list(answers)[2]
    expected = exact(logits, random_goal(logits, temperature=fitted))
    torch.testing.assert_close(calibrated, expected, rtol=0, atol=1e-9)
    AAALinear().prepare(victim, None)  # the closed form asks for nothing


# --- on a victim ---


@pytest.mark.parametrize("name", ["aaa-linear", "aaa-sine", "aaa-linear[solver=exact]"])
def test_digits_keep_their_labels(name):
    assert digits_accuracy(name)[1] == 1.0


def test_digits_keep_nearly_all_labels_under_the_released_settings():
    accuracy, kept = digits_accuracy("aaa-sine@official", 200)
    assert kept > 0.97 and accuracy > 0.93
