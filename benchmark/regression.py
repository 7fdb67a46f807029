"""Compares a rerun with its reference, and says what moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmark.chance import LEVEL, Paired, significant
from benchmark.differences import cell_moves, named, row_moves
from benchmark.recorded import NAMES, ROWS, Key, Recorded

_CERTAIN = "exact: cannot differ by chance"


@dataclass(frozen=True)
class Verdict:
    """How a rerun compares with its reference.

    Attributes:
        how: How it was compared, one line.
        moved: A line for each cell that moved, or row of another table; empty if nothing did.
        still: What there is to say if nothing did.
    """

    how: str
    moved: list[str]
    still: str


def compare(before: Recorded, after: Recorded) -> Verdict:
    """Compare exactly where the environments agree, by tests on paired images where they do not.

    Args:
        before: The reference.
        after: The rerun.
    """
    keys = list(dict.fromkeys([*before.cells, *after.cells]))
    names = dict(zip(keys, named(pd.DataFrame(keys, columns=list(NAMES))), strict=True))
    lines = [f"{names[key]}: only in the reference" for key in keys if key not in after.cells]
    lines += [f"{names[key]}: only in the rerun" for key in keys if key not in before.cells]
    shared = {names[key]: key for key in keys if key in before.cells and key in after.cells}
    why = _apart(before.environments, after.environments)
    verdict = _by_tests(shared, before, after, why) if why else _exactly(shared, before, after)
    return Verdict(verdict.how, [*lines, *verdict.moved], verdict.still)


def _apart(before: Sequence[Mapping[str, str]], after: Sequence[Mapping[str, str]]) -> str:
    """Say why equal numbers are not promised; empty if they are."""
    if len(before) != 1 or len(after) != 1:
        return f"{len(before)} in the reference, {len(after)} here"
    old, new = before[0], after[0]
    if found := [
        f"{name} {new.get(name, 'not told')} here, {old.get(name, 'not told')} in the reference"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]:
        return "; ".join(found)
    return "" if new["device"] == "cpu" else f"on a GPU, {new['device']}"


def _exactly(shared: Mapping[str, Key], before: Recorded, after: Recorded) -> Verdict:
    lines = [
        f"{name}: {text}" for name, key in shared.items() for text in _cell(key, before, after)
    ]
    for table, old in before.tables.items():
        if moves := list(row_moves(old, after.tables[table], ROWS[table])):
            more = f" (and {len(moves) - 1} more rows)" if moves[1:] else ""
            lines.append(f"{table}: {moves[0]}{more}; {_CERTAIN}")
    how = "the reference was made in the same environment, so every number must be equal"
    return Verdict(how, lines, "every number is equal")


def _cell(key: Key, before: Recorded, after: Recorded) -> Iterator[str]:
    """Say what differs in a cell, if anything does."""
    parts = cell_moves(before.cells[key], after.cells[key])
    if (paired := _paired(key, before, after)) and (moved := paired.moved(exactly=True)):
        parts.append(f"{moved} of {paired.count} images moved")
    if parts:
        yield "; ".join([*parts, _CERTAIN])


def _by_tests(shared: Mapping[str, Key], before: Recorded, after: Recorded, why: str) -> Verdict:
    found = {name: _paired(key, before, after) for name, key in shared.items()}
    pairs = {name: paired for name, paired in found.items() if paired}
    lines = []
    for name, parts in significant(pairs).items():
        shares = cell_moves(before.cells[shared[name]], after.cells[shared[name]])
        lines.append(f"{name}: {'; '.join([*shares, *parts])}")
    how = (
        f"the reference was made in another environment ({why}), so cells are compared image by "
        f"image, by tests at a common level of {LEVEL:g}; docs/reliability.md states them"
    )
    moved = sum(paired.moved() for paired in pairs.values())
    count = sum(paired.count for paired in pairs.values())
    return Verdict(how, lines, f"{moved} of {count} images moved, no more than by rounding")


def _paired(key: Key, before: Recorded, after: Recorded) -> Paired | None:
    """The images of a cell; None of the worst case, which has none of its own."""
    if key not in before.images or key not in after.images:
        return None
    return Paired(before.images[key], after.images[key], sorted(before.cells[key].index))
