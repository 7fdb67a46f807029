"""How the nearest hit came nearer, query by query."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.rows import occurrence


class Trace:
    """Notes every hit that is nearer to its clean image than any before it.

    Args:
        count: Rows.
        device: Where distances lie.

    Attributes:
        nearest: (count,) distance of the nearest hit so far, infinite for none.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.nearest = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(self, rows: Tensor, number: Tensor, away: Tensor) -> None:
        """Look at the hits of a round, in the order in which they were asked."""
        away = away.to(self.nearest)
        while True:
            nearer = away < self.nearest[rows]
            rows, number, away = rows[nearer], number[nearer], away[nearer]
            if not len(rows):
                return
            first = occurrence(rows) == 0
            self.nearest[rows[first]] = away[first]
            self._steps.append((rows[first], number[first], away[first]))

    def lists(self) -> tuple[list[list[int]], list[list[float]]]:
        """Query numbers and distances of each row, both in the order of the queries."""
        numbers: list[list[int]] = [[] for _ in self.nearest]
        distances: list[list[float]] = [[] for _ in self.nearest]
        for rows, number, away in self._steps:
            steps = zip(rows.tolist(), number.tolist(), away.tolist(), strict=True)
            for row, count, distance in steps:
                numbers[row].append(count)
                distances[row].append(distance)
        return numbers, distances
