"""NES from an image of the target: keep the target shown while the ball shrinks."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from benchmark.geometry import column
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Norm, Probes, Problem, Queries, Replies, Steps
from registry.moves.estimates import directions, probes


class Look(Protocol):
    """How answers are turned into losses; differs between shown scores and labels alone."""

    cost: int  # questions that one probe takes

    def measure(self, queries: Queries) -> Generator[Queries, Replies, Tensor]:
        """Ask about probes; their losses, (n,)."""

    def reached(self, replies: Replies, rows: Tensor) -> Tensor:
        """Where the target is among the best classes shown, (n,) bool."""


@dataclass(frozen=True)
class Schedule:
    """How fast ball and step shrink (section 3.4 of the spec of partial information).

    Attributes:
        probe: Standard deviation of a probe in each pixel value.
        pairs: Antithetic pairs of a step.
        step: Longest step, pixel units.
        least: Shortest step, pixel units.
        momentum: Share of the earlier direction in the new one.
        shrink: First reduction of the radius, pixel units.
        enough: Mean loss below which the ball shrinks.
    """

    probe: float
    pairs: int
    step: float
    least: float
    momentum: float
    shrink: float
    enough: float


@dataclass
class _State:
    """Where every image stands; all tensors have one row an image."""

    rows: Tensor
    centres: Tensor
    current: Tensor
    velocity: Tensor
    radius: Tensor
    shrink: Tensor
    remaining: Tensor

    def keep(self, mask: Tensor) -> None:
        names = list(vars(self))
        for name, value in zip(names, keep(mask, *vars(self).values()), strict=True):
            setattr(self, name, value)


def shrinking(problem: Problem, rng: RowRng, look: Look, plan: Schedule) -> Steps:
    """Follow the target inwards until its image lies in the ball.

    Args:
        problem: Targeted, with starts.
        rng: One stream per image.
        look: How answers are read.
        plan: Steps and radii.
    """
    if problem.starts is None:
        raise ValueError("an attack that shrinks needs starts; declare starts=True")
    posed = replace(problem, probes=Probes.BOX)
    current = problem.starts.clone()
    replies = yield Queries(current, problem.rows)
    state = _State(
        problem.rows,
        problem.images,
        current,
        torch.zeros_like(current),
        (current - problem.images).abs().flatten(1).amax(1),
        current.new_full((len(current),), plan.shrink),
        replies.remaining,
    )
    dearest = 2 * plan.pairs * look.cost + 1
    state.keep(~replies.finished)
    while True:
        state.keep(state.remaining >= dearest)
        if not len(state.rows):
            return
        yield from _step(posed, rng, look, plan, state)


def _step(
    problem: Problem, rng: RowRng, look: Look, plan: Schedule, state: _State
) -> Generator[Queries, Replies, None]:
    """Estimate once, then search for a step and a radius at which the target stays."""
    noise = directions(rng, state.rows, plan.pairs, state.current)
    offsets = torch.stack((noise, -noise), 2).flatten(1, 2).mul_(plan.probe)
    queries = probes(problem, state.current, state.centres, state.rows, offsets)
    found = yield from look.measure(queries)
    values = found.view(-1, plan.pairs, 2)
    gradient = torch.einsum("nk,nk...->n...", values[:, :, 0] - values[:, :, 1], noise)
    state.velocity = plan.momentum * state.velocity + (1 - plan.momentum) * gradient
    state.remaining = state.remaining - 2 * plan.pairs * look.cost
    eps = problem.threat.eps
    less = torch.where(
        (values.mean((1, 2)) < plan.enough) & (state.radius > eps), state.shrink, 0.0
    )
    yield from _search(problem, look, plan, state, less)


def _search(
    problem: Problem, look: Look, plan: Schedule, state: _State, less: Tensor
) -> Generator[Queries, Replies, None]:
    """Try shorter steps, then smaller reductions; images that found one wait for the others."""
    eps = problem.threat.eps
    stride = state.current.new_full((len(state.rows),), plan.step)
    open_ = state.remaining > 0
    while bool(open_.any()):
        index = open_.nonzero()[:, 0]
        radius = (state.radius - less).clamp_min(eps)[index]
        moved = state.current[index] - column(stride[index], state.current) * _direction(
            state.velocity[index], problem.threat.norm
        )
        centres, reach = state.centres[index], column(radius, moved)
        candidate = torch.minimum(torch.maximum(moved, centres - reach), centres + reach)
        candidate.clamp_(0.0, 1.0)
        replies = yield Queries(candidate, state.rows[index])
        state.remaining[index] = replies.remaining
        good = look.reached(replies, state.rows[index]) & replies.answered
        won = index[good]
        state.current[won], state.radius[won] = candidate[good], radius[good]
        shrunk = won[less[won] > 0]
        state.shrink[shrunk] = less[shrunk].clamp_min(plan.shrink / 5)
        lost = index[~good & (replies.remaining > 0)]
        shorter = stride[lost] >= 2 * plan.least
        given_up = lost[~shorter & (less[lost] == 0)]
        stride[lost] = torch.where(shorter, stride[lost] / 2, plan.step)
        half = less[lost] / 2
        half = torch.where(half < 2e-3, 0.0, half)
        less[lost] = torch.where(shorter, less[lost], half)
        open_[won], open_[given_up] = False, False
        open_ &= state.remaining > 0


def _direction(velocity: Tensor, norm: Norm) -> Tensor:
    if norm is not Norm.LINF:
        raise ValueError(f"shrinking is for linf, not {norm}")
    return velocity.sign()
