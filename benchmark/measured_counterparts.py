"""What a folder of results measured of the cells that reported numbers are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmark.about import SATURATED
from benchmark.catalogue import MODELS
from benchmark.counterparts import Cell, Counterparts
from benchmark.ref import Ref
from benchmark.reference import Reference
from benchmark.reported import CLEAN, FAILURES, Paper, Reported
from benchmark.statistics import wilson

_SAME = ["dataset", "model"]
Shares = tuple[float, float, float]  # with the ends of its 95 % Wilson interval


@dataclass(frozen=True)
class Line:
    """A number beside what was measured of it.

    Attributes:
        row: The number.
        cell: The cell it is compared with.
        measured: Row of `cells.csv`; None if it was not measured.
        shares: The measured counterpart of the number, as fractions.
        differs: What sets the two apart.
    """

    row: Reported
    cell: Cell
    measured: Any = None
    shares: Shares | None = None
    differs: tuple[str, ...] = ()


def beside(found: Counterparts, tables: Reference | None) -> list[Line]:
    """Put every number beside each row that was measured of it, in the table's order."""
    lines = []
    for row, cell in found.pairs:
        rows = [] if tables is None else list(_measured(cell, tables).itertuples(index=False))
        lines += [
            Line(
                row,
                cell,
                one,
                _shares(row, one, found.paper),
                _differs(row, cell, one, found.paper),
            )
            for one in rows
        ] or [Line(row, cell)]
    return lines


def _measured(cell: Cell, tables: Reference) -> pd.DataFrame:
    """Rows of a cell, one for each victim, seed, number of images and protocol."""
    rows = tables.cells
    rows = rows[rows["dataset"].map(lambda text: Ref.parse(text).name) == cell.dataset]
    if cell.model is not None:
        rows = rows[rows["model"] == str(MODELS.choose(cell.model))]
    rows = _at_strength(rows, cell, tables)
    if not cell.attack:  # clean answers are asked anew for each attack, with the same noise
        return rows.drop_duplicates([*_SAME, "seed", "images", "protocol"])
    rows = rows[(rows["attack"] == cell.attack) & (rows["norm"] == cell.request.norm)]
    rows = rows[(rows["aim"] == cell.aim) & (rows["budget"] == cell.budget)]
    return rows[np.isclose(rows["eps"].astype(float), cell.eps)]


def _at_strength(rows: pd.DataFrame, cell: Cell, tables: Reference) -> pd.DataFrame:
    """Rows of a defense as written, or at the strength that `calibrations.csv` has for a drop."""
    if cell.drop is None:
        return rows[rows["defense"] == cell.defense]
    found = tables.calibrations
    if found is None:
        return rows[:0]
    found = found[(found["defense"] == cell.defense) & np.isclose(found["target"], cell.drop)]
    names = pd.MultiIndex.from_frame(found[[*_SAME, "matched"]])
    return rows[pd.MultiIndex.from_frame(rows[[*_SAME, "defense"]]).isin(names)]


def _shares(row: Reported, measured: Any, paper: Paper) -> Shares:
    """The counterpart of a number, in the way its paper counts."""

    def of(column: str) -> Shares:
        low, high = (getattr(measured, f"{column}_{end}") for end in ("low", "high"))
        return getattr(measured, column), low, high

    if row.metric == CLEAN:
        return of(CLEAN)
    if row.metric != FAILURES:
        return of(paper.measure)
    attacked = round(measured.clean_accuracy * measured.images)
    share = (
        min(1.0, getattr(measured, paper.measure) / measured.clean_accuracy) if attacked else 0.0
    )
    return share, *(wilson(share, attacked) if attacked else (0.0, 1.0))


def _differs(row: Reported, cell: Cell, measured: Any, paper: Paper) -> tuple[str, ...]:
    images = paper.images.get(row.dataset, "not stated")
    parts = [
        f"victim {measured.model}" if measured.model != row.model else "",
        f"data {measured.dataset}" if measured.dataset != row.dataset else "",
        f"{measured.images} images (paper: {images})",
        f"seed {measured.seed}" if measured.seed else "",
    ]
    if cell.drop is not None:
        parts += _of_drop(row, cell, measured)
    if cell.attack:
        parts += _of_threat(row, cell, measured)
    return tuple(filter(None, parts))


def _of_drop(row: Reported, cell: Cell, measured: Any) -> Sequence[str]:
    saturated = SATURATED in str(measured.matched_drop).split("+")
    return [
        f"drop {cell.drop:g} (not stated)" if row.matched_drop is None else "",
        "no strength costs as much" if saturated else "",
    ]


def _of_threat(row: Reported, cell: Cell, measured: Any) -> Sequence[str]:
    threat = f"{cell.request.norm} eps {cell.eps:.4g}"
    last = int(str(measured.budgets).split("+")[-1])
    return [
        f"{threat} (not stated)" if row.norm is None or row.eps is None else "",
        f"{cell.budget} queries (not stated)" if row.queries is None else "",
        f"read off a run of {last} queries" if last != cell.budget else "",
    ]
