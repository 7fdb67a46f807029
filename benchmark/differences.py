"""Says in words how two tables differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

# Shares of a cell, those to tell first; what follows is told where none of these moved.
_ROBUST = {"robust_accuracy": "robust"}
_OTHERS = {
    "robust_accuracy_first_hit": "first hit",
    "robust_accuracy_expected": "expected",
    "clean_accuracy": "clean",
}
# What may differ between equal numbers: keys, what produced them, how settings are written down.
_APART = (
    *("cell", "shard", "cell_a", "cell_b", "look", "commit", "dirty", "device", "versions"),
    *("parameters", "settings"),
)
_MOST = 3  # differences that a line names


def unequal(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Tell which fields differ; those of a row that is on one side only do."""
    before, after = before.align(after)
    return (before != after) & ~(before.isna() & after.isna())


def named(rows: pd.DataFrame) -> list[str]:
    """Name rows by what differs among them; cells by attack and defense besides."""
    pair = [name for name in ("attack", "defense") if name in rows]
    more = [name for name in rows if name not in pair and rows[name].nunique(dropna=False) > 1]
    return [
        ", ".join([" x ".join(str(row[p]) for p in pair), *(f"{m} {row[m]}" for m in more)])
        for row in rows.to_dict("records")
    ]


def cell_moves(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Say how a cell moved: in robust accuracy, else in other shares, else in the rest.

    Args:
        before: Rows of `cells.csv` by budget.
        after: The same of the rerun.
    """
    moved = unequal(before, after)
    for group in (_ROBUST, _OTHERS, {str(n): str(n) for n in before if n not in _APART}):
        if found := [
            f"{word} at {mark} {_was(before.at[mark, name], after.at[mark, name], name)}"
            for mark in before.index
            for name, word in group.items()
            if moved.at[mark, name]
        ]:
            return _few(found)
    return []


def row_moves(before: pd.DataFrame, after: pd.DataFrame, by: Sequence[str]) -> Iterator[str]:
    """Say how the rows of a table differ, a line each.

    Args:
        before: A table.
        after: The same of the rerun.
        by: Columns that a row is known by.
    """
    old, new = _indexed(before, by), _indexed(after, by)
    moved = unequal(old, new)
    rows = moved.index.to_frame(index=False).iloc[:, :-1]
    for text, place in zip(named(rows), moved.index, strict=True):
        if place not in new.index:
            yield f"{text}: only in the reference"
        elif place not in old.index:
            yield f"{text}: only in the rerun"
        elif moved.loc[place].any():
            names = [str(name) for name in moved if moved.at[place, name]]
            told = [f"{name} {_was(old.at[place, name], new.at[place, name])}" for name in names]
            yield f"{text}: {'; '.join(_few(told))}"


def _indexed(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    keys = table[list(by)].astype(object).fillna("")
    index = pd.MultiIndex.from_frame(keys.assign(number=keys.groupby(list(by)).cumcount()))
    return table.drop(columns=[*by, *_APART], errors="ignore").set_index(index)


def _was(old: Any, new: Any, share: str = "") -> str:
    if "accuracy" not in share:
        return f"was {old}, is {new}"
    return f"was {100 * old:.4g}, is {100 * new:.4g} ({100 * (new - old):+.4g} points)"


def _few(found: list[str]) -> list[str]:
    more = len(found) - _MOST
    return [*found[:_MOST], *([f"{more} more"] if more > 0 else [])]
