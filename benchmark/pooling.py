"""Several seeds as one: rows of `cells.csv` that differ in their seed alone, put together."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd

from benchmark.statistics import wilson

_ROBUST = ("clean_accuracy", "robust_accuracy")
_MEANS = (*_ROBUST, "drop", "drop_error")


def pooled(cells: pd.DataFrame, alike: list[str]) -> pd.DataFrame:
    """Make one row of the rows that differ in their seed.

    Shares are means over the seeds. Their intervals are Wilson's for as many images as there are,
    for the images are the sample and a seed adds none.

    Args:
        cells: Rows of `cells.csv`.
        alike: Columns in which rows that belong together agree.

    Returns:
        The columns of `cells`, and of each row `seeds` ("0+1+2") and `spread`: the standard
        deviation of robust accuracy over the seeds, NaN for one. Keys in `cell` are joined by '+'.
    """
    rows = [_row(some) for _, some in cells.sort_values("seed").groupby(alike, dropna=False)]
    return pd.DataFrame(rows, columns=[*cells.columns, "seeds", "spread"])


def _row(some: pd.DataFrame) -> dict[Hashable, object]:
    row = some.iloc[0].to_dict()
    row["seeds"] = "+".join(map(str, some["seed"]))
    row["spread"] = some["robust_accuracy"].std()
    if len(some) == 1:
        return row
    row["cell"] = "+".join(some["cell"])
    row |= {name: some[name].mean() for name in _MEANS}
    for name in _ROBUST:
        row[f"{name}_low"], row[f"{name}_high"] = wilson(row[name], row["images"])
    return row
