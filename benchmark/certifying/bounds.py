"""Bounds behind certificates: exact ones for a number of samples, and one that may be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.late import Late
from benchmark.statistics import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

special: Any = Late("scipy.special")


def lower_bound(hits: Ints, samples: int | Ints, alpha: float) -> Floats:
    """One-sided Clopper-Pearson bound: the true chance is below it with chance alpha at most.

    Args:
        hits: (n,) samples that hit.
        samples: Samples of each, fixed before any was drawn.
        alpha: Chance of error, in (0, 1).

    Returns:
        (n,) in [0, 1).
    """
    count = np.broadcast_to(np.asarray(samples), np.shape(hits))
    found = stats.beta.ppf(alpha, hits, count - hits + 1)
    return np.where(np.asarray(hits) == 0, 0.0, found)


def radius(chance: Floats, sigma: float) -> Floats:
    """Radius of the l2 ball in which the class of this chance stays the likeliest, (n,).

    Cohen, Rosenfeld, Kolter (2019), theorem 1, with all the rest given to one other class.

    Args:
        chance: (n,) lower bounds of the chance of a class.
        sigma: Standard deviation of the noise, pixel units.

    Returns:
        Radii in pixel units; 0 where the chance is not above one half.
    """
    return np.where(chance > 0.5, sigma * special.ndtri(np.maximum(chance, 0.5)), 0.0)


def chance_of(radii: Floats, sigma: float) -> Floats:
    """Chance of a class above which each radius is certified, (n,)."""
    return np.asarray(special.ndtr(radii / sigma), dtype=np.float64)


def largest_radius(samples: int, alpha: float, sigma: float) -> float:
    """The most that so many samples can certify: all of them hit."""
    every = np.array([samples])
    return float(radius(lower_bound(every, samples, alpha), sigma)[0])


def least_hits(samples: int, alpha: float, chance: float) -> int:
    """Smallest number of hits whose lower bound is above a chance; more than samples if none is.

    Args:
        samples: Samples, fixed before any was drawn.
        alpha: Chance of error.
        chance: What the bound has to exceed, for example one half to not abstain.
    """
    hits = np.arange(samples + 1)
    enough = lower_bound(hits, samples, alpha) > chance
    return int(np.argmax(enough)) if enough.any() else samples + 1


def most_likely(first: Ints, second: Ints) -> Floats:
    """Two-sided exact test that two classes with these counts are equally likely, (n,) p values.

    Hung and Fithian (2019), as PREDICT of Cohen et al. uses it.
    """
    tail = stats.binom.sf(first - 1, first + second, 0.5)
    return np.asarray(np.minimum(1.0, 2.0 * tail), dtype=np.float64)
