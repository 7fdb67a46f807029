"""Random answers: oRND, boundary defense, random logit scaling."""

from __future__ import annotations

import pytest
import torch
from logits import awkward_logits, digits_accuracy
from scipy.stats import kstest, truncnorm, uniform
from support import refusal, streams, tiny_victim

from benchmark.catalogue import DEFENSES
from benchmark.defense import QueryContext
from benchmark.errors import SpecError
from benchmark.stack import DefenseChoice
from registry.defenses.boundary_defense import BoundaryDefense
from registry.defenses.ornd import OutputNoise
from registry.defenses.random_logit_scaling import RandomLogitScaling

COUNT = 5000
ROWS = torch.arange(COUNT) % 3


def context(rows=ROWS):
    return QueryContext(streams(3), rows)


def level(confidence, classes=4):
    """Logits of one row whose first class has a probability, the others sharing the rest."""
    chances = torch.full((classes,), (1 - confidence) / (classes - 1), dtype=torch.float64)
    chances[0] = confidence
    return chances.log()


# --- oRND ---


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_output_noise_has_its_moments_and_no_correlation(sigma):
    logits = torch.tensor([3.0, -2.0, 0.0, 7.0]).repeat(COUNT, 1)
    noise = OutputNoise(sigma=sigma).on_logits(logits, context()) - logits
    assert float(noise.std()) == pytest.approx(sigma, rel=0.02)
    assert float(noise.mean(0).abs().max()) < 4 * sigma / COUNT**0.5
    between = torch.corrcoef(torch.cat((noise[:-1].T, noise[1:].T)))
    assert float((between - torch.eye(8)).abs().max()) < 4.5 / COUNT**0.5


def test_output_noise_scales_with_its_strength_and_is_new_in_each_query():
    logits = torch.zeros((COUNT, 4))
    small, large = (OutputNoise(sigma=s).on_logits(logits, context()) for s in (0.5, 1.0))
    torch.testing.assert_close(2 * small, large)
    assert len(large.unique(dim=0)) == COUNT


def test_presets_of_output_noise_are_those_of_the_codes():
    values = {name: DEFENSES.choose(f"ornd@{name}").values["sigma"] for name in ("aaa", "paper")}
    assert values == {"aaa": 0.3, "paper": 0.01} and OutputNoise().sigma == 1.0


# --- boundary defense ---


def test_noise_comes_below_the_confidence_and_at_it_no_more():
    logits = torch.stack([level(c) for c in (0.3, 0.69, 0.71, 0.99)])
    answers = BoundaryDefense().on_logits(logits, context(torch.tensor([0, 1, 2, 0])))
    changed = (answers != logits).any(1)
    assert changed.tolist() == [True, True, False, False]
    half = torch.zeros((1, 2))  # softmax is exactly 0.5
    for theta, noisy in ((0.5, False), (0.51, True)):
        found = BoundaryDefense(theta=theta).on_logits(half, context(ROWS[:1]))
        assert torch.equal(found, half) != noisy


def test_noise_of_unsure_answers_has_its_moments_in_every_class():
    logits = level(0.4).repeat(COUNT, 1)
    noise = BoundaryDefense(sigma=0.5).on_logits(logits, context()) - logits
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noise.mean(0).abs().max()) < 4 * 0.5 / COUNT**0.5


def test_an_unsure_answers_noise_does_not_depend_on_how_sure_earlier_ones_were():
    rows = torch.zeros(2, dtype=torch.int64)
    after = [
        BoundaryDefense().on_logits(torch.stack((first, level(0.4))), context(rows))[1]
        for first in (level(0.4), level(0.99))
    ]
    assert torch.equal(*after)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_default_covers_every_point_where_two_classes_meet(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn((500, classes), generator=generator) * 8
    tied = logits.scatter(
        1, torch.zeros((500, 1), dtype=torch.int64), logits[:, 1:].amax(1)[:, None]
    )
    answers = BoundaryDefense().on_logits(tied, context(ROWS[:500]))
    assert bool((answers != tied).any(1).all())
    preset = DEFENSES.choose("boundary-defense@imagenet").values
    assert preset == {"theta": 0.3, "sigma": 0.1}
    missed = BoundaryDefense(**preset).on_logits(tied, context(ROWS[:500]))
    assert not bool((missed != tied).any(1).all())


# --- random logit scaling ---


@pytest.mark.parametrize(
    ("given_", "law"),
    [
        ({}, uniform(0.5, 9.5)),
        ({"low": 2.0, "high": 3.0}, uniform(2.0, 1.0)),
        ({"law": "normal", "low": 0.2}, truncnorm((0.2 - 1) / 100, float("inf"), 1, 100)),
        ({"law": "normal", "low": 150.0}, truncnorm(1.49, float("inf"), 1, 100)),
    ],
)
def test_factors_follow_their_law(given_, law):
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64).repeat(COUNT, 1)
    answers = RandomLogitScaling(**given_).on_logits(logits, context())
    factors = answers[:, 0]
    torch.testing.assert_close(answers, logits * factors[:, None])  # one factor for all classes
    assert kstest(factors.numpy(), law.cdf).pvalue > 1e-3
    assert float(factors.min()) >= law.ppf(0.0) - 1e-6
    assert float(torch.corrcoef(torch.stack((factors[1:], factors[:-1])))[0, 1].abs()) < 0.07
    assert len(factors.unique()) > 0.99 * COUNT


def test_the_farthest_draw_of_the_normal_law_is_finite():
    factors = RandomLogitScaling(law="normal")._factors(torch.tensor([[0.0], [1.0]]))
    assert float(factors[0]) == pytest.approx(0.5, abs=1e-9) and 400 < float(factors[1]) < 700


@pytest.mark.parametrize("law", ["uniform", "normal"])
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_labels_are_kept_on_awkward_logits(classes, law):
    logits = awkward_logits(classes, 6.0)
    rows = torch.arange(len(logits)) % 3
    answers = RandomLogitScaling(law=law).on_logits(logits, context(rows))
    assert answers.dtype == torch.float32
    assert torch.equal(answers.argmax(1), logits.argmax(1))


def test_an_empty_range_of_factors_is_refused():
    text = "random-logit-scaling[low=10]"
    message = refusal(SpecError, lambda: DefenseChoice.parse(text).build().check(tiny_victim()))
    assert message == "low=10 must be below high=10"
    DefenseChoice.parse("random-logit-scaling[low=20,law=normal]").build().check(tiny_victim())


# --- on a victim ---


@pytest.mark.parametrize("name", ["random-logit-scaling", "random-logit-scaling@normal"])
def test_scaled_digits_keep_their_labels(name):
    assert digits_accuracy(name)[1] == 1.0


@pytest.mark.parametrize(
    ("weak", "strong"),
    [("ornd", "ornd[sigma=8]"), ("boundary-defense", "boundary-defense[theta=1,sigma=8]")],
)
def test_weak_noise_costs_little_accuracy_and_strong_noise_much(weak, strong):
    bare, few, many = (digits_accuracy(name)[0] for name in ("none", weak, strong))
    assert bare - 0.02 < few and many < bare - 0.1
