"""Randomized smoothing: bounds, certificates, and what stopping early may not break."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from benchmark.certifying.bounds import (
    largest_radius,
    least_hits,
    lower_bound,
    most_likely,
    radius,
)
from benchmark.certifying.smoothing import ABSTAIN, Sampler, Smoothing, certify, predict
from benchmark.rng import RowRng

ALPHA = 0.001


def linear(direction, offset):
    """Class 1 on one side of a plane: its certified radius is the distance to it."""

    def classify(images, _rows):
        return (images.flatten(1) @ direction + offset > 0).long()

    return classify


def sampler(classify, images, sigma=0.5, seed=0, batch=777, classes=2):
    rng = RowRng(range(1000 * seed, 1000 * seed + len(images)))
    return Sampler(classify, images, classes, sigma, rng, batch)


@pytest.mark.parametrize(
    ("samples", "most", "above_half", "at_sigma", "at_two"),
    [
        (100, 0.93325, 66, 95, 101),
        (1000, 0.99312, 550, 877, 991),
        (10_000, 0.99931, 5156, 8526, 9818),
    ],
)
def test_bounds_are_those_of_the_tables(samples, most, above_half, at_sigma, at_two):
    assert float(lower_bound(np.array([samples]), samples, ALPHA)[0]) == pytest.approx(most, 1e-5)
    assert float(most) == pytest.approx(ALPHA ** (1 / samples), 1e-5)
    for far, hits in ((0.0, above_half), (1.0, at_sigma), (2.0, at_two)):
        assert least_hits(samples, ALPHA, float(norm.cdf(far))) == hits
    assert largest_radius(samples, ALPHA, 0.25) == pytest.approx(0.25 * norm.ppf(most), abs=1e-4)


def test_a_bound_is_wrong_no_more_often_than_it_says():
    for samples, alpha in ((1000, 0.05), (100, 0.01)):
        for chance in (0.5, 0.7, 0.9, 0.99):
            hits = np.arange(samples + 1)
            wrong = lower_bound(hits, samples, alpha) > chance
            assert binom.pmf(hits, samples, chance)[wrong].sum() <= alpha  # exact, no simulation


def test_bounds_and_radii_grow_with_hits_and_samples():
    hits = np.arange(1001)
    bounds = lower_bound(hits, 1000, ALPHA)
    assert (np.diff(bounds) > 0).all() and bounds[0] == 0.0 and bounds[-1] < 1.0
    radii = radius(bounds, 0.25)
    assert (np.diff(radii) >= 0).all() and (radii[bounds <= 0.5] == 0).all()
    assert radii[bounds > 0.5].min() > 0
    more = [float(lower_bound(np.array([9 * n]), 10 * n, ALPHA)[0]) for n in (10, 100, 1000)]
    assert more == sorted(more)
    assert np.allclose(radius(bounds, 1.0), 4 * radii)


def test_ten_samples_never_suffice_to_predict_and_eleven_may():
    for samples in range(2, 11):
        first = np.arange(samples + 1)
        assert (most_likely(first, samples - first) > ALPHA).all()
    assert float(most_likely(np.array([11]), np.array([0]))[0]) <= ALPHA
    assert float(most_likely(np.array([5]), np.array([5]))[0]) == 1.0


def test_a_linear_classifier_is_certified_up_to_its_distance_and_not_beyond():
    torch.manual_seed(0)
    direction = torch.randn(48)
    direction /= direction.norm()
    images = torch.rand(40, 3, 4, 4)
    away = images.flatten(1) @ direction
    classify = linear(direction, -float(away.median()))
    true = (away - away.median()).abs().numpy()
    found = certify(sampler(classify, images), 40, Smoothing(0.5, 100, 4000))
    side = (away > away.median()).long().numpy()
    told = found.label != ABSTAIN
    assert told.mean() > 0.5 and (found.label[told] == side[told]).all()
    assert (found.radius <= true).all()  # 40 certificates of chance 0.001 each
    far = true > 0.4
    assert (found.radius[far] > 0.8 * np.minimum(true[far], 1.3)).all()
    assert (found.radius[~told] == 0).all()


def test_counts_depend_on_an_image_alone():
    images = torch.rand(5, 1, 4, 4)
    classify = linear(torch.ones(16) / 4, -2.0)
    whole = sampler(classify, images).counts(torch.arange(5), 30)
    for batch in (1, 7):
        assert (sampler(classify, images, batch=batch).counts(torch.arange(5), 30) == whole).all()
    part = sampler(classify, images)
    assert (part.counts(torch.tensor([4, 1]), 30) == whole[[4, 1]]).all()
    twice = part.counts(torch.tensor([0]), 10) + part.counts(torch.tensor([0]), 20)
    assert (twice == whole[:1]).all()


def test_noise_is_added_before_anything_is_clipped():
    seen = []

    def classify(images, _rows):
        seen.append(images)
        return torch.zeros(len(images), dtype=torch.int64)

    sampler(classify, torch.ones(2, 1, 8, 8), sigma=0.7).counts(torch.arange(2), 500)
    shown = torch.cat(seen) - 1
    assert float(shown.std()) == pytest.approx(0.7, rel=0.02) and float(shown.max()) > 1.5


class Coin:
    """A sampler whose class 1 has a known chance."""

    def __init__(self, chances, seed):
        self.chances, self.rng = np.asarray(chances), np.random.Generator(np.random.PCG64(seed))
        self.asked = 0

    def counts(self, rows, samples):
        hits = self.rng.binomial(samples, self.chances[np.asarray(rows)])
        self.asked += samples * len(hits)
        return np.stack([samples - hits, hits], 1)


LOOKS = (100, 316, 1000, 3162, 10_000)
RADII = (0.0, 0.25, 0.5, 0.75)


@pytest.mark.parametrize("looks", [(), LOOKS])
@pytest.mark.parametrize("chance", [0.5, 0.6915, 0.8413])
def test_certificates_are_wrong_no_more_often_than_they_say(looks, chance):
    """At the edge: the true chance is just that of a radius, so any larger one is wrong."""
    count, alpha = 4000, 0.05
    how = Smoothing(0.5, 200, 10_000, alpha, looks, RADII if looks else None)
    found = certify(Coin(np.full(count, chance), 1), count, how)
    true = float(radius(np.array([chance]), 0.5)[0])
    wrong = (found.label == 1) & (found.radius > true)
    wrong |= found.label == 0  # the other class is told
    assert wrong.mean() <= alpha + 3 * (alpha / count) ** 0.5
    if chance > 0.5:
        assert (found.label == 1).mean() > 0.9


def test_stopping_early_saves_samples_and_keeps_what_is_asked():
    chances = np.repeat([0.3, 0.55, 0.75, 0.9, 0.999], 40)
    one, many = Coin(chances, 2), Coin(chances, 2)
    plain = certify(one, 200, Smoothing(0.5, 100, 10_000, ALPHA))
    early = certify(many, 200, Smoothing(0.5, 100, 10_000, ALPHA, LOOKS, RADII))
    assert many.asked < 0.6 * one.asked
    labels = np.ones(200, dtype=np.int64)
    full, less = (found.certified(labels, RADII) for found in (plain, early))
    assert full == sorted(full, reverse=True)
    assert all(a >= b for a, b in zip(full, less, strict=True))  # a part of alpha each: no more
    assert np.allclose(full, less, atol=0.05)
    assert set(early.samples) <= set(LOOKS) and (plain.samples == 10_000).all()


def test_hits_of_the_selection_do_not_count_again():
    class Once(Coin):
        def counts(self, rows, samples):
            self.chances = self.chances * 0 + (0.0 if self.asked else 1.0)
            return super().counts(rows, samples)

    found = certify(Once([1.0, 1.0], 0), 2, Smoothing(0.5, 100, 1000))
    assert found.hits.tolist() == [0, 0] and found.label.tolist() == [ABSTAIN, ABSTAIN]


def test_prediction_tells_or_abstains():
    labels = predict(Coin([0.5, 0.9, 0.02], 3), 3, 1000, ALPHA)
    assert labels.tolist() == [ABSTAIN, 1, 0]
    assert predict(Coin([1.0], 3), 1, 10, ALPHA).tolist() == [ABSTAIN]
