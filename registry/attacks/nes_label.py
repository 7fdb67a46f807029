"""NES from labels alone: how often noisy copies are given the target stands for its score."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Aim, Goal, Norm, Problem, Queries, Replies, Steps
from registry.attacks.nes_partial import DIFFERENCES
from registry.moves.shrinking import Schedule, shrinking


@attack(
    source=Source(
        paper="Ilyas et al.: Black-box Adversarial Attacks with Limited Queries, section 2.4",
        url="https://arxiv.org/abs/1804.08598",
        year=2018,
        code="https://github.com/labsix/limited-blackbox-attacks",
        differences=(*DIFFERENCES, "only the best class is used (k = 1)"),
    ),
    access=Access.LABEL,
    norms=(Norm.LINF,),
    randomised=True,
    goal=Goal.INWARD,
    aims=(Aim.TARGETED,),
    starts=True,
    presets={
        "labsix": Preset(
            "labsix, label only, ImageNet, a million queries",
            {
                "probe": 1e-3,
                "pairs": 50,
                "copies": 50,
                "noise": 2e-3,
                "least": 1e-4,
                "momentum": 0.9,
            },
            note="there the noted radius falls a quarter as fast as the projected one",
        )
    },
)
def nes_label(
    problem: Problem,
    rng: RowRng,
    *,
    copies: Annotated[int, Field(ge=1)] = 10,
    noise: Annotated[float, Field(gt=0)] = 0.01,
    probe: Annotated[float, Field(gt=0)] = 0.01,
    pairs: Annotated[int, Field(gt=0)] = 4,
    step: Annotated[float, Field(gt=0)] = 0.01,
    least: Annotated[float, Field(gt=0)] = 1e-3,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    shrink: Annotated[float, Field(gt=0)] = 0.5,
    enough: float = 0.15,
) -> Steps:
    """Start at an image of the target and shrink the ball while the label stays the target.

    A step costs 2 * pairs * copies queries and one for each candidate.

    Args:
        problem: Images to attack, targeted, with starts.
        rng: One stream per image.
        copies: Noisy copies of each probe.
        noise: Half width of their uniform noise, pixel units.
        probe: Standard deviation of a probe in each pixel value, pixel units.
        pairs: Antithetic pairs per step.
        step: Longest step, pixel units.
        least: Shortest step, pixel units.
        momentum: Share of the earlier direction in the new one.
        shrink: First reduction of the radius, pixel units; halved while it loses the target.
        enough: Mean share of copies not given the target below which the ball shrinks.
    """
    plan = Schedule(probe, pairs, step, least, momentum, shrink, enough)
    yield from shrinking(problem, rng, _Labels(problem, rng, copies, noise), plan)


class _Labels:
    """Asks noisy copies of each probe and counts how many are not given the target."""

    def __init__(self, problem: Problem, rng: RowRng, copies: int, noise: float) -> None:
        self._problem, self._rng, self.cost, self._noise = problem, rng, copies, noise

    def measure(self, queries: Queries) -> Generator[Queries, Replies, Tensor]:
        images, rows = queries
        owners, counts = torch.unique_consecutive(rows, return_counts=True)
        width = int(counts[0]) if len(counts) else 0
        shape = (width * self.cost, *images.shape[1:])
        shift = self._rng.uniform(owners, shape).to(images).mul_(2).sub_(1).mul_(self._noise)
        copies = images.repeat_interleave(self.cost, 0) + shift.flatten(0, 1)
        replies = yield Queries(copies.clamp_(0.0, 1.0), rows.repeat_interleave(self.cost))
        wrong = ~self.reached(replies, rows.repeat_interleave(self.cost))
        return wrong.view(len(rows), self.cost).to(images).mean(1)

    def reached(self, replies: Replies, rows: Tensor) -> Tensor:
        return self._problem.adversarial(replies.labels, rows)
