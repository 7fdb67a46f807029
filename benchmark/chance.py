"""Whether rounding alone can have moved the images of a rerun: tests on paired images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmark.differences import unequal
from benchmark.statistics import holm, mcnemar, stats

LEVEL = 0.001  # chance that any test of a rerun is significant though nothing was changed
# Share of a cell's images that rounding moves, at most, as measured (docs/reliability.md); an
# attack that looks for the nearest adversarial image bisects down to the last digits.
LIMIT, LIMIT_NEAREST = 0.02, 0.2

# What is recorded of an image, but for distances: their last digits move whenever anything does.
_OUTCOME = ["clean_correct", "attacked", "queries", "first_hit", "broken_at", "expected_broken"]
_KINDS = {"robust": "broken_at", "first hit": "first_hit", "expected": "expected_broken"}
_MOST = 2  # significant tests that a line names besides the images that moved

Signs = tuple[str, int, int]  # of what, images on which it rose, images on which it fell


@dataclass(frozen=True)
class Paired:
    """The images of one cell, of the reference and of the rerun.

    Attributes:
        before: Rows of `images.parquet`, by image.
        after: The same of the rerun.
        marks: Budgets of the cell, ascending.
    """

    before: pd.DataFrame
    after: pd.DataFrame
    marks: Sequence[int]

    @property
    def count(self) -> int:
        """Images on either side."""
        return len(self.before.index.union(self.after.index))

    @property
    def limit(self) -> float:
        """Share of the images that rounding moves, at most."""
        traced = self.before["trace_queries"].notna().any()
        return LIMIT_NEAREST if traced else LIMIT

    def moved(self, *, exactly: bool = False) -> int:
        """Images that ended otherwise, or are on one side only; `exactly`: to the last digit."""
        columns = list(self.before) if exactly else _OUTCOME
        return int(unequal(self.before[columns], self.after[columns]).any(axis=1).sum())

    def signs(self) -> Iterator[Signs]:
        """Count the images on which something rose, and those on which it fell."""
        both = self.before.index.intersection(self.after.index)
        old, new = self.before.loc[both], self.after.loc[both]
        for column, name in (("queries", "queries"), ("clean_correct", "right clean answers")):
            yield _signs(name, old[column], new[column])
        for place, budget in enumerate(self.marks):
            for kind in _KINDS:
                before, after = (_right(side, kind, budget, place) for side in (old, new))
                yield _signs(f"{kind} at {budget}", before, after)


def _right(images: pd.DataFrame, kind: str, budget: int, place: int) -> pd.Series[bool]:
    """Which images stay right at a budget."""
    column = images[_KINDS[kind]]
    # None is NaN, which is not below the budget.
    broken = column.str[place].astype(bool) if kind == "expected" else column <= budget
    return images["attacked"].astype(bool) & ~broken


def _signs(name: str, old: pd.Series[Any], new: pd.Series[Any]) -> Signs:
    return name, int((new > old).sum()), int((new < old).sum())


def significant(cells: Mapping[str, Paired]) -> dict[str, list[str]]:
    """Say which cells moved by more than rounding explains; docs/reliability.md states the test.

    Args:
        cells: Images of each cell, by its name.

    Returns:
        What moved, with corrected p values, by the name of the cell; the others are left out.
    """
    tests = [(name, *test) for name, paired in cells.items() for test in _tests(paired)]
    corrected = holm(np.array([p for *_, p in tests]))
    found: dict[str, list[tuple[str, float]]] = {}
    for (name, what, _), p in zip(tests, corrected, strict=True):
        found.setdefault(name, []).append((what, float(p)))
    return {name: _told(all_) for name, all_ in found.items() if min(p for _, p in all_) < LEVEL}


def _tests(paired: Paired) -> Iterator[tuple[str, float]]:
    """All tests of a cell, that of the images that moved at all first."""
    moved, count = paired.moved(), paired.count
    yield f"{moved} of {count} images moved", float(stats.binom.sf(moved - 1, count, paired.limit))
    signs = list(paired.signs())
    rose, fell = (np.array([one[side] for one in signs], dtype=np.float64) for side in (1, 2))
    for (name, more, less), p in zip(signs, mcnemar(rose, fell), strict=True):
        yield f"{name} rose on {more} images and fell on {less}", float(p)


def _told(tests: Sequence[tuple[str, float]]) -> list[str]:
    others = [test for test in sorted(tests[1:], key=lambda test: test[1]) if test[1] < LEVEL]
    return [f"{what} ({_p(p)})" for what, p in [tests[0], *others[:_MOST]]]


def _p(p: float) -> str:
    return f"p {p:.1g}" if p > 1e-15 else "p < 1e-15"
