"""Rounding: the numbers shown, what zero and ties become, and that the label stays."""

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
from benchmark.scores import Scores
from registry.defenses.rounding import Rounding

CONTEXT = QueryContext(RowRng([1]), torch.zeros(1, dtype=torch.int64))


def shown(chances, digits):
    """Numbers shown for given probabilities, one row."""
    logits = torch.tensor([chances], dtype=torch.float64).log()
    return Rounding(digits=digits).on_logits(logits, CONTEXT).exp()[0].tolist()


def test_probabilities_are_rounded_and_zero_is_half_a_unit():
    found = shown([0.6149, 0.3151, 0.067, 0.003], 2)
    assert found == pytest.approx([0.61, 0.32, 0.07, 0.005], abs=1e-9)
    assert shown([0.6149, 0.3151, 0.067, 0.003], 1) == pytest.approx([0.6, 0.3, 0.1, 0.05])
    exact = pytest.approx([0.6149, 0.3151, 0.067, 0.003], rel=1e-9)
    assert shown([0.6149, 0.3151, 0.067, 0.003], 4) == exact


def test_softmax_of_the_answer_is_the_rounded_vector_over_its_sum():
    logits = torch.tensor([[0.614, 0.316, 0.067, 0.003]]).log()
    answer = Rounding().on_logits(logits, CONTEXT).softmax(1)
    expected = torch.tensor([[0.61, 0.32, 0.07, 0.005]]) / 1.005
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=0)


def test_no_decimals_show_whether_one_class_has_over_half():
    assert shown([0.1, 0.7, 0.2], 0) == pytest.approx([0.5, 1.0, 0.5])
    assert shown([0.2, 0.35, 0.45], 0) == pytest.approx([0.5, 0.5, 0.5], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(0, 7), st.floats(0.01, 30), st.integers(0, 99))
def test_every_number_shown_is_a_multiple_of_the_unit_or_half_of_it(classes, digits, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((20, classes), generator=generator, dtype=torch.float64) * scale
    units = Rounding(digits=digits).on_logits(logits, CONTEXT).exp() * 10.0**digits
    off = torch.minimum((units - units.round()).abs(), (units - 0.5).abs())
    assert float((off / units).max()) < 3e-6  # a label that leads its equals is 1e-6 off
    assert float(units.min()) == pytest.approx(0.5) or float(units.min()) > 0.9
    chances = logits.softmax(1)
    far = (units / 10.0**digits - chances).abs().max()
    assert float(far) <= 10.0**-digits * 0.5 + 3e-6


def test_it_shows_what_the_protocol_calls_rounded_scores():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((500, 10), generator=generator) * 4
    expected, _ = Scores.parse("rounded-3").show(logits)
    found = Rounding(digits=3).on_logits(logits, CONTEXT)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("digits", [0, 1, 2, 7])
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_labels_are_kept_on_awkward_logits(classes, digits):
    logits = awkward_logits(classes, 6.0)
    answers = Rounding(digits=digits).on_logits(logits, CONTEXT)
    assert torch.equal(answers.argmax(1), logits.argmax(1))
    assert torch.equal(answers.log_softmax(1).argmax(1), logits.argmax(1))


def test_nothing_but_the_label_is_shown_on_a_plateau():
    logits = torch.tensor([[3.0, 0.0, 0.1], [3.0004, 0.0, 0.1], [3.0, 0.0005, 0.1]])
    answers = Rounding().on_logits(logits, CONTEXT)
    assert len(answers.unique(dim=0)) == 1
    assert len(Rounding(digits=6).on_logits(logits, CONTEXT).unique(dim=0)) == 3


@pytest.mark.parametrize("digits", ["-1", "8", "1.5"])
def test_a_number_of_digits_that_is_none_is_refused(digits):
    message = refusal(SpecError, lambda: DEFENSES.choose(f"rounding[digits={digits}]"))
    assert f"digits={digits}" in message


@pytest.mark.parametrize("name", ["rounding", "rounding[digits=0]"])
def test_digits_keep_their_labels(name):
    assert digits_accuracy(name)[1] == 1.0
