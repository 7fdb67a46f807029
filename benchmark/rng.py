"""One random stream per image, seeded by names, so that images are islands."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import philox
from benchmark.rows import occurrence

# Held by whatever draws from, or seeds, the global random streams: a process has one of each.
alone = threading.RLock()

_LOW = (1 << 64) - 1
_BLOCK = 512  # 32-bit words drawn at once for a row


def seed_from(*names: object) -> int:
    """Hash names and numbers into a 128-bit seed: equal in every process and next year."""
    text = json.dumps(names, sort_keys=True, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


class RowRng:
    """Independent random streams, one per row.

    A draw advances the streams of the rows it names and no other, so what a row gets depends
    on its own history alone. A row may be named several times: it draws once for each, in that
    order. Integers come from numpy's SFC64 and are equal on every device.
    Normals come from SFC64 on a CPU and from Philox on a GPU, both by Box-Muller from 24-bit
    fractions (so none is beyond 5.8): same law, other numbers.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # The first half of a seed opens the stream of integers, the second that of normals.
        self._words = [np.random.SFC64(seed & _LOW) for seed in seeds]
        self._bulk = [np.random.Generator(np.random.SFC64(seed >> 64)) for seed in seeds]
        halves = [(seed >> 64 & _LOW >> 32, seed >> 96) for seed in seeds]
        self._keys = torch.tensor(halves, dtype=torch.int64, device=self.device).view(-1, 2)
        self._drawn = torch.zeros(len(seeds), dtype=torch.int64, device=self.device)
        self._block = torch.zeros((len(seeds), _BLOCK), dtype=torch.int64)
        self._next = torch.full((len(seeds),), _BLOCK, dtype=torch.int64)

    def integers(self, rows: Tensor, high: int | Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw integers from 0 to high - 1.

        Args:
            rows: (n,) rows to draw for.
            high: Exclusive upper end, at most 2**31; one number, or a tensor that broadcasts
                against the result.
            shape: Shape drawn for each row.

        Returns:
            (n, *shape), int64, on the device of the streams.
        """
        words = self._draw(rows.cpu(), math.prod(shape)).view(len(rows), *shape)
        drawn = (words * torch.as_tensor(high).cpu()) >> 32
        # From pinned memory the GPU fetches them while the CPU goes on.
        if self.device.type == "cuda":
            drawn = drawn.pin_memory()
        return drawn.to(self.device, non_blocking=True)

    def signs(self, rows: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw -1 or +1 with equal chance, (n, *shape), float32."""
        return self.integers(rows, 2, shape).mul_(2).sub_(1).float()

    def uniform(self, rows: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw uniformly from [0, 1), (n, *shape), float32."""
        return self.integers(rows, 2**24, shape).float().mul_(2.0**-24)

    def normal(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Draw standard normals, (n, *shape), float32."""
        count = math.prod(shape)
        if self.device.type != "cpu":
            return self._counted(philox.normals, rows, count).view(len(rows), *shape)
        half = -(-count // 2)
        fractions = self._fractions(rows, 2 * half)
        # numpy, because what it answers for a number does not depend on the numbers beside it.
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - fractions[:, :half]))
        turn = np.float32(2 * math.pi) * fractions[:, half:]
        parts = [radius * np.cos(turn), radius * np.sin(turn)]
        return torch.from_numpy(np.concatenate(parts, 1)[:, :count]).view(len(rows), *shape)

    def cube(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Draw uniformly from [-1, 1], (n, *shape), float32, from the streams of normals."""
        count = math.prod(shape)
        if self.device.type != "cpu":
            fractions = self._counted(philox.uniforms, rows, count)
        else:
            fractions = torch.from_numpy(self._fractions(rows, count))
        return fractions.mul_(2).sub_(1).view(len(rows), *shape)

    def _counted(
        self, draw: Callable[[Tensor, Tensor, int], Tensor], rows: Tensor, count: int
    ) -> Tensor:
        """Draw for all rows at once by counting, (n, count)."""
        draws = self._drawn[rows] + occurrence(rows)
        self._drawn.index_add_(0, rows, torch.ones_like(rows))
        return draw(self._keys[rows], draws, count)

    def _fractions(self, rows: Tensor, count: int) -> NDArray[np.float32]:
        """Draw uniformly from [0, 1) for one row after the other, (n, count)."""
        out = np.empty((len(rows), count), dtype=np.float32)
        for row, values in zip(rows.tolist(), out, strict=True):
            self._bulk[row].random(dtype=np.float32, out=values)
        return out

    def _draw(self, rows: Tensor, count: int) -> Tensor:
        if len(rows) < 2 or bool((rows[1:] > rows[:-1]).all()):  # as nearly always: no row twice
            return self._draw_once(rows, count)
        turn = occurrence(rows)
        words = torch.empty((len(rows), count), dtype=torch.int64)
        for number in range(int(turn.max()) + 1):
            mine = turn == number
            words[mine] = self._draw_once(rows[mine], count)
        return words

    def _draw_once(self, rows: Tensor, count: int) -> Tensor:
        """Draw for rows that are named once each."""
        if count > _BLOCK:
            parts = [self._draw_once(rows, min(_BLOCK, count - i)) for i in range(0, count, _BLOCK)]
            return torch.cat(parts, 1)
        first = self._next[rows]
        if bool((first + count > _BLOCK).any()):
            self._refill(rows[first + count > _BLOCK])
            first = self._next[rows]
        self._next[rows] = first + count
        return self._block[rows[:, None], first[:, None] + torch.arange(count)]

    def _refill(self, rows: Tensor) -> None:
        for row in rows.tolist():
            raw = self._words[row].random_raw(_BLOCK // 2).view(np.uint32).astype(np.int64)
            self._block[row] = torch.from_numpy(raw)
        self._next[rows] = 0
