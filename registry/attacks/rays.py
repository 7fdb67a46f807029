"""RayS: which corner of the cube is nearest, by flipping halves, quarters, ... of the signs."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Aim, Goal, Norm, Problem, Queries, Steps
from registry.moves.bracket import Bisection
from registry.moves.phases import Phase, phased

_CHECK, _BISECT = 0, 1


@attack(
    source=Source(
        paper="Chen and Gu: RayS: A Ray Searching Method for Hard-label Adversarial Attack (KDD)",
        url="https://arxiv.org/abs/2006.12792",
        year=2020,
        code="https://github.com/uclaml/RayS",
        differences=(
            "stops at the query that enters the ball; the official code at the end of a block",
            "a ray that misses is given up after one corner of the box; the official code for "
            "single images asks the same corner ten times",
            "where the black image, the first ray, misses, the white one is asked too",
            "untargeted only, as the official code in effect is",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.LINF,),
    randomised=False,
    goal=Goal.NEAREST,
    aims=(Aim.UNTARGETED,),
    presets={
        "official": Preset(
            "uclaml/RayS, any data set", {}, note="there counts are those of the end of a block"
        ),
    },
)
def rays(
    problem: Problem,
    rng: RowRng,
    *,
    tolerance: Annotated[float, Field(gt=0, le=1)] = 1e-3,
) -> Steps:
    """Flip the signs of a block, and bisect the radius if the best one hits.

    Blocks are of the values in the order channel, row, column. A flip that misses costs one
    query, one that hits 1 + log2(radius / width).

    Args:
        problem: Images to attack.
        rng: Not used: nothing is random.
        tolerance: Width at which a bisection stops, as Euclidean length of the whole image.
    """
    del rng
    state = _Rays(problem, tolerance)
    yield from phased(problem, [Phase(state.ask, state.tell), state.bisection.phase], state.at)


class _Rays:
    """Signs, radius and block of every image."""

    def __init__(self, problem: Problem, tolerance: float) -> None:
        self._images = problem.images
        self._size = problem.images[0].numel()
        self._width = tolerance / self._size**0.5
        self._places = torch.arange(self._size, device=problem.images.device)
        self._signs = torch.ones_like(problem.images).flatten(1)
        self.at = torch.zeros_like(problem.labels)
        self._level, self._block = self.at.clone(), self.at.clone()
        self._radius = torch.full_like(problem.labels, torch.inf, dtype=torch.float64)
        self.bisection = Bisection(problem, self._on_ray, self._improve, limit=60)

    def ask(self, rows: Tensor) -> Queries:
        """Look whether the flipped ray is adversarial at the best radius."""
        return Queries(self._on_ray(rows, self._radius[rows].clamp_max(1.0)), rows)

    def tell(self, queries: Queries, hit: Tensor) -> None:
        """Bisect where it is, take the next block where not."""
        self._miss(queries.rows[~hit])
        rows = queries.rows[hit]
        self.at[rows] = _BISECT
        self.bisection.begin(rows, 0.0, self._radius[rows].clamp_max(1.0), self._width)

    def _miss(self, rows: Tensor) -> None:
        """Where black, the first ray, misses, look at white before any block."""
        first = self._level[rows] == 0
        white = first & (self._signs[rows, 0] > 0)
        self._signs[rows[first]] *= -1
        self._advance(rows[~white])

    def _on_ray(self, rows: Tensor, radius: Tensor) -> Tensor:
        images = self._images[rows]
        step = self._flipped(rows).view_as(images) * column(radius.to(images), images)
        return step.add_(images).clamp_(0.0, 1.0)

    def _flipped(self, rows: Tensor) -> Tensor:
        start, end = self._bounds(rows)
        inside = (self._places >= start[:, None]) & (self._places < end[:, None])
        return torch.where(inside, -self._signs[rows], self._signs[rows])

    def _bounds(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        parts = 2 ** self._level[rows]
        width = (self._size + parts - 1) // parts
        start = self._block[rows] * width
        return start, (start + width).clamp_max(self._size)

    def _improve(self, rows: Tensor) -> None:
        """Keep the flip where it came nearer."""
        nearer = rows[self.bisection.high[rows] < self._radius[rows]]
        self._signs[nearer] = self._flipped(nearer)
        self._radius[nearer] = self.bisection.high[nearer]
        self.at[rows] = _CHECK
        self._advance(rows)

    def _advance(self, rows: Tensor) -> None:
        """Take the next block; blocks halve after the last one, down to single values."""
        _, end = self._bounds(rows)
        over = (self._block[rows] + 1 == 2 ** self._level[rows]) | (end == self._size)
        deepest = math.ceil(math.log2(self._size))
        self._level[rows] = (self._level[rows] + over.long()).clamp_max(deepest)
        self._block[rows] = torch.where(over, 0, self._block[rows] + 1)
