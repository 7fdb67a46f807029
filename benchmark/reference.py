"""Reference folders: committed tables, read and checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmark.defense_records import CalibrationRow, ComparisonRow, DefenseRow, FlagRow
from benchmark.errors import StoreError
from benchmark.records import names

_TEXT = dict.fromkeys(("matched_drop", "members", "protocol", "budgets", "setting", "seeds"), "str")
_NEEDED = (
    *("dataset", "model", "defense", "attack", "norm", "eps", "aim", "seed", "budget", "images"),
    *(
        f"{share}{end}"
        for share in ("clean_accuracy", "robust_accuracy", "robust_accuracy_first_hit")
        for end in ("", "_low", "_high")
    ),
    *("run_to_budget", "cell"),
)
# What tables of older versions may lack; `budgets` is made from the rows.
_ADDED = ("protocol", "drop", "drop_error", "matched_drop")


@dataclass(frozen=True)
class Reference:
    """The tables of one reference folder; None where there is no such table.

    Attributes:
        name: Path below the root, with slashes.
        cells: `cells.csv`, with all columns of `CellRow` that leaderboards use.
        comparisons: `comparisons.csv`.
        defenses: `defenses.csv`.
        calibrations: `calibrations.csv`.
        flags: `flags.csv`.
        timings: `defense_timings.csv`.
    """

    name: str
    cells: pd.DataFrame
    comparisons: pd.DataFrame | None
    defenses: pd.DataFrame | None
    calibrations: pd.DataFrame | None
    flags: pd.DataFrame | None
    timings: pd.DataFrame | None


def read_references(root: Path) -> list[Reference]:
    """Read every folder below `root` that has a `cells.csv`, by name.

    Raises:
        StoreError: If there is none, or a table cannot be read or lacks a column.
    """
    folders = sorted({path.parent for path in root.rglob("cells.csv")})
    if not folders:
        raise StoreError(f"no folder below '{root}' has a cells.csv")
    found = [read_reference(folder, root) for folder in folders]
    return sorted(found, key=lambda one: one.name)


def read_reference(folder: Path, root: Path) -> Reference:
    """Read one folder, whose name is its path below `root`.

    Raises:
        StoreError: If a table cannot be read or lacks a column.
    """

    def table(name: str, columns: Collection[str]) -> pd.DataFrame | None:
        path = folder / f"{name}.csv"
        return _read(path, columns) if path.exists() else None

    return Reference(
        folder.relative_to(root).as_posix(),
        _completed(_read(folder / "cells.csv", _NEEDED)),
        table("comparisons", names(ComparisonRow)),
        table("defenses", names(DefenseRow)),
        table("calibrations", names(CalibrationRow)),
        table("flags", names(FlagRow)),
        table("defense_timings", ("look", "times_bare_1", "times_bare_64")),
    )


def _read(path: Path, columns: Collection[str]) -> pd.DataFrame:
    try:
        found = pd.read_csv(path, dtype=_TEXT, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read '{path}': {' '.join(str(error).split())}") from None
    for name in columns:
        if name not in found:
            raise StoreError(f"table '{path}' has no column '{name}'")
    return found


def _completed(cells: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that cells of an older version lack."""
    for name in _ADDED:
        if name not in cells:
            cells[name] = "" if name == "protocol" else None
    marks = cells.sort_values("budget").groupby("cell")["budget"]
    joined = marks.agg(lambda some: "+".join(f"{mark}" for mark in some))
    cells["budgets"] = cells["cell"].map(joined)
    return cells
