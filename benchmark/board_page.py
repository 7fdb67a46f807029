"""One page with all leaderboards, to sort and to filter: it needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import pandas as pd

from benchmark.measured import WORST_CASE
from benchmark.reference import Reference
from benchmark.standings import (
    Board,
    Row,
    Setting,
    Standing,
    about_defense,
    flags_of,
    seeds,
    threat,
)


def page(found: Iterable[tuple[Reference, Sequence[Setting]]]) -> bytes:
    """Fill the page with every defense of every board."""
    rows = [
        _row(one, board, setting, reference)
        for reference, settings in found
        for setting in settings
        for board in setting.boards
        for one in board.standings
    ]
    data = json.dumps(rows, ensure_ascii=False, indent=1).replace("<", "\\u003c")
    template = resources.files("benchmark").joinpath("board_page.html").read_text("utf-8")
    return template.replace("/* DATA */", data).encode()


def _row(one: Standing, board: Board, setting: Setting, reference: Reference) -> dict[str, Any]:
    last, about = one.last, about_defense(one.defense, setting.about, reference)
    ends = f"{100 * last.robust_accuracy_low:.1f}-{100 * last.robust_accuracy_high:.1f}"
    shares = {WORST_CASE: one.worst, **one.points}
    flags = flags_of([one.defense], setting, reference).get(one.defense, [])
    return {
        "board": _title(board, setting, reference),
        "rank": one.rank,
        "defense": one.defense,
        "clean": _percent(last.clean_accuracy),
        "drop": None if pd.isna(last.drop) else _percent(last.drop),
        "interval": ends if one.worst else "",
        "cost": float(about["forward_equivalents"]) if about else None,
        "flags": ", ".join(sorted({name for name, _ in flags})),
        "budgets": setting.budgets,
        "shares": {name: _shares(rows) for name, rows in shares.items() if rows},
    }


def _title(board: Board, setting: Setting, reference: Reference) -> str:
    about = setting.about
    parts = [reference.name, f"drop {board.drop}" if board.drop else ""]
    parts += [f"{about['model']} on {about['dataset']}", threat(setting)]
    parts += [seeds(setting), f"{about['images']} images", str(about["protocol"])]
    return "; ".join(filter(None, parts))


def _shares(rows: Sequence[Row]) -> list[float]:
    return [_percent(row.robust_accuracy) for row in rows]


def _percent(share: float) -> float:
    return round(100 * float(share), 4)
