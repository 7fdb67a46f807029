"""What is known of the defenses of a folder besides attacks: looks and calibrations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
        self._strengths = [row for one in calibrations for row in one["rows"]]
        for row in self._strengths:
            text = SATURATED if row["saturated"] else f"{row['target']:g}"
            found = self._targets.setdefault(_names(row, row["matched"]), [])
            if text not in found:
                found.append(text)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `defenses.csv`."""
        return [{**look["row"], "matched_drop": self._matched(look["row"])} for look in self._looks]

    def timings(self) -> list[dict[str, Any]]:
        """Rows of `defense_timings.csv`."""
        return [{"look": look["key"], **look["timing"]} for look in self._looks]

    def strengths(self) -> list[dict[str, Any]]:
        """Rows of `calibrations.csv`."""
        return self._strengths

    def of_cell(self, cell: Content) -> dict[str, Any]:
        """Columns of `CellRow` that are about its defense."""
        every = json.loads(cell["parameters"])
        del every["attack"]
        settings = json.dumps(every, sort_keys=True, separators=(",", ":"))
        look = self._by_settings.get((settings, cell["seed"]), {})
        return {
            "drop": look.get("drop"),
            "drop_error": look.get("drop_error"),
            "matched_drop": self._matched(cell),
        }

    def _matched(self, row: Content) -> str | None:
        return "+".join(sorted(self._targets.get(_names(row, row["defense"]), []))) or None


def _settings(row: Content) -> tuple[str, int]:
    return row["settings"], row["seed"]


def _names(row: Content, defense: str) -> tuple[str, ...]:
    return row["dataset"], row["model"], defense, str(row["seed"])
