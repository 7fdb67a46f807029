"""Random directions made of cosines: low frequencies, those of the image itself, single ones."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.rng import RowRng
from registry.moves.bases import cosines


class Frequencies:
    """Orthonormal two-dimensional DCT of every channel, and directions drawn in it.

    Args:
        rng: One stream per image.
        like: Images, (B, C, H, W), for shape and type.
    """

    def __init__(self, rng: RowRng, like: Tensor) -> None:
        self._rng, self._shape = rng, like.shape[1:]
        self._down, self._across = (cosines(size).to(like) for size in like.shape[2:])

    def forward(self, images: Tensor) -> Tensor:
        """Coefficients of images, (n, C, H, W)."""
        return self._down @ images @ self._across.T

    def back(self, coefficients: Tensor) -> Tensor:
        """Images of the lowest coefficients in each direction, (n, C, h, w) -> (n, C, H, W)."""
        height, width = coefficients.shape[2:]
        return self._down[:height].T @ coefficients @ self._across[:width]

    def low(self, owners: Tensor, count: int) -> Tensor:
        """Draw normals for the lowest `count` frequencies in each direction; owners may repeat."""
        channels, height, width = self._shape
        shape = (channels, min(count, height), min(count, width))
        return self.back(self._rng.normal(owners, shape).to(self._down))

    def single(self, rows: Tensor, count: int) -> Tensor:
        """Draw one of the lowest `count` frequencies in each direction for each channel, weighted.

        Weights are normal; rows, (n,), are each named once.
        """
        channels, height, width = self._shape
        sizes = torch.tensor([min(count, height), min(count, width)])
        down, across = self._rng.integers(rows, sizes, (channels, 2)).unbind(2)
        weights = self._rng.normal(rows, (channels,)).to(self._down)
        planes = self._down[down][..., :, None] * self._across[across][..., None, :]
        return planes * weights[:, :, None, None]

    def own(self, rows: Tensor, strength: Tensor) -> Tensor:
        """Draw signs, -1, 0 or 1, for coefficients of known strength.

        Args:
            rows: (n,) rows, each once.
            strength: Their coefficients, (n, C, H, W).
        """
        signs = self._rng.integers(rows, 3, self._shape).sub_(1)
        return self.back(strength * signs)


def zigzag(height: int, width: int) -> Tensor:
    """Rank of each frequency in the zigzag order, (height, width) int64, 0 for the mean."""
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    diagonal = down + across
    along = torch.where(diagonal % 2 == 0, across, down)
    order = (diagonal * (height + width) + along).flatten().argsort()
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks.view(height, width)
