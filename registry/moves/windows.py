"""Square windows of images: their places in memory, schedule and l2 bumps (Square attack)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from benchmark.rng import RowRng

# Progress, in ten-thousandths of the horizon, beyond which the patch area halves once more.
_HALVINGS = torch.tensor([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])


def sides(spent: Tensor, span: int, p: float, shape: tuple[int, int], *, odd: bool) -> Tensor:
    """Side of each row's window, (n,), by the official schedule of the area.

    Args:
        spent: Queries spent since the first, (n,).
        span: Queries over which the window shrinks.
        p: Share of the image's area that the first window covers.
        shape: Height and width.
        odd: Odd sides of at least 3 (l2), where the image has room for them.
    """
    progress = spent * 10_000 // span
    halvings = torch.bucketize(progress, _HALVINGS.to(progress.device))
    area = p / 2.0 ** halvings.double() * shape[0] * shape[1]
    side = area.sqrt().round().long()
    most = max(min(shape) - 1, 1)
    if not odd:
        return side.clamp(1, most)
    side = side.clamp_min(3)
    return (side + (side % 2 == 0)).clamp_max(most - (most % 2 == 0))


def corner(rng: RowRng, rows: Tensor, side: int, shape: tuple[int, ...], count: int) -> Tensor:
    """Draw the upper left corner of `count` windows for each row, (n, count, 2)."""
    limits = torch.tensor([shape[-2] - side + 1, shape[-1] - side + 1])
    return rng.integers(rows, limits, (count, 2))


def places(members: Tensor, top_left: Tensor, side: int, shape: tuple[int, ...]) -> Tensor:
    """Flat places of a window in all channels of images `members`, (n, C, side * side)."""
    _, channels, height, width = shape
    steps = torch.arange(side, device=members.device)
    patch = (steps[:, None] * width + steps).view(1, 1, -1)
    planes = torch.arange(channels, device=members.device)[None, :] + members[:, None] * channels
    start = planes * (height * width) + (top_left[:, 0] * width + top_left[:, 1])[:, None]
    return start[:, :, None] + patch


def overlap(one: Tensor, other: Tensor, side: int) -> Tensor:
    """Which pixels of window `other` lie in window `one`, (n, side * side) bool.

    Args:
        one: Upper left corners, (n, 2).
        other: The same of the other windows.
        side: Side of both.
    """
    steps = torch.arange(side, device=one.device)
    shift = (other - one)[:, :, None] + steps  # (n, 2, side): rows and columns of the other
    inside = (shift >= 0) & (shift < side)
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).flatten(1)


@lru_cache(maxsize=512)
def bump(side: int) -> Tensor:
    """Two opposite halves of unit length together, (side, side): the l2 patch of the paper."""
    half = side // 2
    whole = torch.cat((_peak(half, side), -_peak(side - half, side)))
    length: Tensor = torch.linalg.vector_norm(whole)
    return whole / length


def _peak(height: int, width: int) -> Tensor:
    """A peak of unit length that falls from the centre (section 3.3 of the paper)."""
    middle = height // 2, width // 2
    far = max(middle)
    sums = torch.tensor([sum((k + 1) ** -2 for k in range(r, far + 1)) for r in range(far + 1)])
    across = (torch.arange(height) - middle[0]).abs()[:, None]
    along = (torch.arange(width) - middle[1]).abs()[None, :]
    values = sums[torch.maximum(across, along)] if height else torch.zeros(0, width)
    length: Tensor = torch.linalg.vector_norm(values)
    return values / length.clamp_min(1e-12)
