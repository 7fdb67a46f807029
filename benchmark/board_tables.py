"""The tables of one board of a leaderboard, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from tabulate import tabulate

from benchmark.board_reports import reports
from benchmark.families import repeats
from benchmark.measured_counterparts import Line
from benchmark.reference import Reference
from benchmark.standings import Board, Row, Setting, Standing, about_defense, flags_of

_GAP = ""
# Columns set left.
_WORDS = ("reference folder", "victim", "threat", "defense", "flags", "attack", "pool", "verdict")


def board_tables(setting: Setting, board: Board, reference: Reference) -> Iterator[str]:
    """The tables of one board, and what is missing in them."""
    marks = " / ".join(map(str, setting.budgets))
    if board.drop:
        points = "point" if board.drop == "1" else "points"
        yield f"### Strengths that cost {board.drop} {points} of clean accuracy\n"
    elif len(setting.boards) > 1:
        yield "### Strengths as written\n"
    flags = flags_of([one.defense for one in board.standings], setting, reference)
    rows = []
    for one in board.standings:
        about = about_defense(one.defense, setting.about, reference)
        names = sorted({name for name, _ in flags.get(one.defense, [])})
        rows.append([*_result(one), *_cost(about, reference), ", ".join(names)])
    head = [
        "rank",
        "defense",
        "clean",
        "drop",
        f"robust @ {marks}",
        "95 %",
        "± seeds",
        "cost",
        "time",
        "flags",
    ]
    yield f"{_filled(rows, head)}\n"
    yield f"Robust accuracy under each attack @ {marks} queries:\n"
    each = [
        [one.defense, *(_shares(one.points.get(attack, [])) for attack in board.attacks)]
        for one in board.standings
    ]
    yield f"{table(each, ['defense', *board.attacks])}\n"
    yield from _intervals(board, marks)
    notes = [*_gaps(board), *_fewer_seeds(board, setting), *_details(flags)]
    if notes:
        yield "\n".join(f"- {note}" for note in notes) + "\n"


def reported_tables(
    setting: Setting, board: Board, reference: Reference, lines: Sequence[Line]
) -> Iterator[str]:
    """What papers report, a table for each of their victims."""
    marks = " / ".join(map(str, setting.budgets))
    for title, head, rows in reports(setting, board, lines):
        yield f"{title} @ {marks} queries (`bench compare {reference.name}`: what differs):\n"
        yield f"{_filled(rows, head)}\n"


def _result(one: Standing) -> list[str]:
    last = one.last
    return [
        str(one.rank or _GAP),
        one.defense,
        _percent(last.clean_accuracy),
        _drop(last),
        _shares(one.worst),
        _ends(one.worst[-1:]),
        f"{100 * last.spread:.2f}" if one.worst and pd.notna(last.spread) else _GAP,
    ]


def _cost(about: dict[str, object], reference: Reference) -> list[str]:
    cost = f"{about['forward_equivalents']:.2f}" if about else _GAP
    if reference.timings is None or not about:
        return [cost, _GAP]
    mine = reference.timings[reference.timings["look"] == about["look"]]
    times = [f"{row.times_bare_1:.2f} / {row.times_bare_64:.2f}" for row in mine.itertuples()]
    return [cost, times[0] if times else _GAP]


def _gaps(board: Board) -> Iterator[str]:
    """Why a place in the tables is empty."""
    for one in board.standings:
        steady = [name for name in board.attacks if name not in {*one.points, *one.lacks}]
        if one.lacks:
            names = ", ".join(f"`{name}`" for name in one.lacks)
            yield f"`{one.defense}`: no worst case and no rank, not run against {names}."
        if steady and all(map(repeats, steady)):
            yield f"`{one.defense}`: a repeated question (eot) has the same answer each time."


def _fewer_seeds(board: Board, setting: Setting) -> Iterator[str]:
    for one in board.standings:
        if one.last.seeds != setting.about["seeds"]:
            yield f"`{one.defense}`: run with {one.last.seeds.replace('+', ', ')} of these seeds."


def _details(flags: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    for defense, found in sorted(flags.items()):
        yield from (f"`{defense}`: {name}, {detail}." for name, detail in sorted(found))


def _drop(row: Row) -> str:
    if pd.isna(row.drop):
        return _GAP
    error = "" if pd.isna(row.drop_error) else f" ± {100 * row.drop_error:.2f}"
    asked = "" if pd.isna(row.matched_drop) else str(row.matched_drop)
    return f"{100 * row.drop:.2f}{error}{' (saturated)' if 'saturated' in asked else ''}"


def _intervals(board: Board, marks: str) -> Iterator[str]:
    """The Wilson intervals of both tables, folded away."""
    head = ["defense", *(["worst case"] if len(board.attacks) > 1 else []), *board.attacks]
    rows = [
        [
            one.defense,
            *([_ends(one.worst)] if len(board.attacks) > 1 else []),
            *(_ends(one.points.get(attack, [])) for attack in board.attacks),
        ]
        for one in board.standings
    ]
    summary = f"<summary>95 % intervals of robust accuracy @ {marks} queries</summary>"
    yield f"<details>{summary}\n\n{table(rows, head)}\n\n</details>\n"


def _ends(rows: Sequence[Row]) -> str:
    ends = ((row.robust_accuracy_low, row.robust_accuracy_high) for row in rows)
    return " / ".join(f"{_percent(low)}-{_percent(high)}" for low, high in ends) or _GAP


def _shares(rows: Sequence[Row]) -> str:
    return " / ".join(_percent(row.robust_accuracy) for row in rows) or _GAP


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _filled(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """A table without the columns that hold nothing."""
    kept = [
        place for place in range(len(head)) if any(row[place] not in {"", _GAP} for row in rows)
    ]
    return table([[row[place] for place in kept] for row in rows], [head[place] for place in kept])


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Lay out a table in Markdown; columns of words are set left."""
    sides = ["left" if name in _WORDS else "right" for name in head]
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True, colalign=sides)
