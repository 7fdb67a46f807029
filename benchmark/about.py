"""What is known of the defenses of a folder besides attacks: looks and calibrations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.families import KEEPS_LABEL

SATURATED = "saturated"

Content = Mapping[str, Any]


class About:
    """Looks and calibrations of a folder, and what they say of a cell.

    Args:
        looks: Contents of look files.
        calibrations: Contents of calibration files.
    """

    def __init__(self, looks: Sequence[Content], calibrations: Sequence[Content]) -> None:
        self._looks = looks
        # Of several looks at one defense the one with the most images speaks.
        ordered = sorted(looks, key=lambda look: look["row"]["images"])
        self._by_settings = {_settings(look["row"]): look["row"] for look in ordered}
        self._targets: dict[tuple[str, ...], list[str]] = {}
        self._drops: dict[tuple[str, ...], list[str]] = {}
        rows = (row for one in calibrations for row in one["rows"])
        # Searches for 1 and for 1,2 points both found the first.
        self._strengths = list({tuple(row.items()): row for row in rows}.values())
        for row in self._strengths:
            names, drop = _names(row, row["matched"]), f"{row['target']:g}"
            text = SATURATED if row["saturated"] else drop
            for word, known in ((text, self._targets), (drop, self._drops)):
                found = known.setdefault(names, [])
                if word not in found:
                    found.append(word)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `defenses.csv`."""
        return [{**look["row"], "matched_drop": self._matched(look["row"])} for look in self._looks]

    def timings(self) -> list[dict[str, Any]]:
        """Rows of `defense_timings.csv`."""
        return [{"look": one["key"], **one["timing"]} for one in self._looks if one["timing"]]

    def strengths(self) -> list[dict[str, Any]]:
        """Rows of `calibrations.csv`."""
        return self._strengths

    def of_cell(self, cell: Content) -> dict[str, Any]:
        """Columns of `CellRow` that are about its defense."""
        look = self._look(cell)
        return {
            "drop": look.get("drop"),
            "drop_error": look.get("drop_error"),
            "matched_drop": self._matched(cell),
        }

    def drops(self, cell: Content) -> list[str]:
        """Points of clean accuracy that a cell's defense was set to cost, met or saturated."""
        return self._drops.get(_names(cell, cell["defense"]), [])

    def keeps_label(self, cell: Content) -> bool:
        """Whether a cell's defense declares that it changes no label."""
        return KEEPS_LABEL in self._look(cell).get("traits", "").split(", ")

    def _look(self, cell: Content) -> Content:
        """The row of `defenses.csv` of a cell's defense, empty if there is none."""
        every = json.loads(cell["parameters"])
        del every["attack"]
        settings = json.dumps(every, sort_keys=True, separators=(",", ":"))
        found: Content = self._by_settings.get((settings, cell["seed"]), {})
        return found

    def _matched(self, row: Content) -> str | None:
        return "+".join(sorted(self._targets.get(_names(row, row["defense"]), []))) or None


def _settings(row: Content) -> tuple[str, int]:
    return row["settings"], row["seed"]


def _names(row: Content, defense: str) -> tuple[str, ...]:
    return row["dataset"], row["model"], defense
