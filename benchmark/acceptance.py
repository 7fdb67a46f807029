"""Takes the tables of a run among the reference results, and records why."""

from __future__ import annotations

import datetime
import io
import re
from pathlib import Path

import pandas as pd

from benchmark import store_check
from benchmark.errors import SpecError, StoreError
from benchmark.files import place
from benchmark.joining import join
from benchmark.measured import WORST_CASE
from benchmark.recorded import NAMES, read_table
from benchmark.records import AcceptedRow, names
from benchmark.store import SHARDS

LOG = "accepted.csv"
_ALWAYS = ("cells.csv", "shards.csv", "comparisons.csv", "defenses.csv", "flags.csv")
_FILLED = ("calibrations.csv",)  # only if it has rows
_ASKED = ("images.parquet", "defense_timings.csv")  # large; different in equal runs
_NAME = r"[a-z0-9][a-z0-9.-]*(/[a-z0-9][a-z0-9.-]*)*"


def accept(
    run: Path, name: str, why: str, root: Path, more: tuple[str, ...] = (), *, joins: bool = False
) -> AcceptedRow:
    """Copy the tables of a finished run into a reference folder, and append to the log.

    Args:
        run: Folder of results.
        name: Reference folder below `root`.
        why: Reason, not empty.
        root: Folder of reference folders.
        more: Tables that are taken only if asked for, or if the folder has them already.
        joins: What the folder has stays; what the run has besides is added.

    Returns:
        What was appended.

    Raises:
        SpecError: If the name or the reason is none.
        StoreError: If the run is damaged or not finished, or files cannot be written.
    """
    if not why.strip():
        raise SpecError("--why is empty: say why these numbers are right")
    if not re.fullmatch(_NAME, name):
        raise SpecError(f"'{name}' names no reference folder: small letters, digits, '-', '.', '/'")
    _check(run)
    folder = root / name
    tables = join(run, folder) if joins else _copied(run)
    taken = [*_ALWAYS, *(table for table in _FILLED if tables[table].count(b"\n") > 1)]
    taken += [table for table in _ASKED if table in more or (folder / table).exists()]
    row = _row(run, folder, tables["cells.csv"], name, " ".join(why.split()))
    _append(root / LOG, row)  # first: no number changes without a reason
    for table in taken:
        place(folder / table, tables[table])
    for table in {*_ALWAYS, *_FILLED, *_ASKED} - {*taken}:  # of older numbers
        (folder / table).unlink(missing_ok=True)
    return row


def _copied(run: Path) -> dict[str, bytes]:
    return {table: (run / table).read_bytes() for table in (*_ALWAYS, *_FILLED, *_ASKED)}


def _check(run: Path) -> None:
    """Refuse what is damaged, has failures, or is not finished."""
    if not (run / SHARDS).is_dir():
        raise StoreError(f"'{run}' is no folder of a run: it has no folder '{SHARDS}'")
    if found := store_check.verify(run):
        raise StoreError(f"'{run}' cannot be accepted: {found[0]} (and {len(found) - 1} more)")
    if failed := list((run / "failures").glob("*")):
        raise StoreError(f"'{run}' cannot be accepted: {len(failed)} pieces of work failed")
    cells, shards = read_table(run / "cells.csv"), read_table(run / "shards.csv")
    if cells.empty:
        raise StoreError(f"'{run}' cannot be accepted: it has no finished cell")
    if lost := {*shards["cell"]} - {*cells["cell"]}:
        raise StoreError(f"'{run}' cannot be accepted: {len(lost)} cells are not finished")


def _row(run: Path, folder: Path, cells: bytes, name: str, why: str) -> AcceptedRow:
    shards = read_table(run / "shards.csv")
    commits = sorted({*shards["commit"].dropna()})
    dirty = bool(shards["dirty"].isin([True]).any()) if commits else None
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    counts = _counts(folder / "cells.csv", cells)
    return AcceptedRow(today, name, "+".join(commits) or None, dirty, *counts, why)


def _counts(before: Path, after: bytes) -> tuple[int, int, int, int]:
    """Count cells that are the same, moved, new and gone, by the columns that both tables have."""
    new = _texts(io.BytesIO(after), before)
    old = _texts(before, before) if before.exists() else new.iloc[:0]
    columns = [name for name in old if name in new and name != "cell"]
    by = [name for name in NAMES if name in columns]
    cells = [
        {key: rows.to_numpy().tolist() for key, rows in table[columns].groupby(by)}
        for table in (old, new)
    ]
    shared = cells[0].keys() & cells[1].keys()
    same = sum(cells[0][key] == cells[1][key] for key in shared)
    gone, fresh = (len(side) - len(shared) for side in cells)
    return same, len(shared) - same, fresh, gone


def _texts(source: Path | io.BytesIO, path: Path) -> pd.DataFrame:
    """Read `cells.csv` of any version, field by field as written, without worst cases."""
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
        return table[table["attack"] != WORST_CASE]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"cannot read '{path}': {' '.join(str(error).split())}") from None


def _append(path: Path, row: AcceptedRow) -> None:
    table = pd.DataFrame([row], columns=names(AcceptedRow))
    try:
        before = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror}") from None
    text = table.to_csv(index=False, header=not before, lineterminator="\n")
    place(path, before + text.encode())
