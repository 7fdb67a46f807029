"""A run and a reference folder together, as if one folder had held the work of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmark import table_check
from benchmark.about import About
from benchmark.errors import StoreError
from benchmark.recorded import read_table
from benchmark.store import CALIBRATIONS, LOOKS, Store
from benchmark.tables import tables_of

Contents = dict[str, dict[str, Any]]  # what files of finished work would hold, by key


def join(run: Path, reference: Path) -> dict[str, bytes]:
    """Make the tables of both; work that both have is the reference's.

    Args:
        run: Folder of a finished run.
        reference: Folder of tables, `images.parquet` among them.

    Returns:
        Every table but `timings.csv`, by name.

    Raises:
        StoreError: If the reference lacks a table, or its tables are not of one run.
    """
    store = Store(run, writable=False)
    shards = {one["key"]: one for one in store.intact()} | _shards(reference)
    looks = {one["key"]: one for one in store.intact(LOOKS)} | _looks(reference)
    about = About(list(looks.values()), [*store.intact(CALIBRATIONS), *_calibrations(reference)])
    return tables_of(list(shards.values()), about)[1]


def _shards(folder: Path) -> Contents:
    images = table_check.read_images(folder / "images.parquet")
    if images is None:
        raise StoreError(f"'{folder}' has no images.parquet, without which nothing can join it")
    found = {}
    for row in _rows(folder / "shards.csv"):
        mine = images.filter(pc.equal(images["shard"], row["shard"]))
        if len(mine) != row["count"]:
            raise StoreError(f"'{folder}': images.parquet is not of the same run as shards.csv")
        found[row["shard"]] = _shard(row, mine)
    return found


def _shard(row: Mapping[str, Any], images: pa.Table) -> dict[str, Any]:
    """What the file of a shard holds, but its timing; a row has the columns of all its parts."""
    columns = images.drop_columns("shard").to_pydict()
    place = {"key": row["shard"], "first": row["first"], "count": row["count"]}
    return {**place, "cell": row, "costs": row, "provenance": row, "images": columns}


def _looks(folder: Path) -> Contents:
    path = folder / "defense_timings.csv"
    timings = {row["look"]: row for row in _rows(path)} if path.exists() else {}
    return {
        row["look"]: {"key": row["look"], "row": row, "timing": timings.get(row["look"], {})}
        for row in _rows(folder / "defenses.csv")
    }


def _calibrations(folder: Path) -> list[dict[str, Any]]:
    path = folder / "calibrations.csv"
    return [{"rows": _rows(path)}] if path.exists() else []


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise StoreError(f"'{path.parent}' has no {path.name}: nothing can join it")
    table = read_table(path)
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in found]
