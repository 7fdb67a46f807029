"""Gradients of losses of which only values are known, along directions on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor


def units(count: int, like: Tensor, stream: torch.Generator) -> Tensor:
    """Draw directions uniformly from the unit sphere for each of n points.

    Args:
        count: Directions for each point.
        like: The points, (n, ...).
        stream: Where they are drawn from, on the CPU.

    Returns:
        (count, n, ...), each of l2 norm 1.
    """
    drawn = torch.randn((count, *like.shape), generator=stream).to(like)
    lengths = torch.linalg.vector_norm(drawn.flatten(2), dim=2)
    return drawn.div_(lengths.view(count, -1, *[1] * (like.dim() - 1)))


def forward_differences(losses: Tensor, base: Tensor, directions: Tensor, length: float) -> Tensor:
    """Estimate each point's gradient, D / m * sum of (L(a + mu u_j) - L(a)) / mu * u_j.

    Its mean is the gradient, its cosine with it about sqrt(m / (m + D - 1)).

    Args:
        losses: Losses of the probes, (m, n).
        base: Losses of the points, (n,).
        directions: Unit vectors u, (m, n, ...), of D numbers each.
        length: Length mu of a probe.

    Returns:
        Gradients, (n, ...).
    """
    size = directions[0, 0].numel()
    slopes = (losses - base) / length * (size / len(losses))
    return torch.einsum("mn,mn...->n...", slopes.to(directions), directions)
