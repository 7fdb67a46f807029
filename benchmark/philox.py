"""Counter-based random numbers on a GPU: Philox4x32-10 (Salmon et al. 2011) and Box-Muller."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Scramble counters: ten rounds of Philox4x32.

    Args:
        counter: Four int64 tensors with values below 2**32, broadcastable.
        key: Two such tensors.

    Returns:
        Four tensors of 32 random bits each, as int64.
    """
    a, b, c, d = counter
    left, right = key
    for _ in range(10):
        # The products need 64 unsigned bits: the arithmetic wraps and the shift is masked.
        high0, low0 = _product(a, _MULTIPLIERS[0])
        high1, low1 = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high1 ^ b ^ left, low1, high0 ^ d ^ right, low0
        left, right = (left + _WEYL[0]) & _LOW, (right + _WEYL[1]) & _LOW
    return [a, b, c, d]


def _product(value: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    product = value * factor
    return (product >> 32) & _LOW, product & _LOW


def normals(keys: Tensor, draws: Tensor, count: int) -> Tensor:
    """Draw standard normals that depend on key and draw number alone.

    Args:
        keys: (n, 2) int64, the two 32-bit halves of each stream's key.
        draws: (n,) int64 below 2**32, how often the stream was used before.
        count: Normals for each stream and draw.

    Returns:
        (n, count) float32.
    """
    a, b, c, d = _fractions(keys, draws, count)
    first, second = (-2.0 * a.log()).sqrt(), (-2.0 * c.log()).sqrt()
    turn0, turn1 = 2 * math.pi * b, 2 * math.pi * d
    parts = (first * turn0.cos(), first * turn0.sin(), second * turn1.cos(), second * turn1.sin())
    return torch.stack(parts, 2).flatten(1)[:, :count]


def uniforms(keys: Tensor, draws: Tensor, count: int) -> Tensor:
    """Draw uniformly from (0, 1), (n, count) float32; see `normals`."""
    return torch.stack(_fractions(keys, draws, count), 2).flatten(1)[:, :count]


def _fractions(keys: Tensor, draws: Tensor, count: int) -> list[Tensor]:
    """Draw four tensors of numbers in (0, 1), (n, count / 4)."""
    blocks = torch.arange(-(-count // 4), device=keys.device)[None]
    zero = torch.zeros_like(blocks)
    words = philox(
        [blocks, draws[:, None].expand(-1, blocks.shape[1]), zero, zero],
        [keys[:, :1], keys[:, 1:]],
    )
    # 24 bits, centred in their cells, so that the logarithm never sees zero.
    return [((word >> 8).float() + 0.5) * 2.0**-24 for word in words]
