"""Intervals and medians of one cell, tests between cells; the methods are scipy's and numpy's."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.late import Late

stats: Any = Late("scipy.stats")
special: Any = Late("scipy.special")

SIGNIFICANT = 0.05  # of p values after correction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@lru_cache(maxsize=2**16)  # tables ask for the same few shares of as many images again and again
def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of `count` images (rounded to whole images)."""
    interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def all_right(wrong: Ints, draws: int, times: int) -> Floats:
    """Estimate without bias how likely `times` further answers are all right.

    Args:
        wrong: (n,) wrong answers among `draws` that were asked.
        draws: At least `times`.
        times: Answers that are to be right.

    Returns:
        (n,) share of the ways to take `times` of the answers that take no wrong one.
    """
    return np.asarray(
        special.comb(draws - wrong, times) / special.comb(draws, times), dtype=np.float64
    )


def undecided(wrong: Ints, draws: int) -> npt.NDArray[np.bool_]:
    """Tell where `wrong` of `draws` answers leave open whether most are wrong, (n,).

    It is open if their 95 % Wilson interval holds one half.
    """
    ends = _ends(draws)
    return np.asarray((ends[wrong, 0] <= 0.5) & (ends[wrong, 1] >= 0.5))


@cache
def _ends(draws: int) -> Floats:
    return np.array([wilson(count / draws, draws) for count in range(draws + 1)])


def median(values: Floats) -> float | None:
    """Median of queries or distances, infinite for unbroken images; None if it is not finite."""
    if not len(values):
        return None
    middle = float(np.median(values)) if np.isfinite(values).any() else np.inf
    return middle if np.isfinite(middle) else None


def mcnemar(first: Floats, second: Floats) -> Floats:
    """Exact two-sided McNemar test; equal to `scipy.stats.binomtest` pair by pair.

    Args:
        first: (m,) images right in the first cell of each pair only.
        second: (m,) images right in the second only.

    Returns:
        (m,) p values; 1 where no image tells the cells apart.
    """
    tail = stats.binom.cdf(np.minimum(first, second), first + second, 0.5)
    return np.asarray(np.minimum(1.0, 2.0 * tail), dtype=np.float64)


def sign_flips(differences: Ints) -> float:
    """Exact two-sided paired permutation test: every difference may as well have the other sign.

    With differences of -1, 0 and 1 it is McNemar's exact test.

    Args:
        differences: (n,) whole numbers, one for each image.

    Returns:
        The chance of a sum as far from zero; 1 if no image differs.
    """
    law = np.ones(1)  # of the sum, from its least value to its greatest
    for size, count in enumerate(np.bincount(np.abs(differences)).tolist()):
        if size and count:
            steps = np.zeros(2 * size * count + 1)
            steps[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
            law = np.convolve(law, steps)
    sums = np.arange(len(law)) - len(law) // 2
    return min(1.0, float(law[np.abs(sums) >= abs(int(differences.sum()))].sum()))


def holm(values: Floats) -> Floats:
    """Correct the p values of one family after Holm (1979), so that they can be held against 5 %.

    Args:
        values: (m,) p values of all tests of the family.

    Returns:
        (m,) corrected values, in the same order, 0 to 1 and never below what they were.
    """
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected
