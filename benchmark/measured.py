"""What was measured of one cell, image by image, and the worst case over several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.curves import nearest
from benchmark.spec import digest
from benchmark.statistics import Ints, all_right, median, undecided, wilson

WORST_CASE = "worst-case"
SUBMITTED = (1, 10)  # times that the best image is submitted (S4)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """All images of one cell, in the order of the split.

    Attributes:
        cell: Columns of the cell.
        clean: (n,) share of right answers on the clean image.
        attacked: (n,) a majority of them was right.
        first_hit: (n,) number of the first hit, infinite for none.
        broken_at: (n,) number of the verified hit, infinite for none.
        expected_broken: (n, budgets) the mean answer is adversarial.
        wrong: (n, budgets) answers of `draws` to the best image that are adversarial.
        draws: Answers asked to the best image.
        nearest: (n, budgets) distance of the nearest hit so far, infinite for none, NaN if the
            attack does not look for the nearest.
        costs: Queries of the whole cell.
    """

    cell: Mapping[str, Any]
    clean: Floats
    attacked: Bools
    first_hit: Floats
    broken_at: Floats
    expected_broken: Bools
    wrong: Ints
    draws: int
    nearest: Floats
    costs: Mapping[str, int]

    @classmethod
    def of(cls, cell: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> Measured:
        """Put the shards that tile a cell together."""

        def column(name: str) -> list[Any]:
            return [value for shard in shards for value in shard["images"][name]]

        def numbers(name: str) -> Floats:
            return np.array([np.inf if v is None else v for v in column(name)], dtype=np.float64)

        draws, marks = _draws(cell), _marks(cell)
        wrong = [[draws] * len(marks) if v is None else v for v in column("wrong_answers")]
        return cls(
            cell,
            np.array(column("clean_correct")) / np.array(column("clean_draws")),
            np.array(column("attacked")),
            numbers("first_hit"),
            numbers("broken_at"),
            np.array(column("expected_broken")),
            np.array(wrong, dtype=np.int64),
            draws,
            nearest(column("trace_queries"), column("trace_distances"), marks),
            {
                "queries_used": sum(s["costs"]["counted_queries"] for s in shards),
                "verification_queries": sum(s["costs"]["verification_queries"] for s in shards),
                "flagged_queries": sum(s["costs"]["flagged_queries"] for s in shards),
            },
        )

    def rows(self) -> list[dict[str, Any]]:
        """Make the rows of `cells.csv`, one for each budget."""
        return [self._row(place, budget) for place, budget in enumerate(_marks(self.cell))]

    def _row(self, place: int, budget: int) -> dict[str, Any]:
        attacked = self.attacked
        shares = {
            "clean_accuracy": self.clean.mean(),
            "robust_accuracy": (attacked & (self.broken_at > budget)).mean(),
            "robust_accuracy_first_hit": (attacked & (self.first_hit > budget)).mean(),
            "robust_accuracy_expected": (attacked & ~self.expected_broken[:, place]).mean(),
        }
        row = {**self.cell, **self.costs, "budget": budget}
        for name, share in shares.items():
            row[name] = float(share)
            row[f"{name}_low"], row[f"{name}_high"] = wilson(float(share), len(attacked))
        row |= self._submitted(place)
        spent = np.where(self.broken_at <= budget, self.broken_at, np.inf)[attacked]
        broken = spent[np.isfinite(spent)]
        row["queries_mean"] = float(broken.mean()) if len(broken) else None
        row["queries_median"] = median(broken)
        row["queries_median_censored"] = median(spent)
        row["distance_median"] = median(self.nearest[attacked, place])
        return row

    def _submitted(self, place: int) -> dict[str, float | None]:
        """Outcomes of submitting the best image once and several times (S4)."""
        columns = {times: f"robust_accuracy_persistent_{times}" for times in SUBMITTED}
        if self.draws < max(SUBMITTED):
            return dict.fromkeys((*columns.values(), "undecided"))
        wrong = self.wrong[:, place]
        shares = {n: all_right(wrong, self.draws, times) for times, n in columns.items()}
        shares["undecided"] = undecided(wrong, self.draws).astype(np.float64)
        return {name: float((self.attacked * share).mean()) for name, share in shares.items()}


def _draws(cell: Mapping[str, Any]) -> int:
    return int(dict(word.split("=") for word in cell["protocol"].split())["draws"])


def _marks(cell: Mapping[str, Any]) -> list[int]:
    return [int(mark) for mark in cell["budgets"].split("+")]


def worst_case(cells: Sequence[Measured]) -> Measured:
    """Break each image as soon as any attack does: what an attacker with all of them reaches.

    Every attack has the whole budget for itself, as in AutoAttack; queries are those of the
    attack that breaks the image first.

    Args:
        cells: Cells that differ in their attack only, and so have the same clean answers.
    """
    cells = sorted(cells, key=lambda one: str(one.cell["attack"]))
    first = cells[0]
    names = {
        "attack": WORST_CASE,
        "members": "+".join(str(one.cell["attack"]) for one in cells),
        "run_to_budget": all(one.cell["run_to_budget"] for one in cells),
        "cell": digest({"worst": sorted(str(one.cell["cell"]) for one in cells)}),
    }
    return Measured(
        {**first.cell, **names},
        first.clean,
        np.logical_and.reduce([one.attacked for one in cells]),
        np.minimum.reduce([one.first_hit for one in cells]),
        np.minimum.reduce([one.broken_at for one in cells]),
        np.logical_or.reduce([one.expected_broken for one in cells]),
        np.maximum.reduce([one.wrong for one in cells]),
        first.draws,
        np.minimum.reduce([one.nearest for one in cells]),
        {name: sum(one.costs[name] for one in cells) for name in first.costs},
    )
