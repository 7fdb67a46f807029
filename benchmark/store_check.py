"""What `bench verify` finds in folders of results: files, keys, tables that do not follow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark import table_check
from benchmark.errors import StoreError
from benchmark.outcome import cell_columns, cell_of
from benchmark.records import ImageRow, names
from benchmark.request import MOST_VOTES
from benchmark.spec import Look, Part, Shard
from benchmark.stealing.tables import NAME as STEALS
from benchmark.stealing.tables import stolen
from benchmark.store import CALIBRATIONS, LOOKS, SHARDS, THEFTS, TRANSFERS, Store
from benchmark.tables import csv_bytes, made

_AGAIN = "run `bench collect`, if no run is going on"


def verify(folder: Path) -> list[str]:
    """Check every folder of results in a folder, itself included.

    Returns:
        What is wrong, a line each.

    Raises:
        StoreError: If there are no results.
    """
    places = {path.parent for name in ("cells.csv", STEALS) for path in folder.rglob(name)}
    places |= {path.parent for path in folder.rglob(SHARDS) if path.is_dir()}
    if not places:
        raise StoreError(f"'{folder}' holds no results: no folder 'shards', no table 'cells.csv'")
    return [line for place in sorted(places) for line in _folder(place)]


def _folder(folder: Path) -> Iterator[str]:
    if (folder / SHARDS).is_dir():
        store = Store(folder, writable=False)
        found = list(_files(store))
        yield from found
        if not found:  # tables can be no better than the files they are made of
            yield from _tables(store)
    else:
        yield from table_check.verify(folder)


def _files(store: Store) -> Iterator[str]:
    for kind in (SHARDS, LOOKS, CALIBRATIONS, THEFTS, TRANSFERS):
        for path in sorted((store.folder / kind).glob("*")):
            if path.suffix == ".json":
                yield from _file(store, path, kind)
            elif path.suffix != ".tmp":  # half-written, by a run that goes on or was killed
                yield f"'{path}' is no file of a run"


def _file(store: Store, path: Path, kind: str) -> Iterator[str]:
    check = {SHARDS: _shard, LOOKS: _look}.get(kind)
    try:
        content = store.read(path.stem, kind)
        wrong = check(content) if check and content else ""
    except StoreError as error:
        wrong = str(error)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        wrong = f"content is not that of a run ({type(error).__name__}: {error})"
    if wrong:
        yield wrong if str(path) in wrong else f"'{path}': {wrong}"


def _shard(content: Mapping[str, Any]) -> str:
    cell = cell_of(content["cell"])
    shard = Shard(cell, content["first"], content["count"])
    if cell_columns(cell) != content["cell"]:
        return "the key of the cell, or a column of it, does not follow from the others"
    if shard.key != content["key"]:
        return f"the key that follows from its content is {shard.key}"
    images: Mapping[str, Any] = content["images"]
    if {"shard", *images} != set(names(ImageRow)):
        return "its images have other columns than they ought to"
    if any(len(column) != shard.count for column in images.values()):
        return f"a column of its images has not {shard.count} rows"
    used, counted = content["costs"]["counted_queries"], sum(images["queries"])
    if used != counted and not cell.protocol.run_to_budget:
        return f"its images asked {counted} queries, its costs say {used}"
    return ""


def _look(content: Mapping[str, Any]) -> str:
    row = content["row"]
    records = json.loads(row["settings"])
    kinds = "dataset", "model", "defense"
    dataset, model, defense = (Part("", row[name], records[name]) for name in kinds)
    device = "cpu" if row["device"] == "cpu" else "cuda"
    # A defense without noise is asked once, whatever the votes that are in the key.
    asked = range(1, MOST_VOTES + 1, 2) if row["draws"] == 1 else [row["draws"]]
    look = Look(dataset, model, defense, row["images"], 1, row["seed"], device)
    keys = (replace(look, draws=draws).key for draws in asked)
    return "" if content["key"] in keys else "its key does not follow from its content"


def _tables(store: Store) -> Iterator[str]:
    _, tables = made(store)
    if store.saved(TRANSFERS):
        tables[STEALS] = csv_bytes(stolen(store))
    for name, data in tables.items():
        path = store.folder / name
        if not path.is_file():
            yield f"'{path}' is missing: {_AGAIN}"
        elif not _same(path.read_bytes(), data, path.suffix):
            yield f"'{path}' is not what the files give: {_AGAIN}"


def _same(found: bytes, data: bytes, kind: str) -> bool:
    if found == data or kind != ".parquet":
        return found == data
    try:  # another version of the library writes the same rows in other bytes
        return bool(pq.read_table(BytesIO(found)).equals(pq.read_table(BytesIO(data))))
    except (pa.ArrowException, OSError):
        return False
