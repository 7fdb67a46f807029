"""Which way the boundary faces, from the labels of random probes around a point on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmark.geometry import column, length
from benchmark.rng import RowRng
from benchmark.types import Norm, Problem, Queries
from registry.moves.phases import Phase, group_size


class Votes:
    """Asks probes around a point in groups and adds up where they were adversarial.

    Only sums are kept, so memory does not grow with the number of probes.

    Args:
        problem: The images under attack.
        draw: Gives a direction for each of (n,) rows, which may repeat, (n, C, H, W).
        points: (B, C, H, W), where the probes are placed around; read when they are.
        then: Called with the rows whose probes are all answered, (n,).

    Attributes:
        phase: To be listed among the phases; images enter it by `begin`.
    """

    def __init__(
        self,
        problem: Problem,
        draw: Callable[[Tensor], Tensor],
        points: Tensor,
        then: Callable[[Tensor], None],
    ) -> None:
        self._draw, self._points, self._then = draw, points, then
        count, self._group = len(problem.images), group_size(problem.images[0].numel())
        self._left = torch.zeros_like(problem.labels)
        self._radius = torch.zeros_like(problem.labels, dtype=torch.float64)
        # Place 2 * row adds up the probes that missed, the next one those that hit.
        self._sums = problem.images.new_zeros((2 * count, *problem.images.shape[1:]))
        self._counts = self._radius.new_zeros(2 * count)
        self.phase = Phase(self._ask, self._tell)

    def begin(self, rows: Tensor, count: Tensor, radius: Tensor) -> None:
        """Start to ask `count` probes, (n,), at most at `radius`, (n,), for rows, (n,)."""
        self._left[rows], self._radius[rows] = count, radius
        for place in (2 * rows, 2 * rows + 1):
            self._sums[place], self._counts[place] = 0.0, 0.0

    def hits(self, rows: Tensor) -> Tensor:
        """Share of the probes that were adversarial, (n,) float64."""
        missed, hit = self._counts[2 * rows], self._counts[2 * rows + 1]
        return hit / (missed + hit)

    def normal(self, rows: Tensor) -> Tensor:
        """Estimate the direction into the adversarial side, (n, C, H, W), of any length.

        The mean answer is taken off as baseline, unless all answers were the same.
        """
        missed, hit = self._sums[2 * rows], self._sums[2 * rows + 1]
        share = self.hits(rows)
        mixed = (share > 0) & (share < 1)
        # The sum of (answer - mean) * probe, with answers of -1 and 1, is twice this.
        ours = torch.where(mixed, 1 - share, 1.0)
        theirs = torch.where(mixed, share, 1.0)
        return hit * column(ours.to(hit), hit) - missed * column(theirs.to(hit), hit)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean of the probes that hit and of the others reversed, (n, C, H, W)."""
        count = self._counts[2 * rows] + self._counts[2 * rows + 1]
        total = self._sums[2 * rows + 1] - self._sums[2 * rows]
        return total / column(count.to(total), total)

    def _ask(self, rows: Tensor) -> Queries:
        owners = rows.repeat_interleave(self._left[rows].clamp_max(self._group))
        images = self._draw(owners)
        images *= column(self._radius[owners].to(images), images)
        images += self._points[owners]
        return Queries(images.clamp_(0.0, 1.0), owners)

    def _tell(self, queries: Queries, hit: Tensor) -> None:
        images, owners = queries
        place = 2 * owners + hit.long()
        self._sums.index_add_(0, place, images - self._points[owners])
        self._counts.index_add_(0, place, torch.ones_like(place, dtype=self._counts.dtype))
        self._left.index_add_(0, owners, -torch.ones_like(owners))
        rows = torch.unique_consecutive(owners)
        through = rows[self._left[rows] == 0]
        if len(through):
            self._then(through)


def directions(rng: RowRng, owners: Tensor, like: Tensor, norm: Norm) -> Tensor:
    """Draw directions of Euclidean length 1 as HopSkipJump does: of normals, or of a cube for linf.

    Args:
        rng: One stream per image.
        owners: (n,) rows, which may repeat.
        like: (B, C, H, W), for shape and type.
        norm: Norm of the threat.
    """
    draw = rng.normal if norm is Norm.L2 else rng.cube
    noise = draw(owners, like.shape[1:]).to(like)
    return noise.div_(column(length(noise).clamp_min(1e-12), noise))


def heading(normal: Tensor, norm: Norm) -> Tensor:
    """Turn normals into the steps of length 1 that go furthest along them."""
    if norm is Norm.LINF:
        return normal.sign()
    return normal / column(length(normal).clamp_min(1e-12), normal)
