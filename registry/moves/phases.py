"""Images that are each in a phase of their own, asked together so that none waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.geometry import column
from benchmark.types import Problem, Queries, Steps

DONE = -1  # an image in this phase asks nothing more


class Phase(NamedTuple):
    """What images in one phase ask, and what they make of the answers.

    Attributes:
        ask: Gets the rows in this phase, (n,), and gives at least one question for each;
            several of one row stand together.
        tell: Gets these questions and which of them were adversarial, (n,) bool, and moves images
            to other phases. For images that are finished the answers mean nothing, and nothing
            comes of them: they ask no more.
    """

    ask: Callable[[Tensor], Queries]
    tell: Callable[[Queries, Tensor], None]


def phased(problem: Problem, phases: Sequence[Phase], at: Tensor) -> Steps:
    """Ask about every image what its phase asks, until none is left.

    Args:
        problem: The images under attack.
        phases: The phases; their places are the numbers in `at`.
        at: (B,) int64, the phase of each image or `DONE`; `tell` changes it.
    """
    live = torch.ones_like(at, dtype=torch.bool)
    while True:
        rows = [(live & (at == number)).nonzero()[:, 0] for number in range(len(phases))]
        groups = [(p, p.ask(r)) for p, r in zip(phases, rows, strict=True) if len(r)]
        if not groups:
            return
        asked = [queries for _, queries in groups]
        together = (
            asked[0] if len(asked) == 1 else Queries(*map(torch.cat, zip(*asked, strict=True)))
        )
        replies = yield together
        hits = problem.adversarial(replies.labels, together.rows)
        live[together.rows[replies.finished]] = False
        parts = torch.split(hits, [len(queries.rows) for queries in asked])
        for (phase, queries), hit in zip(groups, parts, strict=True):
            phase.tell(queries, hit)


def group_size(pixels: int) -> int:
    """Questions that one image of so many pixel values may ask in a round.

    A function of the image size alone, so that no image feels its neighbours.
    """
    return max(1, min(64, 100_000 // pixels))


def blend(centres: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Go from centres, (n, C, H, W), to other images by a share, (n,), of the way."""
    way = column(share.to(centres), centres)
    return (centres + way * (others - centres)).clamp_(0.0, 1.0)


def clip_around(centres: Tensor, others: Tensor, radius: Tensor) -> Tensor:
    """Clip other images to linf balls around centres; radius (n,), pixel units."""
    reach = column(radius.to(centres), centres)
    return torch.minimum(torch.maximum(others, centres - reach), centres + reach)
