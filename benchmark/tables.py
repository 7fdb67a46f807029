"""From shards to tidy tables; any order of shards gives the same bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.about import About
from benchmark.comparisons import compare
from benchmark.defense_records import (
    CalibrationRow,
    ComparisonRow,
    DefenseRow,
    DefenseTimingRow,
    FlagRow,
)
from benchmark.flags import flags_of_attacks, flags_of_look
from benchmark.measured import Measured, worst_case
from benchmark.records import CellRow, ImageRow, ShardRow, TimingRow, kinds, names
from benchmark.store import CALIBRATIONS, LOOKS, Store

Content = Mapping[str, Any]

_KINDS = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "list of bool": pa.list_(pa.bool_()),
    "list of int": pa.list_(pa.int64()),
    "list of float": pa.list_(pa.float64()),
}
_IMAGES = pa.schema(
    [(name, _KINDS[kind.removesuffix(", may be empty")]) for name, kind in kinds(ImageRow).items()]
)

DIGITS = 6
_EXACT = ("eps", "p", "p_holm")
ORDERS = {  # columns that rows are sorted by
    "cells.csv": [
        *("dataset", "model", "norm", "eps", "aim", "seed", "defense", "attack", "cell", "budget")
    ],
    "shards.csv": ["cell", "first"],
    "timings.csv": ["shard"],
    "defenses.csv": ["dataset", "model", "seed", "defense", "look"],
    "defense_timings.csv": ["look"],
    "calibrations.csv": ["dataset", "model", "defense", "target", "split", "images", "matched"],
    "comparisons.csv": [
        *("dataset", "model", "norm", "eps", "aim", "protocol", "images", "seeds", "budget"),
        *("matched_drop", "attack", "defense_a", "defense_b", "cell_a", "cell_b"),
    ],
    "flags.csv": names(FlagRow),
    "steals.csv": [
        *("dataset", "model", "pool", "pool_images", "defense", "attack", "scores", "seeds"),
        *("budget", "method", "eps", "images", "transfer"),
    ],
}
# What cells share that one worst case is taken over, besides all entries but the attack.
_SETTING = ("norm", "eps", "aim", "budgets", "protocol", "seed", "images")


@dataclass(frozen=True)
class Finished:
    """All finished work of a folder that can be read.

    Attributes:
        shards: Contents of shard files.
        about: What is known of the defenses.
        settings: Complete cells, those together that differ in their attack only.
    """

    shards: list[dict[str, Any]]
    about: About
    settings: list[list[Measured]]

    def of(self, cells: Container[str]) -> pd.DataFrame:
        """Rows of `cells.csv` of some cells, and the worst case over these alone."""
        return cell_table([s for s in self.shards if s["cell"]["cell"] in cells], self.about)

    def flags(self) -> pd.DataFrame:
        """Rows of `flags.csv`."""
        return flag_table(self.settings, self.about)


def rebuild(store: Store) -> Finished:
    """Write every table of a folder anew from its files; return what they were made of.

    Raises:
        StoreError: If the folder cannot be written.
    """
    with store.alone():
        found, tables = made(store)
        for name, data in tables.items():
            store.write_table(name, data)
    return found


def made(store: Store) -> tuple[Finished, dict[str, bytes]]:
    """Make every table of a folder from its files; `store.damaged` tells what was passed over."""
    store.damaged.clear()
    shards = list(store.intact())
    about = About(list(store.intact(LOOKS)), list(store.intact(CALIBRATIONS)))
    found, tables = tables_of(shards, about)
    return found, {**tables, "timings.csv": csv_bytes(timing_table(shards))}


def tables_of(shards: list[dict[str, Any]], about: About) -> tuple[Finished, dict[str, bytes]]:
    """Make every table but that of times from contents of files."""
    settings = _settings(shards)
    found = Finished(shards, about, settings)
    tables = {
        "cells.csv": _cells(settings, about),
        "shards.csv": shard_table(shards),
        "defenses.csv": frame(about.rows(), DefenseRow, ORDERS["defenses.csv"]),
        "defense_timings.csv": frame(
            about.timings(), DefenseTimingRow, ORDERS["defense_timings.csv"]
        ),
        "calibrations.csv": frame(about.strengths(), CalibrationRow, ORDERS["calibrations.csv"]),
        "comparisons.csv": comparison_table(settings, about),
        "flags.csv": found.flags(),
    }
    written = {name: csv_bytes(table) for name, table in tables.items()}
    return found, {**written, "images.parquet": _parquet(image_table(shards))}


def flag_table(settings: Iterable[Sequence[Measured]], about: About) -> pd.DataFrame:
    """Make `flags.csv`."""
    flags = [flag for alike in settings for flag in flags_of_attacks(alike)]
    flags += [flag for row in about.rows() for flag in flags_of_look(row)]
    return frame(flags, FlagRow, ORDERS["flags.csv"]).drop_duplicates(ignore_index=True)


def comparison_table(settings: Iterable[Sequence[Measured]], about: About) -> pd.DataFrame:
    """Make `comparisons.csv`."""
    defenses = [_by_attack(alike) for alike in settings]
    return frame(compare(defenses, about), ComparisonRow, ORDERS["comparisons.csv"])


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
    return frame(rows, ShardRow, ORDERS["shards.csv"])


def timing_table(shards: Iterable[Content]) -> pd.DataFrame:
    """Make `timings.csv`."""
    rows = [{"shard": shard["key"], **shard["timing"]} for shard in shards]
    return frame(rows, TimingRow, ORDERS["timings.csv"])


def image_table(shards: Iterable[Content]) -> pa.Table:
    """Make `images.parquet`."""
    parts = [_IMAGES.empty_table()]
    for shard in shards:
        keys = [shard["key"]] * int(shard["count"])
        parts.append(pa.Table.from_pydict({"shard": keys, **shard["images"]}, _IMAGES))
    order = [("shard", "ascending"), ("image", "ascending")]
    return pa.concat_tables(parts).sort_by(order).combine_chunks()


def cell_table(shards: Iterable[Content], about: About | None = None) -> pd.DataFrame:
    """Make `cells.csv`: the cells whose shards are all there, and the worst case over attacks."""
    return _cells(_settings(shards), about)


def _cells(settings: Iterable[Sequence[Measured]], about: About | None) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for alike in settings:
        more = about.of_cell(alike[0].cell) if about else {}
        attacks = _by_attack(alike)
        worst = [worst_case(list(attacks.values()))] if len(attacks) > 1 else []
        rows += [{**row, **more} for one in [*alike, *worst] for row in one.rows()]
    return frame(rows, CellRow, ORDERS["cells.csv"])


def _by_attack(cells: Iterable[Measured]) -> dict[str, Measured]:
    """One cell an attack: run at eps and to the budget, it breaks the same images."""
    ordered = sorted(cells, key=lambda one: bool(one.cell["run_to_budget"]))
    return {one.cell["attack"]: one for one in ordered}


def _settings(shards: Iterable[Content]) -> list[list[Measured]]:
    """Complete cells, those together that differ in their attack only."""
    groups: dict[str, list[Content]] = {}
    for shard in shards:
        groups.setdefault(shard["cell"]["cell"], []).append(shard)
    settings: dict[tuple[Any, ...], list[Measured]] = {}
    for members in groups.values():
        cell = members[0]["cell"]
        if whole := _tiling(members, cell["images"]):
            settings.setdefault(_setting(cell), []).append(Measured.of(cell, whole))
    return list(settings.values())


def _setting(cell: Content) -> tuple[Any, ...]:
    entries = json.loads(cell["parameters"])
    del entries["attack"]
    return *(cell[name] for name in _SETTING), json.dumps(entries, sort_keys=True)


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


def frame(rows: list[dict[str, Any]], kind: type[Any], order: list[str]) -> pd.DataFrame:
    """Make a sorted table of the columns that a kind of row has."""
    frame = pd.DataFrame(rows, columns=names(kind))
    return frame.sort_values(order, ignore_index=True)


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """Write a table as text that is the same for the same numbers."""
    measured = {name: DIGITS for name in frame.columns if name not in _EXACT}
    return frame.round(measured).to_csv(index=False, lineterminator="\n").encode()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
