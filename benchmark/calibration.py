"""Finds the strength at which a defense costs a given amount of clean accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmark.late import Late

optimize: Any = Late("scipy.optimize")

_TOLERANCE = 0.001  # a tenth of a point
_OCTAVES, _MOST = 7, 32  # strengths of the first look, each half of the next
_DOUBLINGS = 12  # from the default upwards, before a defense counts as saturated
_STEPS = 14
_DIGITS = 3  # of a strength; more would be noise, and names stay short


@dataclass(frozen=True)
class Point:
    """What one strength costs.

    Attributes:
        strength: Value of the knob.
        drop: Clean accuracy lost against strength zero, as a fraction.
        error: Standard error of the drop, over images.
    """

    strength: float
    drop: float
    error: float


@dataclass(frozen=True)
class Match:
    """The strength found for a target.

    Attributes:
        target: Drop asked for, as a fraction.
        point: The strength, and what it costs on the images of the search.
        saturated: No strength costs as much; the point is the costliest.
        bend: By how many standard errors the curve leaves the nearest monotone one, at most.
    """

    target: float
    point: Point
    saturated: bool
    bend: float


@dataclass
class Curve:
    """The cost of a defense by its strength; each strength is measured once.

    Attributes:
        measure: Measures a strength; the same random numbers at every strength make it smooth.
        default: The usual strength, where the search begins.
        limit: The largest allowed.
        known: Points measured so far, by strength.
    """

    measure: Callable[[float], Point]
    default: float
    limit: float
    known: dict[float, Point] = field(default_factory=dict)

    def at(self, strength: float) -> Point:
        """Measure a strength, rounded to three digits."""
        strength = min(rounded(strength), self.limit)  # rounding may pass the limit
        if strength not in self.known:
            self.known[strength] = self.measure(strength)
        return self.known[strength]

    def match(self, target: float) -> Match:
        """Find the strength whose drop is the target, to a tenth of a point (section 14.1).

        A first look at strengths that double from step to step is made monotone (isotonic
        regression), which tells where the target is crossed; bisection of the logarithm
        follows.

        Args:
            target: Drop, as a fraction, > 0.
        """
        highest = self._reach(target)
        octaves = [self.at(highest / 2**k) for k in reversed(range(_OCTAVES))]
        while octaves[0].drop > target and len(octaves) < _MOST:
            octaves.insert(0, self.at(octaves[0].strength / 2))
        drops = np.array([point.drop for point in octaves])
        monotone = optimize.isotonic_regression(drops).x
        errors = np.array([max(point.error, _TOLERANCE / 2) for point in octaves])
        bend = float((np.abs(drops - monotone) / errors).max())
        if monotone[-1] < target - _TOLERANCE:
            costliest = max(octaves, key=lambda point: point.drop)
            return Match(target, costliest, saturated=True, bend=bend)
        place = int(np.searchsorted(monotone, target))
        high = octaves[min(place, len(octaves) - 1)].strength
        low = octaves[place - 1].strength if place else high / 2
        return Match(target, self._bisect(low, high, target), saturated=False, bend=bend)

    def _reach(self, target: float) -> float:
        """Double the default until it costs enough, or the limit is reached."""
        strength = min(self.default or 1.0, self.limit)
        for _ in range(_DOUBLINGS):
            if self.at(strength).drop >= target or strength >= self.limit:
                break
            strength = min(2 * strength, self.limit)
        return strength

    def _bisect(self, low: float, high: float, target: float) -> Point:
        near = min(self.at(low), self.at(high), key=lambda point: abs(point.drop - target))
        for _ in range(_STEPS):
            if abs(near.drop - target) <= _TOLERANCE:
                break
            middle = self.at(math.sqrt(low * high))
            near = min(near, middle, key=lambda point: abs(point.drop - target))
            if middle.strength in {rounded(low), rounded(high)}:
                break  # three digits do not part them
            low, high = (middle.strength, high) if middle.drop < target else (low, middle.strength)
        return near


def rounded(strength: float) -> float:
    """Round a strength to three significant digits."""
    return float(f"{strength:.{_DIGITS}g}")
