"""From files of thefts and transfers to `steals.csv`; any order gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark.about import About
from benchmark.errors import StoreError
from benchmark.records import kinds, names
from benchmark.statistics import SIGNIFICANT, mcnemar, wilson
from benchmark.stealing.outcome import written
from benchmark.stealing.rows import StealRow
from benchmark.stealing.spec import Method, Origin
from benchmark.store import CALIBRATIONS, LOOKS, THEFTS, TRANSFERS, Store
from benchmark.tables import ORDERS, csv_bytes, frame

Content = Mapping[str, Any]

NAME = "steals.csv"
LEAST = 0.6  # of the victim's accuracy, for a clone that tells something
_ACCURACY = "clone_accuracy"
_QUALITY = (_ACCURACY, "agreement", "divergence", "agreement_asked", "divergence_asked")
# What rows share that differ in their defense alone.
_ALIKE = (
    *("dataset", "model", "pool", "pool_images", "attack", "scores", "seeds", "budget"),
    *("images", "eps", "method", "_settings", "_stretched"),
)


def rebuild_steals(store: Store) -> pd.DataFrame:
    """Write `steals.csv` anew from the files of a folder; return it.

    Raises:
        StoreError: If the folder cannot be written.
    """
    with store.alone():
        table = stolen(store)
        store.write_table(NAME, csv_bytes(table))
    return table


def stolen(store: Store) -> pd.DataFrame:
    """Make `steals.csv` of the files of a folder; `store.damaged` tells what was passed over."""
    store.damaged.clear()
    about = About(list(store.intact(LOOKS)), list(store.intact(CALIBRATIONS)))
    thefts = {one["key"]: one for one in store.intact(THEFTS)}
    return steal_table(list(store.intact(TRANSFERS)), thefts, about)


def steal_table(
    transfers: Sequence[Content], thefts: Mapping[str, Content], about: About
) -> pd.DataFrame:
    """Make `steals.csv`; a transfer whose thefts are not all there is left out."""
    rows: list[dict[str, Any]] = []
    for one in transfers:
        if all(key in thefts for key in one["thefts"]):
            rows += _rows(one, [thefts[key] for key in one["thefts"]], about)
    _judge(rows)
    return frame(rows, StealRow, ORDERS[NAME])


def _rows(transfer: Content, thefts: Sequence[Content], about: About) -> list[dict[str, Any]]:
    """A row for each method; `_right` tells image by image what was right."""
    columns, clean = transfer["columns"], transfer["rows"][0]
    shared = {
        **columns,
        **_stolen(transfer, thefts),
        **about.of_cell(_as_cell(transfer)),
        **transfer["provenance"],
        "victim_accuracy": transfer["victim_accuracy"],
        "clean_accuracy": float(np.mean(clean["right"])),
        "clean_accuracy_single": clean["single"],
        "parameters": written(_parameters(transfer, thefts)),
        "thefts": "+".join(transfer["thefts"]) or None,
        "transfer": transfer["key"],
        "_bare": transfer["undefended"],
        "_origin": transfer["origin"],
        "_victim": written({**transfer["parameters"], "defense": None}),
        "_settings": written({**_parameters(transfer, thefts), "defense": None}),
        "_stretched": thefts[0]["last"] if thefts and thefts[0]["planned"] else None,
    }
    if (found := shared.get("clone_accuracy")) is not None:
        shared["clone_accuracy_normalised"] = found / transfer["victim_accuracy"]
    return [{**shared, **_shown(row, clean)} for row in transfer["rows"][1:]]


def _shown(row: Content, clean: Content) -> dict[str, Any]:
    # Luck with an image that is misread when clean is no robustness (S3).
    right = np.array(row["right"]) & np.array(clean["right"])
    low, high = wilson(float(right.mean()), len(right))
    return {
        "method": row["method"],
        "robust_accuracy": float(right.mean()),
        "robust_accuracy_low": low,
        "robust_accuracy_high": high,
        "robust_accuracy_single": row["single"],
        "_right": right,
    }


def _stolen(transfer: Content, thefts: Sequence[Content]) -> dict[str, Any]:
    """Columns about the clones that a transfer used."""
    if not thefts:
        return {"queries": 0, "on_the_way": False}
    budget = transfer["columns"]["budget"]
    # A line of reference was compared with the bare victim and with no other.
    compared = _QUALITY if budget or transfer["undefended"] else (_ACCURACY,)
    points = [next(row for row in one["rows"] if row["budget"] == budget) for one in thefts]
    first = thefts[0]
    columns = {name: first["columns"][name] for name in ("pool", "pool_images", "scores")}
    quality = {name: float(np.mean([point[name] for point in points])) for name in compared}
    return {
        **columns,
        **quality,
        "queries": sum(point["queries"] for point in points),
        "on_the_way": first["planned"] and budget < first["last"],
    }


def _as_cell(transfer: Content) -> dict[str, Any]:
    """What `About` needs of a cell; looks are taken with seed 0."""
    parameters = written({**transfer["parameters"], "attack": {}})
    return {**transfer["columns"], "parameters": parameters, "seed": 0}


def _parameters(transfer: Content, thefts: Sequence[Content]) -> dict[str, Any]:
    return {**transfer["parameters"], **(thefts[0]["parameters"] if thefts else {})}


def _judge(rows: Sequence[dict[str, Any]]) -> None:
    """Say of every row of stolen clones whether the same without a defense tells anything."""
    bare = {_place(row): row for row in rows if row["_bare"]}
    noise = {_subject(row): row for row in bare.values() if row["method"] == Method.SIGN_NOISE}
    for row in rows:
        same, floor = bare.get(_place(row)), noise.get(_subject(row))
        if row["_origin"] == Origin.CLONES and row["queries"] and same and floor:
            informative = _informative(same, floor)
            row["verdict"] = "informative" if informative else "uninformative"


def _informative(row: Content, noise: Content) -> bool:
    """The clone is good enough, and its images fool the bare victim more often than noise."""
    stronger = float(np.sum(~row["_right"] & noise["_right"]))
    weaker = float(np.sum(row["_right"] & ~noise["_right"]))
    p = float(mcnemar(np.array([stronger]), np.array([weaker]))[0])
    beats = stronger > weaker and p < SIGNIFICANT
    return bool(row["clone_accuracy_normalised"] >= LEAST and beats)


def _place(row: Content) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _ALIKE)


def _subject(row: Content) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("dataset", "model", "images", "eps", "_victim"))


def read_steals(path: Path) -> pd.DataFrame:
    """Read a `steals.csv`.

    Raises:
        StoreError: If it has not the columns that are documented.
    """
    texts: Any = {name: str for name, kind in kinds(StealRow).items() if kind.startswith("str")}
    try:
        found = pd.read_csv(path, dtype=texts)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read '{path}': {' '.join(str(error).split())}") from None
    if list(found.columns) != names(StealRow) or found.empty:
        raise StoreError(f"'{path}' is no table with the columns that results/README.md documents")
    return found
