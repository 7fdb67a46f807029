"""Optimisers whose state is elementwise, so that rows stay independent."""

from __future__ import annotations

import torch
from torch import Tensor

_SQUARES, _TINY = 0.999, 1e-8  # of both optimisers
_FIRST = {"adamod": 0.99, "adam": 0.9}
_BOUND = 0.6  # AdaMod's beta_3


class Optimiser:
    """Adam, or AdaMod: Adam whose step sizes are capped by their own moving average.

    Source: Kingma and Ba 2015, algorithm 1; Ding et al. 2019 (arXiv 1910.12249), algorithm 1,
    with the small constant where the code of each puts it.

    Args:
        name: "adam" or "adamod".
        rate: Learning rate.
    """

    def __init__(self, name: str, rate: float) -> None:
        self._first, self._capped, self._rate = _FIRST[name], name == "adamod", rate
        self._mean = self._square = self._sizes = torch.zeros(())
        self._count = 0

    def step(self, slopes: Tensor) -> Tensor:
        """Return what is to be taken off the values, given their gradient; both any shape."""
        if not self._count:
            self._mean = self._square = self._sizes = torch.zeros_like(slopes)
        self._count += 1
        self._mean = self._mean.lerp(slopes, 1 - self._first)
        self._square = self._square.lerp(slopes.square(), 1 - _SQUARES)
        root = (1 - _SQUARES**self._count) ** 0.5
        tiny = _TINY if self._capped else _TINY * root
        sizes = self._rate * root / (1 - self._first**self._count) / (self._square.sqrt() + tiny)
        if self._capped:
            self._sizes = self._sizes.lerp(sizes, 1 - _BOUND)
            sizes = torch.minimum(sizes, self._sizes)
        taken: Tensor = sizes * self._mean
        return taken
