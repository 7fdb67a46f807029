"""What the queries of a shard come to at one radius: first hits, verified hits, best images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.geometry import allowed, push
from benchmark.memory import BestImages
from benchmark.rows import occurrence
from benchmark.types import Problem

JudgeFn = Callable[[Tensor, Tensor], Tensor]  # images, rows -> verified


class Seen(NamedTuple):
    """The answered queries of a round.

    Attributes:
        images: (n, C, H, W).
        rows: (n,) the row of each.
        number: (n,) queries that the row had cost with it.
        margins: (n,) how far the answer was from being adversarial; None if nothing is judged.
        hits: (m,) places of those that were adversarial.
        away: (m,) their distances from the clean images.
    """

    images: Tensor
    rows: Tensor
    number: Tensor
    margins: Tensor | None
    hits: Tensor
    away: Tensor


class Tally:
    """Keeps what was reached inside one ball.

    Args:
        problem: The images under attack; its threat names the ball.
        judge: Decides which hits on a randomised victim are verified; None for a deterministic
            victim, whose hits are verified by themselves.
        checkpoints: Query counts at which the best image so far is remembered.
        nearest: The attack looks for the nearest hit: what it would submit is the nearest one
            in the ball, pushed to the surface. Otherwise it is the one with the lowest margin.

    Attributes:
        first_hit: (B,) number of the first query that was a hit (S1), 0 for none.
        broken_at: (B,) number of the query whose hit was verified (S2), 0 for none.
        reach: (B,) distance of the hit that broke the row, NaN for none.
        memory: The best image so far and at each checkpoint; None for deterministic victims.
    """

    def __init__(
        self,
        problem: Problem,
        judge: JudgeFn | None,
        checkpoints: tuple[int, ...],
        *,
        nearest: bool,
    ) -> None:
        images, threat = problem.images, problem.threat
        self._problem, self._judge, self._nearest = problem, judge, nearest
        self._radius = allowed(threat.eps, threat.norm)
        self._marks = torch.tensor(checkpoints, device=images.device)
        self.first_hit = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.broken_at = self.first_hit.clone()
        self.reach = images.new_full((len(images),), torch.nan)
        self.memory = None if judge is None else BestImages(problem, checkpoints)

    def see(self, seen: Seen) -> None:
        """Take note of a round."""
        open_ = self.broken_at[seen.rows[seen.hits]] == 0
        inside = (seen.away <= self._radius) & open_
        hits, away = seen.hits[inside], seen.away[inside]
        self._remember(seen, hits, away)
        if len(hits):
            self._hit(seen, hits, away)

    def _remember(self, seen: Seen, hits: Tensor, away: Tensor) -> None:
        if self.memory is None or seen.margins is None:
            return
        if not self._nearest:
            self.memory.see(seen.images, seen.rows, seen.number, seen.margins)
        elif len(hits):
            rows = seen.rows[hits]
            self.memory.see(self._pushed(seen.images[hits], rows), rows, seen.number[hits], away)

    def _pushed(self, images: Tensor, rows: Tensor) -> Tensor:
        threat = self._problem.threat
        return push(images, self._problem.images[rows], threat.eps, threat.norm)

    def _hit(self, seen: Seen, hits: Tensor, away: Tensor) -> None:
        """Record hits; of several of one row in a round, up to a checkpoint, one is judged."""
        rows, number = seen.rows, seen.number
        first = occurrence(rows[hits]) == 0
        earliest = hits[first]
        fresh = earliest[self.first_hit[rows[earliest]] == 0]
        self.first_hit[rows[fresh]] = number[fresh]
        if self._judge is None or seen.margins is None:
            return self._break(seen.images[earliest], rows[earliest], number[earliest], away[first])
        worth = away if self._nearest else seen.margins[hits]
        stretch = torch.bucketize(number[hits], self._marks)  # hits beyond a checkpoint wait
        for part in torch.unique(stretch).tolist():
            now = ((stretch == part) & (self.broken_at[rows[hits]] == 0)).nonzero()[:, 0]
            order = now[worth[now].argsort(stable=True)]
            best = order[occurrence(rows[hits[order]]) == 0]
            chosen = hits[best]
            self._try(self._judge, seen.images[chosen], rows[chosen], number[chosen], away[best])
        return None

    def _try(
        self, judge: JudgeFn, images: Tensor, rows: Tensor, number: Tensor, away: Tensor
    ) -> None:
        """Judge one hit of each row: what would be submitted, else the hit itself."""
        if self._nearest and len(rows):
            pushed = self._pushed(images, rows)
            verified = judge(pushed, rows)
            self._break(pushed[verified], rows[verified], number[verified], away[verified])
            images, rows, number, away = (t[~verified] for t in (images, rows, number, away))
        if len(rows):
            verified = judge(images, rows)
            self._break(images[verified], rows[verified], number[verified], away[verified])

    def _break(self, images: Tensor, rows: Tensor, number: Tensor, away: Tensor) -> None:
        self.broken_at[rows] = number
        self.reach[rows] = away.to(self.reach)
        if self.memory is not None:
            self.memory.settle(images, rows, number)
