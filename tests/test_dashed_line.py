"""Dashed line defense: its piecewise values, its dashes, and that the label stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits import awkward_logits, digits_accuracy
from support import refusal

from benchmark.catalogue import DEFENSES
from benchmark.defense import QueryContext
from benchmark.errors import SpecError
from benchmark.rng import RowRng
from registry.defenses.dashed_line import DashedLine
from registry.parts.margins import margin

CONTEXT = QueryContext(RowRng([1]), torch.zeros(1, dtype=torch.int64))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_targets_lie_on_the_falling_line_low_in_a_dash_and_on_the_rising_line_high_in_it():
    """A dash is 0.04 * 6 = 0.24 logits: 0.12 of the falling line, then 0.12 of the rising one."""
    cases = [
        (0.0, 1.8),
        (0.06, 1.8 - 0.3 * 0.06),
        (0.18, 1.8 + 0.7 * 0.18),
        (0.30, 1.8 - 0.3 * 0.30),
        (0.42, 1.8 + 0.7 * 0.42),
        (5.82, 1.8 - 0.3 * 5.82),
        (5.97, 1.8 + 0.7 * 5.97),
        (6.06, 6 + 1.8 - 0.3 * 0.06),
        (12.18, 12 + 1.8 + 0.7 * 0.18),
    ]
    found = DashedLine().target(column(*[true for true, _ in cases]))
    expected = column(*[target for _, target in cases])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_dashes_and_lines_are_those_of_the_parameters():
    # Dashes of 0.25 * 4 = 1 logit, the upper fifth of each rising; lines start at 0.5 * 4.
    defense = DashedLine(tau=4.0, split=0.5, width=0.25, ratio=0.2)
    found = defense.target(column(0.75, 0.85, 1.7, 1.9, 4.5))
    expected = column(2 - 0.375, 2 + 0.425, 2 - 0.85, 2 + 0.95, 4 + 2 - 0.25)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("width", [0.04, 0.1, 1.0])
def test_the_rising_share_is_the_ratio(width, ratio):
    margins = torch.linspace(0, 60, 600_001, dtype=torch.float64)[:-1, None]
    targets = DashedLine(width=width, ratio=ratio).target(margins)
    start = (margins / 6).floor() * 6 + 1.8
    rising = float((targets > start).double().mean())
    assert rising == pytest.approx(ratio, abs=1e-3)


@settings(deadline=None)
@given(
    st.floats(0, 80),
    st.floats(0.1, 20),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_a_target_stays_in_its_cell_on_one_of_two_lines(true, tau, split, width, ratio):
    target = float(DashedLine(tau=tau, split=split, width=width, ratio=ratio).target(column(true)))
    cell = true // tau
    place = true / tau - cell
    lines = [tau * (cell + split + (1 - split) * place), tau * (cell + split - split * place)]
    assert target >= 0
    # A margin within rounding of the next cell may be counted there.
    if 1e-9 < place < 1 - 1e-9:
        assert min(abs(target - line) for line in lines) < 1e-9 * (1 + true)
        assert cell * tau - 1e-9 <= target <= (cell + 1) * tau + 1e-9


def test_the_answer_has_the_target_margin_and_changes_the_best_logit_only():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2000, 10), generator=generator) * 4
    defense = DashedLine()
    answers = defense.on_logits(logits, CONTEXT)
    torch.testing.assert_close(margin(answers), defense.target(margin(logits)), rtol=0, atol=1e-5)
    best = logits.argmax(1, keepdim=True)
    assert torch.equal(answers.scatter(1, best, 0.0), logits.scatter(1, best, 0.0))


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("given_", [{}, {"split": 0.0}, {"split": 1.0, "ratio": 0.0}, {"tau": 0.7}])
def test_labels_are_kept_on_awkward_logits(given_, classes):
    defense = DashedLine(**given_)
    logits = awkward_logits(classes, defense.tau)
    answers = defense.on_logits(logits, CONTEXT)
    assert answers.dtype == torch.float32
    assert torch.equal(answers.argmax(1), logits.argmax(1))
    assert float(margin(answers).min()) > 0


@pytest.mark.parametrize("bad", ["width=0", "width=1.1", "split=-0.1", "ratio=2", "tau=0"])
def test_bad_parameters_are_refused(bad):
    assert bad in refusal(SpecError, lambda: DEFENSES.choose(f"dashed-line[{bad}]"))


def test_digits_keep_their_labels():
    assert digits_accuracy("dashed-line")[1] == 1.0
