"""Gradients estimated from differences of losses, and steps along them (NES, RGF, Bandits, ...)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from benchmark.geometry import column, length, project
from benchmark.objective import Objective
from benchmark.rng import RowRng
from benchmark.types import Norm, Probes, Problem, Queries, Replies, Threat

Directions = Literal["gaussian", "sphere"]

ROUND = 2**19  # pixel values of probes an image sends in a round, so that a round fits in memory


class Estimate(NamedTuple):
    """An estimated gradient.

    Attributes:
        gradient: (n, C, H, W), NaN for images that were finished on the way.
        finished: (n,) bool.
        loss: Mean loss of the probes, (n,).
    """

    gradient: Tensor
    finished: Tensor
    loss: Tensor


def probes(
    problem: Problem, current: Tensor, centres: Tensor, rows: Tensor, offsets: Tensor
) -> Queries:
    """Place the probes of a round as the probe policy allows.

    Args:
        problem: The images under attack.
        current: Where the images stand, (n, C, H, W).
        centres: Their clean images.
        rows: (n,) rows of the problem.
        offsets: (n, k, C, H, W); overwritten.

    Returns:
        Queries of k probes an image, in order.
    """
    count = offsets.shape[1]
    offsets += current[:, None]
    flat = offsets.flatten(0, 1)
    if problem.probes is Probes.BALL:
        around = centres.repeat_interleave(count, 0)
        flat = project(flat, around, problem.threat.eps, problem.threat.norm)
    elif problem.probes is Probes.BOX:
        flat.clamp_(0.0, 1.0)
    return Queries(flat, rows.repeat_interleave(count))


def antithetic(
    problem: Problem,
    rng: RowRng,
    objective: Objective,
    place: tuple[Tensor, Tensor, Tensor],
    pairs: int,
    probe: float,
) -> Generator[Queries, Replies, Estimate]:
    """Estimate from pairs of opposite Gaussian probes; costs 2 * pairs questions an image.

    Args:
        problem: The images under attack.
        rng: One stream per image.
        objective: Loss whose gradient is estimated.
        place: Rows, where they stand, and their clean images.
        pairs: Pairs, at least 1.
        probe: Standard deviation of a probe in each pixel value.
    """
    rows, current, centres = place
    gradient = torch.zeros_like(current)
    total = current.new_zeros(len(rows))
    finished = torch.zeros_like(rows, dtype=torch.bool)
    chunk = max(1, ROUND // (2 * centres[0].numel()))
    for start in range(0, pairs, chunk):
        count = min(chunk, pairs - start)
        noise = directions(rng, rows, count, current)
        offsets = torch.stack((noise, -noise), 2).flatten(1, 2).mul_(probe)
        queries = probes(problem, current, centres, rows, offsets)
        replies = yield queries
        values = objective(replies, queries.rows).view(-1, count, 2)
        slopes = (values[:, :, 0] - values[:, :, 1]) / (2 * probe)
        gradient += torch.einsum("nk,nk...->n...", slopes, noise)
        total += values.sum((1, 2))
        finished = replies.finished.view(len(rows), -1)[:, 0]
    return Estimate(gradient / pairs, finished, total / (2 * pairs))


def directions(
    rng: RowRng, rows: Tensor, count: int, like: Tensor, kind: Directions = "gaussian"
) -> Tensor:
    """Draw directions whose pixel values have mean square 1, (n, count, C, H, W).

    Args:
        rng: One stream per image.
        rows: (n,) rows to draw for.
        count: Directions for each.
        like: (n, C, H, W), for shape and type.
        kind: Standard normals, or these scaled so that the mean square is exactly 1.
    """
    noise = rng.normal(rows.repeat_interleave(count), like.shape[1:]).to(like)
    if kind == "sphere":
        noise *= column(noise[0].numel() ** 0.5 / length(noise).clamp_min(1e-12), noise)
    return noise.view(len(rows), count, *like.shape[1:])


def descend(
    current: Tensor, centres: Tensor, gradient: Tensor, stride: float | Tensor, threat: Threat
) -> Tensor:
    """Step against a gradient in the geometry of the norm, then project.

    Args:
        current: Where the images stand, (n, C, H, W).
        centres: Their clean images.
        gradient: Direction of ascent; a zero gradient moves nothing.
        stride: Length of the step in the threat's norm; one number, or (n,).
        threat: Norm and radius.
    """
    if isinstance(stride, Tensor):
        stride = column(stride, current)
    if threat.norm is Norm.LINF:
        step = gradient.sign()
    else:
        step = gradient / column(length(gradient).clamp_min(1e-12), gradient)
    return project(current - stride * step, centres, threat.eps, threat.norm)
