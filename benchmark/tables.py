"""From shards to tidy tables; any order of shards gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.records import CellRow, ImageRow, ShardRow, TimingRow, kinds, names
from benchmark.statistics import median_queries, wilson
from benchmark.store import Store

Content = Mapping[str, Any]

_KINDS = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "list of bool": pa.list_(pa.bool_()),
}
_IMAGES = pa.schema(
    [(name, _KINDS[kind.removesuffix(", may be empty")]) for name, kind in kinds(ImageRow).items()]
)

_DIGITS = 6
_CELL_ORDER = ["dataset", "model", "norm", "eps", "seed", "defense", "attack", "cell", "budget"]


def rebuild(store: Store) -> pd.DataFrame:
    """Write every table of a folder anew from its shards; return the cells.

    Raises:
        StoreError: If the folder cannot be written.
    """
    shards = list(store.intact())
    cells = cell_table(shards)
    store.write_table("cells.csv", _csv(cells))
    store.write_table("shards.csv", _csv(shard_table(shards)))
    store.write_table("images.parquet", _parquet(image_table(shards)))
    store.write_table("timings.csv", _csv(timing_table(shards)))
    return cells


def shard_table(shards: Iterable[Content]) -> pd.DataFrame:
    """Make `shards.csv`."""
    rows = [
        {
            **shard["cell"],
            **shard["costs"],
            **shard["provenance"],
            "shard": shard["key"],
            "first": shard["first"],
            "count": shard["count"],
        }
        for shard in shards
    ]
    return _frame(rows, ShardRow, ["cell", "first"])


def timing_table(shards: Iterable[Content]) -> pd.DataFrame:
    """Make `timings.csv`."""
    rows = [{"shard": shard["key"], **shard["timing"]} for shard in shards]
    return _frame(rows, TimingRow, ["shard"])


def image_table(shards: Iterable[Content]) -> pa.Table:
    """Make `images.parquet`."""
    parts = [_IMAGES.empty_table()]
    for shard in shards:
        keys = [shard["key"]] * int(shard["count"])
        parts.append(pa.Table.from_pydict({"shard": keys, **shard["images"]}, _IMAGES))
    order = [("shard", "ascending"), ("image", "ascending")]
    return pa.concat_tables(parts).sort_by(order).combine_chunks()


def cell_table(shards: Iterable[Content]) -> pd.DataFrame:
    """Make `cells.csv`: the cells whose shards are all there."""
    groups: dict[str, list[Content]] = {}
    for shard in shards:
        groups.setdefault(shard["cell"]["cell"], []).append(shard)
    rows: list[dict[str, Any]] = []
    for members in groups.values():
        cell = members[0]["cell"]
        if whole := _tiling(members, cell["images"]):
            rows += _cell_rows(cell, whole)
    return _frame(rows, CellRow, _CELL_ORDER)


def _tiling(shards: list[Content], images: int) -> list[Content]:
    """Shards that cover images 0 to images - 1 once each, in order; empty if there are none.

    A folder may hold shards of several sizes; where two tilings exist, larger shards win.
    """
    onward: dict[int, Content] = {}
    for shard in sorted(shards, key=lambda shard: (-shard["first"], shard["count"])):
        end = shard["first"] + shard["count"]
        if end == images or end in onward:
            onward[shard["first"]] = shard
    tiles: list[Content] = []
    place = 0
    while place in onward:
        tiles.append(onward[place])
        place += onward[place]["count"]
    return tiles


def _cell_rows(cell: Content, shards: list[Content]) -> list[dict[str, Any]]:
    columns = {
        name: np.array([value for shard in shards for value in shard["images"][name]])
        for name in ("clean_correct", "clean_draws", "attacked", "expected_broken")
    }
    hits = {name: _numbers(shards, name) for name in ("first_hit", "broken_at")}
    total = {
        "queries_used": sum(shard["costs"]["counted_queries"] for shard in shards),
        "verification_queries": sum(shard["costs"]["verification_queries"] for shard in shards),
    }
    clean = float((columns["clean_correct"] / columns["clean_draws"]).mean())
    rows = []
    for place, budget in enumerate(int(mark) for mark in cell["budgets"].split("+")):
        attacked = columns["attacked"]
        shares = {
            "clean_accuracy": clean,
            "robust_accuracy": float((attacked & (hits["broken_at"] > budget)).mean()),
            "robust_accuracy_first_hit": float((attacked & (hits["first_hit"] > budget)).mean()),
            "robust_accuracy_expected": float(
                (attacked & ~columns["expected_broken"][:, place]).mean()
            ),
        }
        spent = np.where(hits["broken_at"] <= budget, hits["broken_at"], np.inf)[attacked]
        rows.append(
            {
                **cell,
                **total,
                **_with_intervals(shares, cell["images"]),
                **_queries(spent),
                "budget": budget,
            }
        )
    return rows


def _numbers(shards: list[Content], name: str) -> npt.NDArray[np.float64]:
    """Query numbers of all images, infinite where there is none."""
    values = [value for shard in shards for value in shard["images"][name]]
    return np.array([np.inf if value is None else value for value in values], dtype=np.float64)


def _with_intervals(shares: dict[str, float], images: int) -> dict[str, float]:
    result = dict(shares)
    for name, share in shares.items():
        result[f"{name}_low"], result[f"{name}_high"] = wilson(share, images)
    return result


def _queries(spent: npt.NDArray[np.float64]) -> dict[str, float | None]:
    broken = spent[np.isfinite(spent)]
    return {
        "queries_mean": float(broken.mean()) if len(broken) else None,
        "queries_median": median_queries(broken),
        "queries_median_censored": median_queries(spent),
    }


def _frame(rows: list[dict[str, Any]], kind: type[Any], order: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=names(kind))
    return frame.sort_values(order, ignore_index=True)


def _csv(frame: pd.DataFrame) -> bytes:
    measured = {name: _DIGITS for name in frame.columns if name != "eps"}  # eps is exact
    return frame.round(measured).to_csv(index=False, lineterminator="\n").encode()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
