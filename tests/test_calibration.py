"""The search for a strength: planted curves, saturation, limits, what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.calibration import Curve, Match, Point, rounded
from benchmark.data import Split
from benchmark.matching import Calibration
from benchmark.stack import DefenseChoice


def curve(drop, default=0.1, limit=math.inf, noise=0.0, seed=4):
    """A curve whose drops are a function of the strength, with noise of fixed random numbers."""
    generator = np.random.default_rng(seed)

    def measure(strength):
        return Point(strength, drop(strength) + noise * generator.standard_normal(), 0.002)

    return Curve(measure, default, limit)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 3.0), st.floats(0.5, 4.0), st.sampled_from([0.005, 0.01, 0.02, 0.04]))
def test_the_planted_strength_is_found(scale, power, target):
    found = curve(lambda s: min(0.5, (s / scale) ** power)).match(target)
    planted = scale * target ** (1 / power)
    assert not found.saturated
    assert abs(found.point.drop - target) <= 0.001 + 0.01 * power * target
    assert found.point.strength == pytest.approx(planted, rel=0.3 / power)
    assert found.bend < 1e-9


@pytest.mark.parametrize("target", [0.01, 0.02, 0.04])
def test_noise_on_the_curve_moves_the_strength_no_further_than_it_moves_the_drop(target):
    drops = [
        0.5
        * curve(lambda s: min(0.9, 0.5 * s), noise=0.001, seed=seed).match(target).point.strength
        for seed in range(20)
    ]
    assert np.mean(drops) == pytest.approx(target, abs=0.0025)


def test_strengths_have_three_digits_and_each_is_measured_once():
    asked = []

    def measure(strength):
        asked.append(strength)
        return Point(strength, min(1.0, strength**2), 0.001)

    one = Curve(measure, 0.1, math.inf)
    for target in (0.01, 0.02, 0.04, 0.02):
        one.match(target)
    assert len(set(asked)) == len(asked) == len(one.known)
    assert all(rounded(strength) == strength for strength in asked)
    assert len(asked) < 25


def test_known_points_are_not_measured_again():
    first = curve(lambda s: s)
    found = first.match(0.02)
    again = Curve(lambda _s: pytest.fail("measured again"), 0.1, math.inf, dict(first.known))
    assert again.match(0.02) == found


def test_a_drop_out_of_reach_is_saturated_at_the_costliest_strength_within_the_limit():
    one = curve(lambda s: 0.015 * min(s, 0.6), default=0.5, limit=1.0)
    found = one.match(0.02)
    assert found.saturated
    assert found.point.drop == pytest.approx(0.009)
    assert max(one.known) == 1.0
    never = curve(lambda _s: 0.0).match(0.01)
    assert never.saturated
    assert never.point.drop == 0.0


def test_a_curve_that_turns_back_says_by_how_many_errors():
    found = curve(lambda s: 0.03 if 0.02 < s < 0.03 else min(0.5, 0.2 * s)).match(0.02)
    assert found.bend > 2
    assert not found.saturated


def test_a_default_of_zero_is_a_place_to_begin_too():
    assert curve(lambda s: 0.1 * s, default=0.0).match(0.02).point.strength == pytest.approx(
        0.2, rel=0.06
    )


def test_doubtful_strengths_are_said_aloud():
    def said(target, bend=0.0, drop=0.01, *, saturated=False):
        match = Match(target, Point(0.5, drop, 0.002), saturated, bend)
        defense = DefenseChoice.parse("rnd")
        return Calibration(defense, (match.point,), (match,), Split.CALIBRATE, 100).doubts()

    assert said(0.01) == said(0.012) == []
    assert "missed, the nearest is sigma=0.5 at 1.00 points" in said(0.02)[0]
    assert "saturated" in said(0.02, saturated=True)[0]
    assert "not monotone (3.0 errors)" in said(0.01, bend=3.0)[0]


def test_a_curve_that_jumps_over_the_target_is_missed():
    found = curve(lambda s: 0.03 * (s > 0.07)).match(0.01)
    assert not found.saturated
    defense = DefenseChoice.parse("rnd")
    lines = Calibration(defense, (found.point,), (found,), Split.CALIBRATE, 100).doubts()
    assert len(lines) == 1 and "missed" in lines[0]
