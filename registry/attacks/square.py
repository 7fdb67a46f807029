"""Square attack: random search with square patches of shrinking side."""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, corners, length
from benchmark.objective import Loss, Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Access, Aim, Norm, Problem, Queries, Steps
from registry.moves.windows import bump, corner, overlap, places, sides

_UNCOMPRESSED = 10_000  # queries that the schedule was designed for


@attack(
    source=Source(
        paper="Andriushchenko et al.: Square Attack (ECCV)",
        url="https://arxiv.org/abs/1912.00049",
        year=2020,
        code="https://github.com/max-andr/square-attack",
        differences=(
            "windows may touch the last row and column; the official code never changes them",
            "every image draws its own windows, colours and orientation",
            "works on images that are not square: the side stays below the shorter edge",
            "l2: the first perturbation is always five tiles by five, each with its own sign",
            "l2: lost mass is measured anew at every proposal, so that rounding cannot add up",
            "linf: the first window covers 0.8 of the image by default, as in AutoAttack; with the "
            "published 0.05 noise defenses withstand it longer (docs/protocol.md, Parity)",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    examples=("[refresh=3,loss=ce]",),
    version=2,
    presets={
        "official": Preset(
            "max-andr/square-attack, ImageNet and CIFAR-10, linf", {"p": 0.05}, Norm.LINF
        ),
        "official-l2": Preset("max-andr/square-attack, ImageNet, l2", {"p": 0.1}, Norm.L2),
        "official-robust": Preset(
            "max-andr/square-attack, post-averaging, CLP and LSQ models", {"p": 0.3}, Norm.LINF
        ),
        "autoattack": Preset(
            "AutoAttack (fra31/auto-attack), 5,000 queries, any norm",
            {"p": 0.8, "horizon": _UNCOMPRESSED},
            note="there one window serves the whole batch, and windows that change nothing count",
        ),
        "unig": Preset("UniG, CIFAR-10, defended victims", {"p": 0.05}, Norm.LINF),
        "unig-imagenet": Preset("UniG, ImageNet, defended victims", {"p": 0.8}, Norm.LINF),
        "aaa": Preset(
            "AAA, CIFAR-10, standard victim, 2,500 queries",
            {"p": 0.05, "horizon": _UNCOMPRESSED},
            Norm.LINF,
            note="there images are rounded down to 8 bits inside the victim",
        ),
        "aaa-robust": Preset(
            "AAA, every other victim", {"p": 0.3, "horizon": _UNCOMPRESSED}, Norm.LINF
        ),
        "rfd": Preset(
            "randomized feature defense (mail-research), 10,000 queries",
            {"p": 0.05},
            Norm.LINF,
            note="there repeated questions slow the schedule down: progress counts questions",
        ),
        "blackboxbench": Preset(
            "BlackboxBench, from which RND was evaluated",
            {"p": 0.05, "horizon": _UNCOMPRESSED},
            note="its l2 patch is normalised row by row",
        ),
    },
)
def square(
    problem: Problem,
    rng: RowRng,
    *,
    p: Annotated[float, Field(gt=0, le=1)] | None = None,
    horizon: Annotated[int, Field(gt=0)] | None = None,
    loss: Loss | None = None,
    refresh: Annotated[int, Field(ge=0)] = 0,
) -> Steps:
    """Random search over patches at the surface of the ball (Algorithms 1 to 3 of the paper).

    linf: each channel of a random square window is set to plus or minus eps. l2: one window
    gives its mass to a bump in another. The change is kept if the loss falls. A proposal costs
    one query, and so does the start.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        p: Share of the image's area that the first window covers; none means 0.8 for linf,
            0.1 for l2.
        horizon: Queries over which the window shrinks; none means the budget ("compressed").
        loss: Loss that has to fall; none means the margin, and cross-entropy when targeted.
        refresh: Proposals after which the kept image is asked again, so that one lucky answer
            of a randomised victim is not believed for ever; 0 means never.
    """
    threat = problem.threat
    targeted = threat.aim is Aim.TARGETED
    objective = Objective(problem, loss or ("ce" if targeted else "margin"))
    moves: _Moves = _Corners(problem) if threat.norm is Norm.LINF else _Sphere(problem)
    area = p or (0.8 if threat.norm is Norm.LINF else 0.1)
    shape = (problem.images.shape[2], problem.images.shape[3])
    span = horizon or threat.budget
    rows = problem.rows
    current = moves.start(rng, rows)
    replies = yield Queries(current, rows)
    best, begun, turn = objective(replies, rows), replies.used, 0
    looks = torch.zeros_like(best)
    while True:
        alive, used = ~replies.finished, replies.used
        moves.keep(alive)
        rows, current, best, looks, begun, used = keep(
            alive, rows, current, best, looks, begun, used
        )
        turn += 1
        again = refresh > 0 and turn % (refresh + 1) == 0
        undo: list[tuple[Tensor, Tensor]] = []
        if not again:
            side = sides(used - begun, span, area, shape, odd=threat.norm is Norm.L2)
            for one in torch.unique(side).tolist():
                undo += moves.propose(rng, rows, current, (side == one).nonzero()[:, 0], one)
        replies = yield Queries(current, rows)
        value = objective(replies, rows)
        if again:  # the mean of all looks but the one that was chosen for being low
            best, looks = (best * looks + value) / (looks + 1), looks + 1
            continue
        better = value < best
        best, looks = torch.where(better, value, best), looks.masked_fill(better, 0)
        for place, old in reversed(undo):
            _put_back(current, place, old, better)


class _Moves(Protocol):
    """Places patches; holds what it needs of the images that are still attacked."""

    def keep(self, alive: Tensor) -> None:
        """Drop the rows that are finished."""

    def start(self, rng: RowRng, rows: Tensor) -> Tensor:
        """Make the first images, (n, C, H, W)."""

    def propose(
        self, rng: RowRng, rows: Tensor, current: Tensor, members: Tensor, side: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Change windows of `members` in place; return places and what was there."""


class _Corners:
    """linf: every channel of a window at the lowest or the highest value."""

    def __init__(self, problem: Problem) -> None:
        self._low, self._high = corners(problem.images, problem.threat.eps)

    def keep(self, alive: Tensor) -> None:
        self._low, self._high = keep(alive, self._low, self._high)

    def start(self, rng: RowRng, rows: Tensor) -> Tensor:
        stripes = rng.integers(rows, 2, (self._low.shape[1], 1, self._low.shape[3])).bool()
        return torch.where(stripes, self._high, self._low)

    def propose(
        self, rng: RowRng, rows: Tensor, current: Tensor, members: Tensor, side: int
    ) -> list[tuple[Tensor, Tensor]]:
        chosen, shape = rows[members], current.shape
        place = places(members, corner(rng, chosen, side, shape, 1)[:, 0], side, shape)
        old, low, high = (part.view(-1)[place] for part in (current, self._low, self._high))
        current.view(-1)[place] = torch.where(_colours(rng, chosen, old, low, high), high, low)
        return [(place, old)]


def _colours(rng: RowRng, rows: Tensor, now: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Draw one sign per channel, uniformly among those that change something, (n, C, 1)."""
    channels = now.shape[1]
    code, other = rng.integers(rows, torch.tensor([2**channels, 2**channels - 1]), (2,)).unbind(1)
    at_low = ((now - low).abs() <= 1e-7).all(2)
    at_high = ((now - high).abs() <= 1e-7).all(2)
    bits = torch.arange(channels, device=rows.device)
    idle = (at_high.long() << bits).sum(1)  # the signs that change nothing, if there are such
    stuck = (at_low | at_high).all(1) & (code == idle)
    code = torch.where(stuck, code ^ (other + 1), code)
    return (((code[:, None] >> bits) & 1) == 1)[:, :, None]


class _Sphere:
    """l2: the mass of one window, and what clipping lost, goes to a bump in another."""

    def __init__(self, problem: Problem) -> None:
        self._centres, self._eps = problem.images, problem.threat.eps

    def keep(self, alive: Tensor) -> None:
        (self._centres,) = keep(alive, self._centres)

    def start(self, rng: RowRng, rows: Tensor) -> Tensor:
        """Five tiles by five of bumps with random signs and orientations, of length eps."""
        count, channels, height, width = self._centres.shape
        tile = max(min(height, width) // 5, 1)
        across, along = min(5, height // tile), min(5, width // tile)
        shape = (2, channels, across, along)
        sign, turned = rng.integers(rows, 2, shape).unbind(1)
        peak = bump(tile).to(self._centres)
        tiles = torch.where(turned[..., None, None] > 0, peak.T, peak)
        tiles = tiles * (2 * sign - 1)[..., None, None]
        grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(count, channels, across * tile, -1)
        top, left = (height - across * tile) // 2, (width - along * tile) // 2
        delta = torch.zeros_like(self._centres)
        delta[:, :, top : top + across * tile, left : left + along * tile] = grid
        delta *= self._eps / column(length(delta), delta)
        return (self._centres + delta).clamp_(0.0, 1.0)

    def propose(
        self, rng: RowRng, rows: Tensor, current: Tensor, members: Tensor, side: int
    ) -> list[tuple[Tensor, Tensor]]:
        chosen, shape = rows[members], current.shape
        where = corner(rng, chosen, side, shape, 2)
        taker, giver = (places(members, one, side, shape) for one in where.unbind(1))
        centres = self._centres.view(-1)
        old = [current.view(-1)[taker], current.view(-1)[giver]]
        mine, theirs = old[0] - centres[taker], old[1] - centres[giver]
        outside = ~overlap(where[:, 0], where[:, 1], side)[:, None]
        mass = mine.square().sum(2) + (theirs.square() * outside).sum(2)
        size = length(current[members] - self._centres[members])
        lost = (self._eps**2 - size.square()) / shape[1]
        target = (mass + lost[:, None]).clamp_min(0).sqrt()
        shaped = _signed_bumps(rng, chosen, side, mine)
        shaped += mine / (mine.norm(dim=2, keepdim=True) + 1e-10)
        shaped *= (target / shaped.norm(dim=2).clamp_min(1e-12))[:, :, None]
        current.view(-1)[giver] = centres[giver]
        current.view(-1)[taker] = (centres[taker] + shaped).clamp_(0.0, 1.0)
        return [(taker, old[0]), (giver, old[1])]


def _signed_bumps(rng: RowRng, rows: Tensor, side: int, like: Tensor) -> Tensor:
    """Draw a sign for each channel and an orientation for each image, (n, C, side * side)."""
    channels = like.shape[1]
    draws = rng.integers(rows, 2, (channels + 1,))
    peak = bump(side).to(like)
    turned = torch.where(draws[:, :1] > 0, peak.T.flatten(), peak.flatten())
    return (2 * draws[:, 1:, None] - 1) * turned[:, None]


def _put_back(current: Tensor, place: Tensor, old: Tensor, better: Tensor) -> None:
    """Put back the windows of the rows whose proposal was no better."""
    size = current[0].numel()
    worse = (~better[place[:, 0, 0] // size]).nonzero()[:, 0]
    current.view(-1)[place[worse]] = old[worse]
