"""Square attack: random search with square patches of shrinking side."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import corners, margin
from benchmark.registry import Source, attack
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Access, Norm, Problem, Queries, Steps

# Progress, in ten-thousandths of the horizon, beyond which the patch area halves once more.
_HALVINGS = torch.tensor([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])


@attack(
    source=Source(
        paper="Andriushchenko et al.: Square Attack (ECCV)",
        url="https://arxiv.org/abs/1912.00049",
        year=2020,
        code="https://github.com/max-andr/square-attack",
        differences=(
            "windows may touch the last row and column; the official code never changes them",
            "every image draws its own window and colours",
            "works on images that are not square: the side stays below the shorter edge",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF,),
    randomised=True,
)
def square(
    problem: Problem,
    rng: RowRng,
    *,
    p: Annotated[float, Field(gt=0, le=1)] = 0.05,
    horizon: Annotated[int, Field(gt=0)] | None = None,
) -> Steps:
    """Random search over linf-extreme patches (Algorithms 1 and 2 of the paper).

    Every query lies at a corner of the ball: each channel of a random square window is set to
    plus or minus eps, and the change is kept if the margin falls.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        p: Share of the image's area that the first window covers.
        horizon: Queries over which the window shrinks; none means the budget ("compressed").
    """
    rows, labels = problem.rows, problem.labels
    low, high = corners(problem.images, problem.threat.eps)
    channels, height, width = problem.images.shape[1:]
    stripes = rng.integers(rows, 2, (channels, 1, width)).bool()
    current = torch.where(stripes, high, low)
    replies = yield Queries(current, rows)
    best = margin(replies.scores, labels)
    span = horizon or problem.threat.budget
    while True:
        rows, labels, low, high, current, best, used = keep(
            ~replies.finished, rows, labels, low, high, current, best, replies.used
        )
        # The k-th proposal is query k + 1, so progress counts the queries spent so far.
        sides = _sides(used - 1, span, p, (height, width))
        window, before = [], []
        for side in torch.unique(sides).tolist():
            members = (sides == side).nonzero()[:, 0]
            place = _window(rng, rows, members, side, problem.images.shape)
            colours = _colours(rng, rows[members], (current, low, high), place)
            before.append(current.view(-1)[place])
            window.append(place)
            current.view(-1)[place] = torch.where(
                colours, high.view(-1)[place], low.view(-1)[place]
            )
        replies = yield Queries(current, rows)
        loss = margin(replies.scores, labels)
        better = loss < best
        best = torch.where(better, loss, best)
        for place, old in zip(window, before, strict=True):
            _undo(current, place, old, better)


def _sides(iteration: Tensor, span: int, p: float, shape: tuple[int, int]) -> Tensor:
    """Side of each row's window, (n,), by the official schedule of the area."""
    progress = iteration * 10_000 // span
    halvings = torch.bucketize(progress, _HALVINGS.to(progress.device))
    area = p / 2.0 ** halvings.double() * shape[0] * shape[1]
    return area.sqrt().round().long().clamp(1, max(min(shape) - 1, 1))


def _window(
    rng: RowRng, rows: Tensor, members: Tensor, side: int, shape: tuple[int, ...]
) -> Tensor:
    """Draw a window for each member; its flat places, (n, C, side * side)."""
    _, channels, height, width = shape
    limits = torch.tensor([height - side + 1, width - side + 1])
    top, left = rng.integers(rows[members], limits, (2,)).unbind(1)
    steps = torch.arange(side, device=rows.device)
    patch = (steps[:, None] * width + steps).view(1, 1, -1)
    planes = torch.arange(channels, device=rows.device)[None, :] + members[:, None] * channels
    start = planes * (height * width) + (top * width + left)[:, None]
    return start[:, :, None] + patch


def _colours(
    rng: RowRng, rows: Tensor, images: tuple[Tensor, Tensor, Tensor], place: Tensor
) -> Tensor:
    """Draw one sign per channel, uniformly among those that change something, (n, C, 1)."""
    channels = place.shape[1]
    code, other = rng.integers(rows, torch.tensor([2**channels, 2**channels - 1]), (2,)).unbind(1)
    now, low, high = (tensor.view(-1)[place] for tensor in images)
    at_low = ((now - low).abs() <= 1e-7).all(2)
    at_high = ((now - high).abs() <= 1e-7).all(2)
    bits = torch.arange(channels, device=rows.device)
    idle = (at_high.long() << bits).sum(1)  # the signs that change nothing, if there are such
    stuck = (at_low | at_high).all(1) & (code == idle)
    code = torch.where(stuck, code ^ (other + 1), code)
    return (((code[:, None] >> bits) & 1) == 1)[:, :, None]


def _undo(current: Tensor, place: Tensor, old: Tensor, better: Tensor) -> None:
    """Put back the windows of the rows whose proposal was no better."""
    size = current[0].numel()
    worse = (~better[place[:, 0, 0] // size]).nonzero()[:, 0]
    current.view(-1)[place[worse]] = old[worse]
