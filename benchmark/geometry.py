"""Balls and boxes, batched over the first dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.types import Norm

# Rounding allowed outside a ball, relative to max(eps, 1): an l2 norm sums many roundings.
_TOLERANCE = {Norm.LINF: 1e-6, Norm.L2: 1e-5}


def column(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value per row, (n,), so that it broadcasts against `like`, (n, ...)."""
    return values.view(-1, *([1] * (like.dim() - 1)))


def distance(images: Tensor, centres: Tensor, norm: Norm) -> Tensor:
    """Distance of each image from its centre, (n,), in pixel units."""
    delta = (images - centres).flatten(1)
    if norm is Norm.LINF:
        return delta.abs().amax(1)
    return length(delta)


def allowed(eps: float, norm: Norm) -> float:
    """Radius of a ball with the rounding that is allowed."""
    return eps + _TOLERANCE[norm] * max(eps, 1.0)


def length(delta: Tensor) -> Tensor:
    """Euclidean length of each row, (n,)."""
    lengths: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return lengths


def corners(centres: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Lowest and highest image of the linf ball cut with the box, each (n, C, H, W)."""
    return (centres - eps).clamp_(min=0.0), (centres + eps).clamp_(max=1.0)


def project(images: Tensor, centres: Tensor, eps: float, norm: Norm) -> Tensor:
    """Bring images into the ball around their centres, then into the box [0, 1].

    For linf this is the projection onto the intersection. For l2 the box can only bring the
    image nearer to its centre, so the result lies in both sets.
    """
    if norm is Norm.LINF:
        low, high = corners(centres, eps)
        return torch.minimum(torch.maximum(images, low), high)
    delta = images - centres
    shrink = (eps / length(delta).clamp_min(1e-12)).clamp_max(1.0)
    return (centres + delta * column(shrink, delta)).clamp_(0.0, 1.0)


def push(images: Tensor, centres: Tensor, eps: float, norm: Norm) -> Tensor:
    """Lengthen perturbations inside the ball to its surface, then clip to the box [0, 1].

    Images outside the ball stay as they are.
    """
    stretch = eps / distance(images, centres, norm).clamp_min(1e-12)
    moved = centres + (images - centres) * column(stretch, images)
    return torch.where(column(stretch > 1, images), moved.clamp_(0.0, 1.0), images)
