"""Tables of a run that are compared with those of another, cell by cell and image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import table_check
from benchmark.errors import StoreError
from benchmark.records import ImageRow, kinds

# What a cell is known by. Its key is not: it changes with versions that need not move a number.
NAMES = (
    *("dataset", "model", "defense", "attack", "norm", "eps", "aim", "protocol", "seed"),
    *("images", "budgets", "run_to_budget"),
)
# The same of the rows of the other tables.
ROWS = {
    "shards.csv": (*NAMES, "first", "count"),
    "defenses.csv": ("dataset", "model", "seed", "defense", "images", "draws"),
    "calibrations.csv": ("dataset", "model", "defense", "target", "split", "images", "matched"),
    "comparisons.csv": (
        *("dataset", "model", "norm", "eps", "aim", "protocol", "images", "seeds", "budget"),
        *("matched_drop", "attack", "defense_a", "defense_b"),
    ),
    "flags.csv": ("dataset", "model", "defense", "setting", "flag", "detail"),
}
_NEEDED = ("cells.csv", "shards.csv", "images.parquet")

Key = tuple[Any, ...]  # values of NAMES


@dataclass(frozen=True)
class Recorded:
    """What a folder says of a run.

    Attributes:
        cells: Rows of `cells.csv` of each cell, by budget.
        images: Rows of `images.parquet` of each cell, by image; none of the worst case.
        tables: The other tables that are there, by name.
        environments: What results depend on besides the code, by name; one for each that is found.
    """

    cells: dict[Key, pd.DataFrame]
    images: dict[Key, pd.DataFrame]
    tables: dict[str, pd.DataFrame]
    environments: list[dict[str, str]]

    @property
    def device(self) -> str:
        """Kind of device that it was made on: "cpu" or "cuda"."""
        return "cpu" if all(one["device"] == "cpu" for one in self.environments) else "cuda"

    @classmethod
    def read(cls, folder: Path) -> Recorded:
        """Read a folder that has at least cells, shards and images.

        Raises:
            StoreError: If one of these is missing, a table is not as documented, or they are not
                of one run.
        """
        for name in _NEEDED:
            if not (folder / name).is_file():
                raise StoreError(f"'{folder}' has no {name}: it cannot be compared with")
        cells = read_table(folder / "cells.csv")
        there = [name for name in ROWS if (folder / name).is_file()]
        tables = {name: read_table(folder / name) for name in there}
        shards = tables["shards.csv"]
        if cells.duplicated([*NAMES, "budget"]).any():
            raise StoreError(f"'{folder / 'cells.csv'}' has two cells of the same names")
        images = _images(folder / "images.parquet", shards)
        return cls(_by_cell(cells, "budget"), _by_cell(images, "image"), tables, _found(shards))


def read_table(path: Path) -> pd.DataFrame:
    """Read a table with all columns that are documented.

    Raises:
        StoreError: If it is none.
    """
    table = table_check.read(path)
    if table is None:
        raise StoreError(
            f"'{path}' is no table with the columns that results/README.md documents; "
            "`bench accept` makes a reference anew"
        )
    return table


def _images(path: Path, shards: pd.DataFrame) -> pd.DataFrame:
    """Rows of images with the names of their cells."""
    table = table_check.read_images(path)
    if table is None:
        raise StoreError(f"'{path}' is no table with the columns that results/README.md documents")
    images = table.to_pandas()
    if set(images["shard"]) != set(shards["shard"]):
        raise StoreError(f"'{path}' is not of the same run as shards.csv")
    for name, kind in kinds(ImageRow).items():
        if kind.startswith("list"):  # arrays cannot be compared with !=
            images[name] = [None if v is None else tuple(v.tolist()) for v in images[name]]
    return shards[["shard", *NAMES]].merge(images, on="shard").drop(columns="shard")


def _by_cell(table: pd.DataFrame, index: str) -> dict[Key, pd.DataFrame]:
    groups = table.groupby(list(NAMES), sort=False)
    return {tuple(key): rows.drop(columns=list(NAMES)).set_index(index) for key, rows in groups}


def _found(shards: pd.DataFrame) -> list[dict[str, str]]:
    """Every device and set of versions; without the version of the code that is compared."""
    found: list[dict[str, str]] = []
    for device, versions in sorted(set(zip(shards["device"], shards["versions"], strict=True))):
        words = dict(word.split("=", 1) for word in versions.split() if "=" in word)
        words.pop("querybench", None)
        if (one := {"device": device, **words}) not in found:
            found.append(one)
    return found
