"""Orthonormal bases of images (pixels, cosines) and the order in which they are walked (SimBA)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from benchmark.rng import RowRng

Order = Literal["random", "diagonal", "strided"]

_BLOCK = 2**22  # random numbers drawn at once for permutations


class Basis(Protocol):
    """Directions numbered c * H * W + u * W + v, each of which lives in one cell of an image.

    A cell is what a step changes: all cells have the same number of neighbouring pixel values.

    Attributes:
        cells: Cells of an image.
    """

    cells: int

    def cell(self, directions: Tensor) -> Tensor:
        """Cell in which each direction lives, (n,)."""

    def pattern(self, directions: Tensor, scale: Tensor) -> Tensor:
        """Values of each direction in its cell times its scale, (n, D / cells)."""

    def shortest(self, images: Tensor, centres: Tensor, delta: Tensor, step: float) -> Tensor:
        """Bound from below the squared length of images one step further, (n, C * H * W, 2).

        The length is that of the perturbation cut to the box, along directions not yet walked.

        Args:
            images: Where the images stand, (n, C, H, W): centres + delta, cut to the box.
            centres: Their clean images.
            delta: Their perturbations before they were cut.
            step: Length of the step; its two signs are the last dimension, minus first.
        """


class Pixels:
    """One pixel value is one direction."""

    def __init__(self, like: Tensor) -> None:
        self.cells = like[0].numel()

    def cell(self, directions: Tensor) -> Tensor:
        """Cell in which each direction lives: the pixel value itself."""
        return directions

    def pattern(self, directions: Tensor, scale: Tensor) -> Tensor:
        """One value each, (n, 1)."""
        del directions
        return scale[:, None].clone()

    def shortest(self, images: Tensor, centres: Tensor, delta: Tensor, step: float) -> Tensor:
        """Squared length of images one step further along directions not yet walked."""
        del delta
        now = (images - centres).flatten(1).square().sum(1)
        signs = centres.new_tensor([-step, step])
        own = (centres.flatten(1)[:, :, None] + signs).clamp_(0, 1)
        own -= centres.flatten(1)[:, :, None]
        return own.square_() + now[:, None, None]


class Cosines:
    """Two-dimensional DCT-II of the whole of one channel, which is the cell."""

    def __init__(self, like: Tensor) -> None:
        self.cells = like.shape[1]
        self._down, self._across = (cosines(size).to(like) for size in like.shape[2:])

    def cell(self, directions: Tensor) -> Tensor:
        """Cell in which each direction lives: its channel."""
        return directions // (len(self._down) * len(self._across))

    def pattern(self, directions: Tensor, scale: Tensor) -> Tensor:
        """Plane of each direction times its scale, (n, H * W)."""
        width = len(self._across)
        down = self._down[directions // width % len(self._down)] * scale[:, None]
        across = self._across[directions % width]
        return (down[:, :, None] * across[:, None, :]).flatten(1)

    def shortest(self, images: Tensor, centres: Tensor, delta: Tensor, step: float) -> Tensor:
        """Bound from below the squared length of images one step further.

        Pixels that no step can bring to the edge of the box count in full, the others as little
        as a step may leave of them.
        """
        swing = step * float(self._down.abs().max() * self._across.abs().max())
        moved = centres + delta
        free = ((moved >= swing) & (moved <= 1 - swing)).to(delta)
        least = (centres + delta.sign() * (delta.abs() - swing).clamp_min(0)).clamp(0, 1)
        now = (images - centres).square().sum((2, 3))
        rest = (free * delta.square() + (1 - free) * (least - centres).square()).sum((2, 3))
        base = now.sum(1, keepdim=True) - now + rest
        cross = 2 * step * (self._down @ (free * delta) @ self._across.T)
        own = step**2 * (self._down.square() @ free @ self._across.square().T)
        own += base[:, :, None, None]
        return torch.stack((own - cross, own + cross), -1).flatten(1, 3)


@lru_cache(maxsize=16)
def cosines(size: int) -> Tensor:
    """Orthonormal DCT-II matrix, (size, size), float64; row u is frequency u."""
    steps = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * steps[:, None] * (steps + 0.5)) * math.sqrt(2 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix


def walks(rng: RowRng, rows: Tensor, like: Tensor, order: Order, low: int, stride: int) -> Tensor:
    """Order the directions of each row, (n, M) int32, each at most once.

    Args:
        rng: One stream per image; a diagonal order draws nothing.
        rows: (n,) rows to draw for.
        like: (n, C, H, W), for the shape.
        order: `random`: those with u, v < low, shuffled. `strided`: the same, then one shell
            after the other until nothing is left, each shuffled. `diagonal`: all, by u + v.
        low: Frequencies of the low block in each dimension.
        stride: Width of a shell; the last may be narrower.
    """
    _, channels, height, width = like.shape
    sizes = torch.tensor([channels, height, width])
    channel, down, across = torch.cartesian_prod(*(torch.arange(int(n)) for n in sizes)).unbind(1)
    if order == "diagonal":
        key = ((down + across) * height + down) * channels + channel
        return key.argsort().int().to(rows.device).expand(len(rows), -1)
    shell = (torch.maximum(down, across) + stride - low).clamp_min(0) // stride
    pool = torch.arange(len(shell)) if order == "strided" else (shell == 0).nonzero()[:, 0]
    pool, shell = pool.to(rows.device), shell[pool].to(rows.device)
    parts = torch.split(rows, max(1, _BLOCK // len(pool)))
    return torch.cat([pool[_shuffled(rng, part, shell)].int() for part in parts])


def _shuffled(rng: RowRng, rows: Tensor, shell: Tensor) -> Tensor:
    """Shuffle the places of each shell, shells in order, (n, M)."""
    keys = rng.integers(rows, 2**31, shell.shape)
    return keys.add_(shell << 31).argsort(dim=1, stable=True)
