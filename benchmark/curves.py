"""Distance against queries, from the traces that `images.parquet` keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = Sequence[float] | None


def nearest(
    queries: Sequence[Numbers], distances: Sequence[Numbers], marks: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Distance of the nearest hit among the first queries of each image.

    Args:
        queries: For each image the numbers of the queries that came nearer, ascending; None
            where none was looked for.
        distances: Their distances, descending.
        marks: Query counts to look at.

    Returns:
        (n, len(marks)); infinite where there was no hit yet, NaN where none was looked for.
    """
    curves = np.full((len(queries), len(marks)), np.nan)
    for curve, numbers, found in zip(curves, queries, distances, strict=True):
        if numbers is not None and found is not None:
            steps = np.concatenate([[np.inf], np.asarray(found, dtype=np.float64)])
            curve[:] = steps[np.searchsorted(numbers, marks, side="right")]
    return curves
