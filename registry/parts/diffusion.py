"""The variance-preserving diffusion: images x in [-1, 1] turn into noise, and back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

_FIRST, _LAST = 0.1, 20.0  # beta(0) and beta(1), Song et al. 2021, appendix C

Network = Callable[[Tensor, Tensor], Tensor]  # (n, C, H, W) and times (n,) to noise (n, C, H, W)
Draw = Callable[[], Tensor]  # standard normals, (n, C, H, W)
Solver = Callable[[Tensor, Tensor, tuple[Tensor, Tensor], Draw], Tensor]


def scales(times: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of image and noise at given times.

    Args:
        times: t in [0, 1], any shape.

    Returns:
        sqrt(abar(t)) and sqrt(1 - abar(t)) with abar(t) = exp(-9.95 t^2 - 0.1 t), both of the
        shape of the times.
    """
    decay = times * (_FIRST + (_LAST - _FIRST) / 2 * times)
    return (-decay / 2).exp(), (-torch.expm1(-decay)).sqrt()


def noised(images: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Draw x_t given x_0 (Song et al. 2021, equation 29).

    Args:
        images: x_0, (n, C, H, W) in [-1, 1].
        times: t, (n,).
        noise: Standard normals, (n, C, H, W).

    Returns:
        sqrt(abar) x_0 + sqrt(1 - abar) noise, (n, C, H, W).
    """
    kept, spread = (each.view(-1, 1, 1, 1) for each in scales(times))
    return kept * images + spread * noise


def reverse(noisy: Tensor, network: Network, grid: Tensor, solver: Solver, draw: Draw) -> Tensor:
    """Go back from x_t to x_0 along a grid of times.

    Args:
        noisy: x_t at the first time of the grid, (n, C, H, W).
        network: Predicts the noise in x_t.
        grid: Falling times down to 0, (steps + 1,), float64.
        solver: `ancestral`, `ddim` or `sde`.
        draw: Source of fresh noise.

    Returns:
        x_0, (n, C, H, W), not clamped.
    """
    for time, later in pairwise(grid):
        noise = network(noisy, noisy.new_full((len(noisy),), float(time)))
        noisy = solver(noisy, noise, (time, later), draw)
    return noisy


def ancestral(noisy: Tensor, noise: Tensor, span: tuple[Tensor, Tensor], draw: Draw) -> Tensor:
    """Draw x_s of the Gaussian q(x_s | x_t, x_0) at the estimated x_0 (Ho et al. 2020, eq. 6-7).

    Args:
        noisy: x_t, (n, C, H, W).
        noise: The network's prediction, (n, C, H, W).
        span: t and s < t, float64.
        draw: Source of fresh noise; not asked if s = 0, where the estimate itself is returned.
    """
    (kept, spread), (kept_then, spread_then) = scales(span[0]), scales(span[1])
    share = kept / kept_then
    fresh = (1 - share.square()) / spread.square()
    mean = kept_then * fresh * estimate(noisy, noise, span[0])
    mean = mean + share * (spread_then / spread).square() * noisy
    return mean + fresh.sqrt() * spread_then * draw() if span[1] > 0 else mean


def ddim(noisy: Tensor, noise: Tensor, span: tuple[Tensor, Tensor], draw: Draw) -> Tensor:
    """Go from x_t to x_s without fresh noise (Song et al. 2021, DDIM, eq. 12); see `ancestral`."""
    del draw
    (kept, spread), (kept_then, spread_then) = scales(span[0]), scales(span[1])
    clean = estimate(noisy, noise, span[0])
    return kept_then * clean + spread_then / spread * (noisy - kept * clean)


def sde(noisy: Tensor, noise: Tensor, span: tuple[Tensor, Tensor], draw: Draw) -> Tensor:
    """Take an Euler-Maruyama step of the reverse SDE (Nie et al. 2022); see `ancestral`."""
    beta = (_FIRST + (_LAST - _FIRST) * span[0]) * (span[0] - span[1])  # times the step
    return noisy + beta * (noisy / 2 - noise / scales(span[0])[1]) + beta.sqrt() * draw()


def estimate(noisy: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Estimate x_0 from x_t and the noise in it, clipped to [-1, 1], (n, C, H, W)."""
    kept, spread = scales(time)
    return ((noisy - spread * noise) / kept).clamp(-1.0, 1.0)


SOLVERS: dict[str, Solver] = {"ancestral": ancestral, "ddim": ddim, "sde": sde}
