"""What tables alone can tell of themselves, where the files they were made of are not kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.measured import WORST_CASE
from benchmark.outcome import cell_columns, cell_of
from benchmark.records import TABLES, ImageRow, kinds, names
from benchmark.spec import Shard, digest
from benchmark.statistics import wilson
from benchmark.tables import DIGITS, ORDERS, cell_table

_ROBUST = [f"robust_accuracy{kind}" for kind in ("", "_first_hit", "_expected")]
_ROUNDED = 1.01e-6  # what rounding to six digits may change, at both ends
_SAME = ["dataset", "model", "defense", "norm", "eps", "aim", "protocol", "seed"]
_SAME += ["budgets", "budget", "images"]


def verify(folder: Path) -> Iterator[str]:
    """Check the tables of a folder, and what they say of each other; a line for each finding."""
    tables: dict[str, pd.DataFrame] = {}
    for name in ORDERS:
        if (path := folder / name).is_file():
            table = read(path)
            if table is None:
                yield f"'{path}' is no table with the columns that results/README.md documents"
                continue
            tables[name] = table
            yield from (f"'{path}': {line}" for line in _rows(table, ORDERS[name]))
    cells, shards = tables.get("cells.csv"), tables.get("shards.csv")
    if cells is not None:
        yield from (f"'{folder / 'cells.csv'}': {line}" for line in _cells(cells))
    if shards is not None:
        yield from (f"'{folder / 'shards.csv'}': {line}" for line in _shards(shards))
    if cells is not None and shards is not None:
        yield from (f"'{folder}': {line}" for line in _both(cells, shards))
        if (path := folder / "images.parquet").is_file():
            yield from (f"'{path}': {line}" for line in _images(path, cells, shards))


def read(path: Path) -> pd.DataFrame | None:
    """Read a table; None if it has not the columns that are documented, or is none at all."""
    row = TABLES[path.name]
    texts: Any = {name: str for name, kind in kinds(row).items() if kind.startswith("str")}
    exact: Any = {"eps": float} if "eps" in names(row) else {}
    try:
        table = pd.read_csv(path, dtype=texts, converters=exact)
    except ValueError:  # empty, cut, or no text
        return None
    return table if list(table.columns) == names(row) else None


def read_images(path: Path) -> pa.Table | None:
    """Read `images.parquet`; None if it has not the columns that are documented."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    return table if table.column_names == names(ImageRow) else None


def _rows(table: pd.DataFrame, order: list[str]) -> Iterator[str]:
    if not table.sort_values(order, ignore_index=True, kind="stable").equals(table):
        yield "rows are not sorted"
    if table.duplicated(order).any():
        yield "a row is there twice"


def _cells(cells: pd.DataFrame) -> Iterator[str]:
    last = cells.groupby("cell")["budget"].transform("max") * cells["images"]
    beyond = cells[(cells["attack"] != WORST_CASE) & (cells["queries_used"] > last)]
    yield from (f"cell {cell}: more queries than the budget allows" for cell in set(beyond["cell"]))
    for row in cells.to_dict("records"):
        yield from (f"cell {row['cell']} at {row['budget']}: {line}" for line in _shares(row))
    for cell, rows in cells.groupby("cell"):
        if (rows[_ROBUST[:2]].diff() > 0).any(axis=None):
            yield f"cell {cell}: more queries break fewer images"
    yield from _worst(cells)


def _shares(row: Mapping[Any, Any]) -> Iterator[str]:
    images = row["images"]
    for name in _ROBUST:
        count = round(row[name] * images)
        if abs(row[name] - count / images) > _ROUNDED:
            yield f"{name} is no number of {images} images"
        ends = wilson(count / images, images)
        if not np.allclose(ends, [row[f"{name}_low"], row[f"{name}_high"]], 0, _ROUNDED):
            yield f"the interval of {name} is another"
    if row["robust_accuracy_persistent_10"] > row["robust_accuracy_persistent_1"]:
        yield "more survive ten submissions than one"
    if row["robust_accuracy_first_hit"] > row["robust_accuracy"]:
        yield "more survive first hits than verified ones"


def _worst(cells: pd.DataFrame) -> Iterator[str]:
    for _, alike in cells.groupby(_SAME):
        for row in alike[alike["attack"] == WORST_CASE].to_dict("records"):
            members = alike[alike["attack"].isin(row["members"].split("+"))]
            if members["attack"].is_unique and row["cell"] != digest(
                {"worst": sorted(members["cell"])}
            ):
                yield f"cell {row['cell']}: its members are not those of this table"
            if (members[_ROBUST[:2]].min() < pd.Series(row)[_ROBUST[:2]]).any():
                yield f"cell {row['cell']} at {row['budget']}: an attack breaks more than all do"


def _shards(shards: pd.DataFrame) -> Iterator[str]:
    for values in shards.to_dict("records"):
        row = {str(name): value for name, value in values.items()}
        try:
            cell = cell_of(row)
        except (KeyError, ValueError, AttributeError) as error:
            yield f"shard {row['shard']}: no cell has such columns: {error!r}"
            continue
        columns = cell_columns(cell)
        if columns != {name: row[name] for name in columns}:
            yield f"shard {row['shard']}: the key of its cell, or a column, does not follow"
        elif Shard(cell, row["first"], row["count"]).key != row["shard"]:
            yield f"shard {row['shard']}: its key does not follow from its columns"


def _both(cells: pd.DataFrame, shards: pd.DataFrame) -> Iterator[str]:
    measured = cells[cells["attack"] != WORST_CASE].drop_duplicates("cell")
    for row in measured.to_dict("records"):
        mine = shards[shards["cell"] == row["cell"]]
        if mine["count"].sum() < row["images"]:
            yield f"cell {row['cell']}: its shards are not in shards.csv"
        elif mine["count"].sum() == row["images"] and (
            mine["counted_queries"].sum() != row["queries_used"]
        ):
            yield f"cell {row['cell']}: its shards asked other numbers of queries"


def _images(path: Path, cells: pd.DataFrame, shards: pd.DataFrame) -> Iterator[str]:
    """Make the cells anew from the images."""
    images = read_images(path)
    if images is None:
        yield "is no table with the columns that results/README.md documents"
        return
    contents = []
    for row in shards.to_dict("records"):
        mine = images.filter(pc.equal(images["shard"], row["shard"])).to_pydict()
        if len(mine["shard"]) != row["count"]:
            yield f"has {len(mine['shard'])} of the {row['count']} images of shard {row['shard']}"
            return
        more = {"first": row["first"], "count": row["count"], "costs": row, "images": mine}
        contents.append({"cell": row, **more})
    if len(images) != shards["count"].sum():
        yield "has images of shards that are not in shards.csv"
    made = _lines(cell_table(contents))
    for line in sorted({*_lines(cells)} - {*made}):
        yield f"cells.csv does not follow from it: {line}"


def _lines(cells: pd.DataFrame) -> list[str]:
    """Rows of `cells.csv` as written, without what is of looks."""
    rows = cells.drop(columns=["drop", "drop_error", "matched_drop"]).round(DIGITS)
    return rows.to_csv(index=False, header=False).splitlines()
