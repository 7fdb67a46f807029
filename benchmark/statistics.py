"""Intervals and medians of one cell; the methods are scipy's and numpy's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of `count` images (rounded to whole images)."""
    interval = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def median(values: npt.NDArray[np.float64]) -> float | None:
    """Median of queries or distances, infinite for unbroken images; None if it is not finite."""
    if not len(values):
        return None
    middle = float(np.median(values)) if np.isfinite(values).any() else np.inf
    return middle if np.isfinite(middle) else None
