"""Lays out reported numbers beside measured ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmark.catalogue import ATTACKS
from benchmark.counterparts import Counterparts, counterparts
from benchmark.entry import Choice
from benchmark.errors import SpecError, StoreError
from benchmark.measured_counterparts import Line, beside
from benchmark.reference import read_reference
from benchmark.reported import CLEAN, FAILURES, Reported, written
from benchmark.stack import DefenseChoice

_COUNTED = {
    "robust_accuracy": "hits are verified (S2)",
    "robust_accuracy_first_hit": "a first hit breaks an image (S1)",
}


def side_by_side(suite: str, folder: Path) -> str:
    """Compare the numbers that a suite names with what a folder of results measured.

    Args:
        suite: A built-in suite, or a YAML file.
        folder: Folder of results; without tables nothing counts as measured.

    Raises:
        SpecError: If the suite names no table, or names it wrongly.
        StoreError: If the folder is not there, or its tables cannot be read.
    """
    found = counterparts(suite)
    if found is None:
        raise SpecError(f"suite '{suite}' has no field 'reported': nothing to compare with")
    if not folder.is_dir():
        raise StoreError(f"'{folder}' is not a folder: `bench run {suite}` makes results/local")
    there = (folder / "cells.csv").is_file()
    lines = beside(found, read_reference(folder, folder.parent) if there else None)
    parts = [_heading(suite, folder, found), _table(lines), _counts(found, lines)]
    notes = "\n".join(f"- {note}" for note in _notes(found, lines))
    return "\n\n".join([*parts, notes])


def _heading(suite: str, folder: Path, found: Counterparts) -> str:
    table, paper = found.table, found.paper
    return (
        f"{suite}: {table.table} of {paper.title}. {paper.url}\n"
        f"{table.dataset}; in %; robust accuracy is over all images, and as in the paper "
        f"{_COUNTED[paper.measure]}; measured: {folder}"
    )


def _table(lines: Sequence[Line]) -> str:
    common = _common(lines)
    rows = []
    for line in lines:
        row = line.row
        shares = [f"{100 * share:.1f}" for share in line.shares or ()]
        rows.append(
            {
                "victim": row.model,
                "defense": _defense(line),
                "attack": _attack(line),
                "threat": _threat(row),
                "queries": row.queries or "",
                "reported": f"{row.value:g}{'?' if _uncertain(row) else ''}",
                "measured": shares[0] if shares else "not measured",
                "95 %": "-".join(shares[1:]),
                "differs": "; ".join(part for part in line.differs if part not in common),
            }
        )
    if not rows:
        return "Every number is left out."
    shown = [name for name in rows[0] if name != "threat" or len({r["threat"] for r in rows}) > 2]
    sides = ["left" if name in _TEXT else "right" for name in shown]
    body = [[row[name] for name in shown] for row in rows]
    return tabulate(body, shown, disable_numparse=True, colalign=sides)


_TEXT = ("victim", "defense", "attack", "threat", "differs")


def _common(lines: Sequence[Line]) -> list[str]:
    """What sets every number that was measured apart from ours."""
    measured = [line for line in lines if line.measured is not None]
    counts = Counter(part for line in measured for part in line.differs)
    return [part for part, count in counts.items() if count == len(measured)]


def _defense(line: Line) -> str:
    drop = line.cell.drop
    return line.cell.defense if drop is None else f"{line.cell.defense}, drop {drop:g}"


def _attack(line: Line) -> str:
    what = {CLEAN: "(clean)", FAILURES: f"{line.cell.attack}, failures"}
    return what.get(line.row.metric, line.cell.attack)


def _threat(row: Reported) -> str:
    if row.metric == CLEAN:
        return ""
    aim = "targeted" if row.attack_params.get("targeted") == "true" else ""
    eps = "" if row.eps is None else f"{row.eps:.4g}"
    return " ".join(filter(None, (row.norm, eps, aim)))


def _uncertain(row: Reported) -> bool:
    return row.note.startswith("uncertain")


def _counts(found: Counterparts, lines: Sequence[Line]) -> str:
    measured = {id(line.row) for line in lines if line.measured is not None}
    parts = [f"{len(found.pairs)} numbers, {len(measured)} of them measured"]
    parts += [f"{len(found.left_out)} more are left out"] if found.left_out else []
    return "; ".join(parts) + "."


def _notes(found: Counterparts, lines: Sequence[Line]) -> Iterator[str]:
    if common := _common(lines):
        yield f"In every row: {'; '.join(common)}."
    if found.paper.note:
        yield f"Paper: {found.paper.note}."
    if any(line.row.metric == FAILURES for line in lines):
        yield "Failures: robust accuracy over clean accuracy, so over images answered right."
    for (kind, ours), theirs in _names(found).items():
        yield f"{ours}: reported as {', '.join(theirs)}; {_origin(kind, ours)}."
    for note, count in Counter(row.note for row, _ in found.pairs if row.note).items():
        yield f"Of {count} reported: {note}."
    for why, count in Counter(why for _, why in found.left_out).items():
        yield f"Left out, {count}: {why}."


def _names(found: Counterparts) -> dict[tuple[str, str], list[str]]:
    """What our attacks and defenses are called in the table, with parameters."""
    pairs = []
    for row, cell in found.pairs:
        pairs.append((("defense", cell.defense), written(row.defense, row.defense_params)))
        if cell.attack:
            params = {key: text for key, text in row.attack_params.items() if key != "targeted"}
            pairs.append((("attack", cell.attack), written(row.attack, params)))
    names: dict[tuple[str, str], list[str]] = {}
    for ours, theirs in dict.fromkeys(pairs):
        names.setdefault(ours, []).append(theirs)
    return names


def _origin(kind: str, ours: str) -> str:
    """Where the settings of an attack or defense come from, and what differs from there."""
    members: Sequence[Choice[Any]] = DefenseChoice.parse(ours).members if kind == "defense" else ()
    presets = [
        one.entry.facts.presets[one.preset]
        for one in members or (ATTACKS.choose(ours),)
        if one.preset
    ]
    said = (f"{one.origin}{f' ({one.note})' if one.note else ''}" for one in presets)
    return f"settings of {', '.join(said)}" if presets else "our settings"
