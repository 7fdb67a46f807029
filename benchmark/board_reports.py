"""What papers report of the defenses of a board, where a suite of its name says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmark.counterparts import counterparts
from benchmark.measured_counterparts import Line, beside
from benchmark.reference import Reference
from benchmark.reported import CLEAN, FAILURES
from benchmark.standings import Board, Setting
from benchmark.suites import ATTACK, suites, task_of

_SETTING = ("dataset", "model", "images", "protocol")
_THREAT = ("norm", "eps", "aim", "budgets")
Report = tuple[str, list[str], list[list[str]]]  # of one victim: title, headings, rows


def lines_of(reference: Reference) -> list[Line]:
    """Numbers beside what a reference folder measured; none unless a suite has its name."""
    named = reference.name in suites() and task_of(reference.name) == ATTACK
    found = counterparts(reference.name) if named else None
    lines = beside(found, reference) if found else []
    return [line for line in lines if line.measured is not None and line.row.metric != FAILURES]


def reports(setting: Setting, board: Board, lines: Sequence[Line]) -> Iterator[Report]:
    """Lay out the numbers of a board: a table for each victim that they are of."""
    mine = [line for line in lines if _of(line, setting, board)]
    for victim in dict.fromkeys(line.row.model for line in mine):
        values = {
            (line.measured.defense, line.cell.attack, _budget(line)): f"{line.row.value:.1f}"
            for line in mine
            if line.row.model == victim
        }
        row = next(line.row for line in mine if line.row.model == victim)
        attacks = [name for name in board.attacks if any(name == key[1] for key in values)]
        yield (
            f"{row.table} of `{row.paper}` reports of {victim}",
            ["defense", "clean", *attacks],
            [
                [name, values.get((name, "", 0), ""), *_cells(name, attacks, setting, values)]
                for name in (one.defense for one in board.standings)
                if any(name == key[0] for key in values)
            ],
        )


def _of(line: Line, setting: Setting, board: Board) -> bool:
    columns = _SETTING if line.row.metric == CLEAN else (*_SETTING, *_THREAT)
    same = all(getattr(line.measured, name) == setting.about[name] for name in columns)
    matched = line.cell.drop is None or f"{line.cell.drop:g}" == board.drop
    return same and matched and line.measured.defense in {s.defense for s in board.standings}


def _budget(line: Line) -> int:
    return line.cell.budget if line.cell.attack else 0


def _cells(
    defense: str,
    attacks: Sequence[str],
    setting: Setting,
    values: dict[tuple[str, str, int], str],
) -> Iterator[str]:
    for attack in attacks:
        found = [values.get((defense, attack, mark), "") for mark in setting.budgets]
        yield " / ".join(text or "-" for text in found) if any(found) else ""
