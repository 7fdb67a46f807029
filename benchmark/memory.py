"""The best image an attack has shown so far, and at every checkpoint (for S3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmark.geometry import allowed, column, distance
from benchmark.rows import occurrence
from benchmark.types import Problem


class BestImages:
    """Keeps, for each row, the image in the ball and the box that is worth most: least value.

    A verified image replaces it for good.

    Args:
        problem: The images under attack; each is its own first best image.
        checkpoints: Query counts at which the best image is kept, ascending.
    """

    def __init__(self, problem: Problem, checkpoints: Sequence[int]) -> None:
        self._problem = problem
        self.images = problem.images.clone()
        self._values = problem.images.new_full((len(problem.images),), torch.inf)
        # At the budget itself the best image is the last one.
        self._marks = tuple(mark for mark in checkpoints if mark < problem.threat.budget)
        self._kept = [problem.images.clone() for _ in self._marks]
        self._passed = [torch.zeros_like(self._values, dtype=torch.bool) for _ in self._marks]

    def see(self, images: Tensor, rows: Tensor, number: Tensor, values: Tensor) -> None:
        """Look at some of the queries of a round; `number` counts each row's queries from 1."""
        for mark, kept, passed in zip(self._marks, self._kept, self._passed, strict=True):
            passing = torch.unique(rows[(number > mark) & ~passed[rows]])
            if len(passing):  # queries beyond the checkpoint must not count for it
                self._update(images, rows, values, number <= mark)
                kept[passing], passed[passing] = self.images[passing], True
        self._update(images, rows, values, torch.ones_like(number, dtype=torch.bool))

    def settle(self, images: Tensor, rows: Tensor, number: Tensor) -> None:
        """Keep verified images for good, each from its query `number` on."""
        self.images[rows] = images
        for mark, kept in zip(self._marks, self._kept, strict=True):
            done = number <= mark
            kept[rows[done]] = images[done]

    def at(self, mark: int) -> Tensor:
        """Return the best images after `mark` queries, (B, C, H, W)."""
        if mark not in self._marks:
            return self.images.clone()
        place = self._marks.index(mark)
        return torch.where(column(self._passed[place], self.images), self._kept[place], self.images)

    def _update(self, images: Tensor, rows: Tensor, values: Tensor, counting: Tensor) -> None:
        threat = self._problem.threat
        better = (counting & (values < self._values[rows])).nonzero()[:, 0]
        if not len(better):
            return
        shown, centres = images[better], self._problem.images[rows[better]]
        inside = distance(shown, centres, threat.norm) <= allowed(threat.eps, threat.norm)
        inside &= (shown.flatten(1).amin(1) >= 0) & (shown.flatten(1).amax(1) <= 1)
        better = better[inside]
        better = better[values[better].argsort(stable=True)]
        better = better[occurrence(rows[better]) == 0]
        self.images[rows[better]] = images[better]
        self._values[rows[better]] = values[better]
