"""What attacks minimise, what replies show, and repeated questions (EOT)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    Recorder,
    constant,
    linear,
    refusal,
    toy_oracle,
    toy_problem,
    true_label_logits,
    turning,
)

from benchmark.catalogue import ATTACKS
from benchmark.drive import play
from benchmark.eot import Repeated
from benchmark.errors import SpecError
from benchmark.objective import Objective
from benchmark.rng import RowRng, seed_from
from benchmark.scores import Scores
from benchmark.types import Access, Aim, Queries

LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=5, max_size=5), min_size=1, max_size=4)


def targeted(problem, targets):
    threat = replace(problem.threat, aim=Aim.TARGETED)
    return replace(problem, threat=threat, targets=torch.as_tensor(targets))


def streams(problem):
    return RowRng([seed_from("objective", row) for row in range(len(problem.images))])


@pytest.mark.parametrize("loss", ["margin", "ce", "prob"])
def test_losses_fall_towards_the_aim(loss):
    problem = toy_problem(count=1, classes=4)  # label 0
    logits = torch.tensor([[3.0, 2.0, 0.0, -1.0], [2.0, 3.0, 0.0, -1.0], [0.0, 0.0, 5.0, 0.0]])
    rows = torch.zeros(3, dtype=torch.int64)
    away = Objective(problem, loss).of(logits, rows)
    assert away[0] > away[1] > away[2]
    to_two = Objective(targeted(problem, [2]), loss).of(logits, rows)
    assert to_two[2] < to_two[0] and to_two[2] < to_two[1]


def test_the_targeted_margin_is_zero_at_the_border_and_negative_beyond():
    problem = targeted(toy_problem(count=1), [2])
    logits = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.5, 0.0], [1.0, 0.0, 0.5, 0.0]])
    found = Objective(problem).of(logits, torch.zeros(3, dtype=torch.int64))
    assert found.tolist() == [0.0, -0.5, 0.5]


def test_targeted_hits_are_answers_of_the_target_and_no_others():
    problem = targeted(toy_problem(), [1, 2, 3])
    logits = torch.eye(4, dtype=torch.float64)

    def answer(_images, rows):
        return logits[[2, 1, 3]][rows]  # another wrong label, the true label, the target

    oracle = toy_oracle(problem, answer)
    oracle.ask(Queries(problem.images, problem.rows))
    assert oracle.broken_at.tolist() == [0, 0, 1]


@pytest.mark.parametrize("text", ["top-0", "rounded-0", "rounded-9", "top", "best", "label-2", ""])
def test_unknown_levels_of_scores_are_refused(text):
    with pytest.raises(ValueError, match="Allowed: logits"):
        Scores.parse(text)


@pytest.mark.parametrize("text", ["logits", "probabilities", "top-3", "rounded-2", "label"])
def test_levels_of_scores_are_written_as_they_are_read(text):
    assert str(Scores.parse(text)) == text


@settings(max_examples=80, deadline=None)
@given(LOGITS, st.integers(1, 5))
def test_the_best_classes_are_shown_and_the_others_bounded(rows, count):
    logits = torch.tensor(rows, dtype=torch.float64)
    found, shown = Scores.parse(f"top-{count}").show(logits)
    chances = logits.softmax(1)
    assert shown.sum(1).tolist() == [count] * len(rows)
    torch.testing.assert_close(found[shown].exp(), chances[shown].clamp_min(1e-12))
    assert bool((found[~shown].exp() >= chances[~shown] - 1e-9).all())
    least = torch.where(shown, found, torch.inf).amin(1, keepdim=True)
    assert bool((found <= least + 1e-12)[~shown].all())


@settings(max_examples=80, deadline=None)
@given(LOGITS, st.integers(2, 5), st.data())
def test_two_shown_classes_are_enough_for_an_untargeted_margin(rows, count, data):
    logits = torch.tensor(rows, dtype=torch.float64).clamp(-10, 10)
    labels = torch.tensor([data.draw(st.integers(0, 4)) for _ in rows])
    problem = replace(toy_problem(count=len(rows), classes=5), labels=labels)
    found, shown = Scores.parse(f"top-{count}").show(logits)
    objective = Objective(problem)
    known = shown.gather(1, labels[:, None])[:, 0]
    exact = objective.of(logits, problem.rows)
    torch.testing.assert_close(objective.of(found, problem.rows)[known], exact[known])
    assert bool((objective.of(found, problem.rows)[~known] <= 1e-9).all())


@settings(max_examples=50, deadline=None)
@given(LOGITS, st.integers(1, 7))
def test_rounded_probabilities_are_within_half_a_unit(rows, digits):
    logits = torch.tensor(rows, dtype=torch.float64)
    found, shown = Scores.parse(f"rounded-{digits}").show(logits)
    assert shown is None
    assert bool(((found.exp() - logits.softmax(1)).abs() <= 0.5001 * 10.0**-digits).all())


def noisy(problem, spread=1.0, seed=0):
    """A margin of 5 with Gaussian noise on every logit."""
    generator = torch.Generator().manual_seed(seed)

    def answer(_images, rows):
        logits = true_label_logits(problem, rows, torch.full((len(rows),), 5.0))
        return logits + spread * torch.randn(logits.shape, generator=generator).double()

    return answer


def ask(problem, answer, times, reduction="logits", access=Access.SCORES):
    oracle = toy_oracle(problem, answer, access=access)
    repeated = Repeated(oracle, times, reduction)
    return repeated.ask(Queries(problem.images, problem.rows)), oracle, repeated


def test_a_repeated_question_costs_its_repeats_and_averages_the_noise():
    problem = toy_problem(count=400, budget=100)
    spreads = []
    for times in (1, 16):
        replies, oracle, _ = ask(problem, noisy(problem), times)
        assert set(oracle.used.tolist()) == {times} == set(replies.used.tolist())
        margins = Objective(problem, "ce")(replies, problem.rows)
        top = replies.scores.gather(1, problem.labels[:, None])[:, 0]
        other = replies.scores.gather(1, (problem.labels[:, None] + 1) % 4)[:, 0]
        assert margins.isfinite().all()
        spreads.append(float((top - other).var()))
    assert spreads[0] / spreads[1] == pytest.approx(16, rel=0.35)


def test_a_deterministic_victim_answers_all_repeats_alike():
    problem = toy_problem(budget=100)
    once, _, _ = ask(problem, linear(problem), 1)
    for reduction in ("logits", "loss", "probabilities"):
        often, _, _ = ask(problem, linear(problem), 7, reduction)
        for loss in ("margin", "ce", "prob"):
            objective = Objective(problem, loss)
            torch.testing.assert_close(
                objective(often, problem.rows), objective(once, problem.rows)
            )


@pytest.mark.parametrize("reduction", ["logits", "loss", "probabilities"])
def test_reductions_are_what_they_are_called(reduction):
    problem = toy_problem(count=1, budget=10)
    draws = torch.tensor([[2.0, 0, 0, 0], [0, 3.0, 0, 0], [1.0, 1.0, 4.0, 0]], dtype=torch.float64)
    answers = iter([draws])
    replies, _, _ = ask(problem, lambda _images, _rows: next(answers), 3, reduction)
    rows = problem.rows
    if reduction == "loss":
        single = Objective(problem, "prob").of(draws, torch.zeros(3, dtype=torch.int64))
        torch.testing.assert_close(Objective(problem, "prob")(replies, rows)[0], single.mean())
        return
    mean = draws.mean(0) if reduction == "logits" else draws.softmax(1).mean(0).log()
    torch.testing.assert_close(replies.scores[0].softmax(0), mean.softmax(0))


def test_labels_are_voted_where_only_labels_are_shown():
    problem = toy_problem(count=1, budget=10)
    answers = iter([torch.eye(4, dtype=torch.float64)[[0, 3, 0]]])
    replies, _, _ = ask(problem, lambda _i, _r: next(answers), 3, access=Access.LABEL)
    assert replies.labels.tolist() == [0] and replies.bare


def test_a_question_that_the_budget_does_not_pay_is_not_asked():
    problem = toy_problem(count=2, budget=11)
    oracle = toy_oracle(problem, constant(problem))
    repeated = Repeated(oracle, 4)
    rows = torch.tensor([0, 0, 0, 1])
    replies = repeated.ask(Queries(problem.images[rows], rows))
    assert replies.answered.tolist() == [True, True, False, True]
    assert oracle.used.tolist() == [8, 4]
    assert replies.remaining.tolist() == [0, 0, 0, 1]
    assert replies.finished.tolist() == [True, True, True, False]
    assert repeated.finished.tolist() == [True, False] and not bool(oracle.finished.any())
    assert replies.scores.isnan().all(1).tolist() == [False, False, True, False]


def test_any_draw_is_a_hit_of_its_own():
    problem = toy_problem(count=2, budget=20)
    _, oracle, _ = ask(problem, turning(problem, [3, 99]), 5)
    assert oracle.broken_at.tolist() == [3, 0] and oracle.used.tolist() == [5, 5]


def test_repeats_leave_the_questions_of_the_same_logical_run_as_they_are():
    once, often = toy_problem(budget=20), toy_problem(budget=60)
    trails = []
    for problem, times in ((once, 1), (often, 3)):
        record = Recorder(linear(problem))
        oracle = toy_oracle(problem, record)
        play(ATTACKS.choose(f"square[eot={times}]"), problem, streams(problem), oracle)
        trails.append(torch.stack(record.images)[::times])
    # The schedule runs on queries, so 20 questions of 60 queries shrink like 20 of 20.
    assert torch.equal(trails[0][:30], trails[1][:30])


def test_a_preset_is_the_settings_it_names_and_can_be_overridden():
    plain, preset = ATTACKS.choose("nes"), ATTACKS.choose("nes@unig")
    assert preset.values["probe"] == pytest.approx(0.01 / 3072**0.5)
    assert preset.values["step"] == 2 / 255 and plain.values["step"] is None
    changed = ATTACKS.choose("nes@unig[pairs=7]")
    assert changed.values == {**preset.values, "pairs": 7}
    assert [str(c) for c in (preset, changed)] == ["nes@unig", "nes@unig[pairs=7]"]
    assert preset.record() != plain.record()
    message = refusal(SpecError, lambda: ATTACKS.choose("nes@unig[pairz=7]"))
    assert "pairs" in message
