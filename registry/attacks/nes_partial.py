"""NES with partial information: only the scores of the best classes are shown; targeted."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.objective import Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Aim, Goal, Norm, Problem, Queries, Replies, Steps
from registry.moves.shrinking import Schedule, shrinking

_HIDDEN = (
    "a probe that does not show the target counts with the most that its probability can be; the "
    "official code drops it, which leaves nothing to follow at the border"
)
DIFFERENCES = (
    "the radius that a candidate was projected to is the radius that is kept; the official code "
    "projects to one and notes another",
    "a search that finds nothing estimates anew instead of giving up",
    "an image stops when the budget does not pay a whole step",
)


@attack(
    source=Source(
        paper="Ilyas et al.: Black-box Adversarial Attacks with Limited Queries, section 2.3",
        url="https://arxiv.org/abs/1804.08598",
        year=2018,
        code="https://github.com/labsix/limited-blackbox-attacks",
        differences=(*DIFFERENCES, _HIDDEN),
    ),
    access=Access.TOPK,
    norms=(Norm.LINF,),
    randomised=True,
    goal=Goal.INWARD,
    aims=(Aim.TARGETED,),
    starts=True,
    presets={
        "labsix": Preset(
            "labsix, partial information, ImageNet, a million queries",
            {"probe": 1e-5, "pairs": 50, "momentum": 0.9},
            note="there the noted radius falls half as fast as the projected one",
        )
    },
)
def nes_partial(
    problem: Problem,
    rng: RowRng,
    *,
    k: Annotated[int, Field(ge=1)] = 1,
    probe: Annotated[float, Field(gt=0)] = 0.01,
    pairs: Annotated[int, Field(gt=0)] = 10,
    step: Annotated[float, Field(gt=0)] = 0.01,
    least: Annotated[float, Field(gt=0)] = 1e-3,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    shrink: Annotated[float, Field(gt=0)] = 0.5,
    enough: float = 0.2,
) -> Steps:
    """Start at an image of the target and shrink the ball while the target stays in the top k.

    A step costs 2 * pairs queries and one for each candidate.

    Args:
        problem: Images to attack, targeted, with starts.
        rng: One stream per image.
        k: Best classes among which the target has to stay.
        probe: Standard deviation of a probe in each pixel value, pixel units.
        pairs: Antithetic pairs per step.
        step: Longest step, pixel units.
        least: Shortest step, pixel units.
        momentum: Share of the earlier direction in the new one.
        shrink: First reduction of the radius, pixel units; halved while it loses the target.
        enough: Mean cross-entropy of the probes below which the ball shrinks.
    """
    plan = Schedule(probe, pairs, step, least, momentum, shrink, enough)
    yield from shrinking(problem, rng, _Scores(problem, k), plan)


class _Scores:
    """Reads the target's score, where it is shown."""

    cost = 1

    def __init__(self, problem: Problem, k: int) -> None:
        if problem.targets is None:
            raise ValueError("nes-partial is targeted")
        self._objective, self._targets, self._k = Objective(problem, "ce"), problem.targets, k

    def measure(self, queries: Queries) -> Generator[Queries, Replies, Tensor]:
        replies = yield queries
        return self._objective(replies, queries.rows)

    def reached(self, replies: Replies, rows: Tensor) -> Tensor:
        own = replies.scores.gather(1, self._targets[rows][:, None])
        return self._shown(replies, rows) & ((replies.scores > own).sum(1) < self._k)

    def _shown(self, replies: Replies, rows: Tensor) -> Tensor:
        if replies.shown is None:
            return replies.answered
        return replies.shown.gather(1, self._targets[rows][:, None])[:, 0]
