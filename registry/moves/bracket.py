"""Bisection between a miss and a hit, for images that begin and end at different times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmark.types import Problem, Queries
from registry.moves.phases import Phase

LIMIT = 20  # halvings: beyond, float32 images no longer differ


class Bisection:
    """Halves a bracket until it is narrow; its upper end was always asked and hit.

    Args:
        problem: The images under attack.
        point: Gives the images of rows, (n,), at positions, (n,) float64.
        then: Called with the rows that are through, (n,), whose results are in `high`.
        limit: Most halvings.

    Attributes:
        low: (B,) float64, the last position that missed.
        high: (B,) float64, the nearest position that hit.
        phase: To be listed among the phases; images enter it by `begin`.
    """

    def __init__(
        self,
        problem: Problem,
        point: Callable[[Tensor, Tensor], Tensor],
        then: Callable[[Tensor], None],
        limit: int = LIMIT,
    ) -> None:
        self._point, self._then, self._limit = point, then, limit
        zeros = torch.zeros_like(problem.labels, dtype=torch.float64)
        self.low, self.high, self._width = zeros, zeros.clone(), zeros.clone()
        self._left = torch.zeros_like(problem.labels)
        self.phase = Phase(self._ask, self._tell)

    def begin(
        self, rows: Tensor, low: Tensor | float, high: Tensor | float, width: Tensor | float
    ) -> None:
        """Open brackets; those that are narrow enough already are through at once.

        Args:
            rows: (n,) rows; the caller has put them into this phase.
            low: Positions that missed, or are taken to.
            high: Positions that were asked and hit.
            width: Width at which to stop.
        """
        for kept, value in ((self.low, low), (self.high, high), (self._width, width)):
            kept[rows] = torch.as_tensor(value, dtype=kept.dtype, device=kept.device)
        self._left[rows] = self._limit
        self._leave(rows)

    def _ask(self, rows: Tensor) -> Queries:
        middle = (self.low[rows] + self.high[rows]) / 2
        return Queries(self._point(rows, middle), rows)

    def _tell(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        middle = (self.low[rows] + self.high[rows]) / 2
        self.low[rows] = torch.where(hit, self.low[rows], middle)
        self.high[rows] = torch.where(hit, middle, self.high[rows])
        self._left[rows] -= 1
        self._leave(rows)

    def _leave(self, rows: Tensor) -> None:
        narrow = self.high[rows] - self.low[rows] <= self._width[rows]
        through = rows[narrow | (self._left[rows] <= 0)]
        if len(through):
            self._then(through)
