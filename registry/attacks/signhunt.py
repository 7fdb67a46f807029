"""SignHunter: flip ever smaller chunks of a sign vector, keep what does not raise the loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from benchmark.geometry import corners, project
from benchmark.objective import Loss, Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Access, Norm, Problem, Queries, Steps

Order = Literal["hwc", "chw"]


@attack(
    source=Source(
        paper="Al-Dujaili and O'Reilly: Sign Bits Are All You Need for Black-Box Attacks (ICLR)",
        url="https://openreview.net/forum?id=SygW0TEFwH",
        year=2020,
        code="https://github.com/ash-aldujaili/blackbox-adv-examples-signhunter",
        differences=(
            "the loss is that of the clipped image; the official code takes it before clipping",
            "losses are compared, not slopes: the origin is never asked, and a flip is one query",
            "an image goes on to its own budget; there the first to reach it stops the batch",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=False,
    examples=("[order=chw,restart=keep-origin]",),
    presets={
        "official": Preset(
            "ash-aldujaili/blackbox-adv-examples-signhunter, CIFAR-10 and ImageNet",
            {},
            note="there the loss is taken before clipping, and the first step counts four queries",
        ),
        "unig": Preset(
            "UniG, CIFAR-10", {}, Norm.LINF, note="there the loss is taken before clipping"
        ),
        "unig-imagenet": Preset(
            "UniG, ImageNet",
            {"order": "chw"},
            Norm.LINF,
            note="there the loss is taken before clipping",
        ),
        "rfd": Preset(
            "randomized feature defense (mail-research), 10,000 queries",
            {"order": "chw", "loss": "margin"},
            Norm.LINF,
            note="there images may leave the box",
        ),
        "blackboxbench": Preset(
            "BlackboxBench, from which RND was evaluated", {"loss": "margin"}, Norm.LINF
        ),
        "mcg": Preset(
            "MCG-Blackbox",
            {"order": "chw", "restart": "keep-origin"},
            note="the loss is the official one here; whether it is there was not checked",
        ),
    },
)
def signhunt(
    problem: Problem,
    rng: RowRng,
    *,
    order: Order = "hwc",
    restart: Literal["official", "keep-origin"] = "official",
    loss: Loss = "ce",
) -> Steps:
    """Divide and conquer over the signs of the perturbation.

    Every pixel value starts at plus eps (l2: plus eps / sqrt(D)). Level h flips each of 2**h
    chunks in turn; a flip costs one query and is kept unless the loss rises. After the chunks of
    one pixel value the attack starts again.

    Args:
        problem: Images to attack.
        rng: Not used: nothing is drawn.
        order: Order of pixel values of which a chunk is a run: by rows with all channels
            together (hwc), or one channel after the other (chw).
        restart: What a new pass starts from. `official`: all signs plus around the image found
            so far, asked anew (one query). `keep-origin`: the signs found so far.
        loss: Loss that must not rise.
    """
    del rng
    objective, signs = Objective(problem, loss), _Signs(problem, order)
    for turn in count():
        if turn == 0 or restart == "official":
            signs.begin()
            replies = yield Queries(signs.shown(), signs.rows)
            signs.settle(objective(replies, signs.rows), ~replies.finished)
        for start, stop in chunks(problem.images[0].numel()):
            signs.flip(start, stop)
            replies = yield Queries(signs.shown(), signs.rows)
            signs.settle(objective(replies, signs.rows), ~replies.finished)


def chunks(size: int) -> Iterator[tuple[int, int]]:
    """Bounds of the chunks of one pass over `size` values, level by level."""
    for level in range((size - 1).bit_length() + 1):
        length = -(-size // 2**level)
        for start in range(0, size, length):
            yield start, min(start + length, size)


class _Signs:
    """Sign vectors around an origin, of the images that are still attacked.

    Attributes:
        rows: (n,) rows of the problem.
    """

    def __init__(self, problem: Problem, order: Order) -> None:
        self.rows, self._centres, self._threat = problem.rows, problem.images, problem.threat
        self._low = self._high = self._current = problem.images
        self._best = problem.images.new_zeros(len(self.rows))
        places = torch.arange(problem.images[0].numel(), device=self.rows.device)
        if order == "hwc":
            places = places.view(problem.images.shape[1:]).permute(1, 2, 0).flatten()
        self._order, self._place = places, places[:0]
        self._old = torch.empty(0)
        self._begun = self._scaled = False

    def begin(self) -> None:
        """Make the present images the origins, and all signs plus."""
        origins, eps = self.shown(), self._threat.eps
        if self._threat.norm is Norm.LINF:
            low, high = corners(self._centres, eps)
            self._low = torch.maximum(origins - eps, low)
            self._high = torch.minimum(origins + eps, high)
        else:
            stride = eps / len(self._order) ** 0.5
            if self._begun:  # sums of two sign vectors may be too long
                self._scaled = True
                self._low, self._high = origins - stride, origins + stride
            else:
                self._low, self._high = corners(origins, stride)
        self._current, self._place = self._high.clone(), self._order[:0]
        self._best = torch.full_like(self._best, torch.inf)
        self._begun = True

    def shown(self) -> Tensor:
        """Images of the present signs, in ball and box."""
        if self._scaled:
            return project(self._current, self._centres, self._threat.eps, self._threat.norm)
        return self._current

    def flip(self, start: int, stop: int) -> None:
        """Flip a chunk of signs in place."""
        self._place = self._order[start:stop]
        self._old, low, high = (
            part.flatten(1).index_select(1, self._place)
            for part in (self._current, self._low, self._high)
        )
        self._write(torch.where(self._old == high, low, high))

    def settle(self, loss: Tensor, alive: Tensor) -> None:
        """Keep the last flip of the images whose loss did not rise, and the rows still alive."""
        kept = loss <= self._best
        self._best = torch.where(kept, loss, self._best)
        if len(self._place):
            now = self._current.flatten(1).index_select(1, self._place)
            self._write(torch.where(kept[:, None], now, self._old))
        self.rows, self._centres, self._low, self._high, self._current, self._best = keep(
            alive, self.rows, self._centres, self._low, self._high, self._current, self._best
        )

    def _write(self, values: Tensor) -> None:
        self._current.view(len(self.rows), -1).index_copy_(1, self._place, values)
