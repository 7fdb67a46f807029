"""Descent along gradients from forward differences; RGF, ZO-SGD and ZO-signSGD are its rules."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.geometry import column
from benchmark.objective import Objective
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Norm, Problem, Queries, Replies, Steps
from registry.moves.estimates import ROUND, Directions, directions, probes

_WIDER = 5.0  # of P-RGF: what a probe grows by when no direction shows a difference


@dataclass(frozen=True)
class Fan:
    """How the probes of a step are drawn, and what they are compared with.

    Attributes:
        count: Directions a step.
        probe: Root mean square of a probe over the pixel values.
        kind: Law of the directions.
        fresh: Ask for the baseline anew for each direction: 2 * count questions a step.
        widen: Widen the probes of images on whose probes the loss is flat (`auto_sigma`).
    """

    count: int
    probe: float
    kind: Directions = "gaussian"
    fresh: bool = False
    widen: bool = False


class Stand(NamedTuple):
    """Images that are still attacked, and where they stand.

    Attributes:
        rows: (n,) rows of the problem.
        current: (n, C, H, W).
        centres: Their clean images.
        base: Loss of `current`, (n,).
        left: Questions left, (n,).
        finished: (n,) bool.
        probe: Width of the probes, (n,).
        age: Turns since the width was last changed or tested, (n,).
    """

    rows: Tensor
    current: Tensor
    centres: Tensor
    base: Tensor
    left: Tensor
    finished: Tensor
    probe: Tensor
    age: Tensor

    def kept(self, mask: Tensor) -> Stand:
        """Drop images."""
        return Stand(*keep(mask, *self))


class Estimate(NamedTuple):
    """A gradient, (n, C, H, W), where the loss was flat on all probes, (n,) bool, and the rest."""

    gradient: Tensor
    flat: Tensor
    stand: Stand


Move = Callable[[Stand, Tensor], Tensor]  # images and their gradients -> the next iterates


def walk(problem: Problem, rng: RowRng, objective: Objective, fan: Fan, move: Move) -> Steps:
    """Ask the clean image; then estimate, move and ask the new iterate until the budget ends.

    The answer for an iterate is its label check and the baseline of its differences. A step costs
    `count` + 1 questions, or 2 * `count` with fresh baselines; the last uses as many directions
    as are left.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        objective: Loss whose gradient is estimated.
        fan: How probes are drawn.
        move: Makes the next iterates, inside ball and box.
    """
    differences = ForwardDifferences(problem, rng, objective, fan)
    stand = differences.start()
    stand = yield from differences.look(stand, stand.finished.logical_not())
    while len(stand.rows):
        stand = yield from differences.narrow(stand)
        gradient, flat, stand = yield from differences.estimate(stand)
        gradient, flat, *rest = keep(~stand.finished, gradient, flat, *stand)
        stand = Stand(*rest)
        stand = stand._replace(current=move(stand, gradient))
        stand, again = differences.widen(stand, flat)
        stand = yield from differences.look(stand, ~again)


class ForwardDifferences:
    """Asks probes and iterates; arguments as those of `walk`."""

    def __init__(self, problem: Problem, rng: RowRng, objective: Objective, fan: Fan) -> None:
        self._problem, self._rng, self._objective, self._fan = problem, rng, objective, fan
        size, threat = problem.images[0].numel(), problem.threat
        self._widest = threat.eps / (1.0 if threat.norm is Norm.LINF else size**0.5)

    def start(self) -> Stand:
        """All images where they are, their losses not known yet."""
        images, rows = self._problem.images, self._problem.rows
        base = images.new_zeros(len(rows))
        return Stand(
            rows=rows,
            current=images,
            centres=images,
            base=base,
            left=torch.full_like(rows, self._problem.questions),
            finished=torch.zeros_like(rows, dtype=torch.bool),
            probe=torch.full_like(base, self._fan.probe),
            age=torch.zeros_like(rows),
        )

    def look(self, stand: Stand, asked: Tensor) -> Generator[Queries, Replies, Stand]:
        """Ask where the `asked` images stand, and drop those that can make no further step."""
        place = asked.nonzero()[:, 0]
        if len(place):
            queries = Queries(*keep(asked, stand.current, stand.rows))
            values, stand = yield from self._ask(stand, queries, place)
            stand = stand._replace(base=stand.base.index_copy(0, place, values))
        return stand.kept(~stand.finished & (stand.left >= 2))

    def estimate(self, stand: Stand) -> Generator[Queries, Replies, Estimate]:
        """Estimate gradients, and leave each image the question for its next iterate."""
        fan, like = self._fan, stand.current
        asked = (stand.left // 2 if fan.fresh else stand.left - 1).clamp_max(fan.count)
        gradient, flat = torch.zeros_like(like), torch.ones_like(stand.finished)
        chunk = max(1, ROUND // ((1 + fan.fresh) * like[0].numel()))
        most = int(asked.max()) if len(asked) else 0
        for start in range(0, most, chunk):
            count = min(chunk, most - start)
            wanted = torch.arange(start, start + count, device=like.device) < asked[:, None]
            noise = directions(self._rng, stand.rows, count, like, fan.kind)
            rises, stand = yield from self._rises(stand, noise, wanted, first=start == 0)
            slopes = (rises / stand.probe[:, None]).masked_fill(~wanted, 0.0)
            gradient += torch.einsum("nk,nk...->n...", slopes, noise)
            flat &= (slopes == 0).all(1)
        return Estimate(gradient / column(asked, gradient), flat, stand)

    def widen(self, stand: Stand, flat: Tensor) -> tuple[Stand, Tensor]:
        """Widen the probes of flat images; tell which, for these estimate again as they are."""
        if not self._fan.widen:
            return stand, torch.zeros_like(flat)
        again = flat & (stand.probe < self._widest)
        wider = (stand.probe * _WIDER).clamp_max(self._widest)
        probe, age = torch.where(again, wider, stand.probe), (stand.age + 1).masked_fill(again, 0)
        return stand._replace(probe=probe, age=age), again

    def narrow(self, stand: Stand) -> Generator[Queries, Replies, Stand]:
        """Every second turn, let two probes of the first width tell if it shows differences."""
        fan = self._fan
        due = (stand.probe > fan.probe) & (stand.age >= 2) & (stand.left >= 4)
        if not fan.widen or not bool(due.any()):
            return stand
        place, some = due.nonzero()[:, 0], stand.kept(due)
        noise = directions(self._rng, some.rows, 2, some.current, fan.kind) * fan.probe
        queries = probes(self._problem, some.current, some.centres, some.rows, noise)
        values, stand = yield from self._ask(stand, queries, place.repeat_interleave(2))
        back = place[(values.view(-1, 2) != some.base[:, None]).all(1)]
        probe = stand.probe.index_fill(0, back, fan.probe)
        return stand._replace(probe=probe, age=stand.age.index_fill(0, place, 0)).kept(
            ~stand.finished
        )

    def _rises(
        self, stand: Stand, noise: Tensor, wanted: Tensor, *, first: bool
    ) -> Generator[Queries, Replies, tuple[Tensor, Stand]]:
        """By how much each wanted probe's loss exceeds its baseline, (n, k); others NaN."""
        offsets = noise * column(stand.probe, noise)
        if self._fan.fresh:
            offsets = torch.stack((torch.zeros_like(noise), offsets), 2).flatten(1, 2)
            wanted = wanted.repeat_interleave(2, 1)
            wanted[:, 0] &= not first  # known: it was the label check
        queries = probes(self._problem, stand.current, stand.centres, stand.rows, offsets)
        place = torch.arange(len(wanted), device=noise.device).repeat_interleave(wanted.shape[1])
        images, rows, place = keep(wanted.flatten(), *queries, place)
        values, stand = yield from self._ask(stand, Queries(images, rows), place)
        whole = values.new_full(wanted.shape, torch.nan).masked_scatter_(wanted, values)
        if not self._fan.fresh:
            return whole - stand.base[:, None], stand
        before, after = whole[:, 0::2], whole[:, 1::2]
        if first:
            before[:, 0] = stand.base
        return after - before, stand

    def _ask(
        self, stand: Stand, queries: Queries, place: Tensor
    ) -> Generator[Queries, Replies, tuple[Tensor, Stand]]:
        """Ask about the images at these places; return losses, and who may ask how much now."""
        replies = yield queries
        left = stand.left.index_copy(0, place, replies.remaining)
        finished = stand.finished.index_copy(0, place, replies.finished)
        values = self._objective(replies, queries.rows)
        return values, stand._replace(left=left, finished=finished)
