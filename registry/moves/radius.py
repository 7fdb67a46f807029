"""How far away the boundary lies along a direction, starting from a guess (OPT, Sign-OPT)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmark.types import Problem, Queries
from registry.moves.bracket import Bisection
from registry.moves.phases import Phase

_STEP = 1.01  # factor between two looks outward; inward 2 - _STEP
_LOOKS = 100  # outward or inward

_GUESS, _OUTWARD, _INWARD = range(3)


class Radius:
    """Walks outward from a miss or inward from a hit by one per cent a look, then bisects.

    Args:
        problem: The images under attack.
        point: Gives the images of rows, (n,), at radii, (n,) float64.
        refine: Number of the phase in which images bisect.
        at: (B,) phases of the images.
        then: Called with the rows that are through, (n,), whose radii are in `value`.

    Attributes:
        value: (B,) float64, the least radius that was asked and hit; infinite for none.
        walk: Phase of the walk; images enter it by `begin`.
        fine: Phase of the bisection.
    """

    def __init__(
        self,
        problem: Problem,
        point: Callable[[Tensor, Tensor], Tensor],
        refine: int,
        at: Tensor,
        then: Callable[[Tensor], None],
    ) -> None:
        self._point, self._refine, self._at, self._then = point, refine, at, then
        zeros = torch.zeros_like(problem.labels, dtype=torch.float64)
        self.value, self._radius, self._missed = zeros, zeros.clone(), zeros.clone()
        self._width = zeros.clone()
        self._way = torch.zeros_like(problem.labels)
        self._looks = self._way.clone()
        self._bisection = Bisection(problem, point, self._refined)
        self.walk = Phase(self._ask, self._tell)
        self.fine = self._bisection.phase

    def begin(self, rows: Tensor, guess: Tensor, width: Tensor) -> None:
        """Measure rows, (n,), from a guessed radius; `width`, (n,), is that of the last bracket."""
        self._radius[rows], self._width[rows] = guess, width
        self.value[rows], self._missed[rows] = torch.inf, 0.0
        self._way[rows], self._looks[rows] = _GUESS, 0

    def _ask(self, rows: Tensor) -> Queries:
        return Queries(self._point(rows, self._radius[rows]), rows)

    def _tell(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        first = self._way[rows] == _GUESS
        self._way[rows[first]] = torch.where(hit[first], _INWARD, _OUTWARD)
        self.value[rows[hit]] = self._radius[rows[hit]]
        self._missed[rows[~hit]] = self._radius[rows[~hit]]
        inward = self._way[rows] == _INWARD
        turned = hit != inward  # a hit on the way out or a miss on the way in: bracketed
        over = ~turned & (self._looks[rows] >= _LOOKS)
        self._radius[rows] *= _STEP + (2 - 2 * _STEP) * inward.double()
        self._looks[rows] += 1
        bracketed, given_up = rows[turned], rows[over]
        if len(bracketed):
            self._at[bracketed] = self._refine
            low, high = self._missed[bracketed], self.value[bracketed]
            self._bisection.begin(bracketed, low, high, self._width[bracketed])
        if len(given_up):
            self._then(given_up)

    def _refined(self, rows: Tensor) -> None:
        self.value[rows] = self._bisection.high[rows]
        self._then(rows)
