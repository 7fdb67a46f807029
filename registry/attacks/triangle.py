"""Triangle attack: the sine rule says how far to turn for a shorter side."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, length
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Goal, Norm, Problem, Queries, Steps
from registry.moves.frequencies import Frequencies
from registry.moves.phases import Phase, phased
from registry.moves.starting import Approach

_SEARCH, _BLEND, _TURN = range(3)
_FIRST, _SECOND, _HALVES = range(3)  # looks at a triangle; from _HALVES on two looks a halving
_SMALLEST, _LARGEST = math.pi / 2 - 0.1, math.pi / 2 + 0.1  # angle at the candidate
_MARGIN = math.pi / 64  # by which the second side turns further than it must


@attack(
    source=Source(
        paper="Wang et al.: Triangle Attack: A Query-efficient Decision-based Attack (ECCV)",
        url="https://arxiv.org/abs/2112.06569",
        year=2022,
        code="https://github.com/xiaosen-wang/TA",
        differences=(
            "the search for a start and every check count",
            "the DCT is orthonormal, so that angles and lengths are those of pixels",
            "the adapted angle belongs to the image and is clamped everywhere",
            "at least 32 frequencies, all of a small image: a tenth of these hardly ever helped",
            "the start is brought to the boundary by ten halvings",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.L2,),
    randomised=True,
    goal=Goal.NEAREST,
    starts=True,
    presets={
        "official": Preset("xiaosen-wang/TA, ImageNet, 1,000 queries", {"frequencies": 22}),
    },
)
def triangle(
    problem: Problem,
    rng: RowRng,
    *,
    frequencies: Annotated[int, Field(ge=1)] | None = None,
    halvings: Annotated[int, Field(ge=0)] = 2,
    widen: Annotated[float, Field(gt=0)] = 0.1,
    narrow: Annotated[float, Field(gt=0)] = 0.005,
) -> Steps:
    """Try triangles of image, boundary point and a candidate nearer than it (Algorithm 1).

    A direction costs one or two queries, and up to two more for each halving if it succeeds.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        frequencies: How many of the lowest frequencies in each direction are drawn; none means a
            tenth of the longer side, and at least 32.
        halvings: Halvings of the angle at the image after a success.
        widen: By how much success widens the angle at the candidate, radians.
        narrow: By how much each failure narrows it, radians.
    """
    state = _Triangle(problem, rng, frequencies, halvings, (widen, narrow))
    yield from phased(problem, state.phases, state.at)


class _Triangle:
    """A boundary point and a triangle on its perturbation, for every image."""

    def __init__(
        self,
        problem: Problem,
        rng: RowRng,
        frequencies: int | None,
        halvings: int,
        rates: tuple[float, float],
    ) -> None:
        self._images, self._rates = problem.images, rates
        self._count = frequencies or max(32, max(problem.images.shape[2:]) // 10)
        self._last = _HALVES + 2 * halvings  # look at which a triangle is given up
        self._waves = Frequencies(rng, problem.images)
        self.at = torch.zeros_like(problem.labels)
        self._look = self.at.clone()
        like = torch.zeros_like(self.at, dtype=torch.float64)
        self._alpha = like + math.pi / 2  # angle at the candidate
        self._beta, self._left, self._right = (like.clone() for _ in range(3))  # at the image
        self._side = like + 1.0
        self._point, self._other = problem.images.clone(), torch.zeros_like(problem.images)
        self._best = problem.images.clone()  # the nearest corner of this triangle that hit
        approach = Approach(problem, rng, self.at, self._point, self._new_triangle, noise="growing")
        self.phases = [*approach.phases, Phase(self._ask, self._tell)]

    def _new_triangle(self, rows: Tensor) -> None:
        """Draw the plane, and take the least angle at the image that comes nearer."""
        drawn = self._waves.single(rows, self._count)
        away = self._point[rows] - self._images[rows]
        unit = away / column(length(away).clamp_min(1e-12), away)
        drawn -= column((drawn * unit).flatten(1).sum(1), drawn) * unit
        self._other[rows] = drawn / column(length(drawn).clamp_min(1e-12), drawn)
        self._beta[rows] = self._least(rows)
        self._look[rows], self._side[rows] = _FIRST, 1.0
        self.at[rows] = _TURN

    def _least(self, rows: Tensor) -> Tensor:
        alpha = self._alpha[rows]
        return (math.pi - 2 * alpha).clamp_min(0) + (alpha / 2).clamp_max(math.pi / 16)

    def _ask(self, rows: Tensor) -> Queries:
        images = self._images[rows]
        alpha, beta = self._alpha[rows], self._beta[rows]
        away = self._point[rows] - images
        ratio = (alpha + beta).sin() / alpha.sin()  # of the new side to the old one
        along, across = ratio * beta.cos(), ratio * beta.sin() * self._side[rows]
        across = across * length(away).double()
        step = away * column(along.to(away), away)
        step += self._other[rows] * column(across.to(away), away)
        return Queries(step.add_(images).clamp_(0.0, 1.0), rows)

    def _tell(self, queries: Queries, hit: Tensor) -> None:
        images, rows = queries
        look = self._look[rows]
        self._best[rows[hit]] = images[hit]
        self._narrow(rows[~hit])
        early, first, odd = look < _HALVES, look == _FIRST, look % 2 == 1
        begun = rows[hit & early]  # the first success: halve towards the far corner
        self._left[begun] = self._beta[begun]
        self._right[begun] = math.pi - self._alpha[begun]
        self._halve(begun, torch.full_like(begun, _HALVES))
        again = rows[~hit & (first | (~early & ~odd))]  # the same angle on the other side
        further = math.pi - 2 * self._alpha[again] + _MARGIN
        self._beta[again] = torch.maximum(self._beta[again], further)
        self._side[again] *= -1
        self._look[again] += 1
        missed = rows[~hit & ~early & odd]
        self._left[missed], self._right[missed] = self._least(missed), self._beta[missed]
        self._halve(missed, look[~hit & ~early & odd] + 1)
        self._finish(rows[hit & ~early])
        self._new_triangle(rows[~hit & (look == _SECOND)])

    def _halve(self, rows: Tensor, look: Tensor) -> None:
        self._beta[rows] = (self._left[rows] + self._right[rows]) / 2
        self._look[rows] = look
        self._finish(rows[look >= self._last])

    def _finish(self, rows: Tensor) -> None:
        """Move to the best corner found, and widen the angle."""
        self._alpha[rows] = (self._alpha[rows] + self._rates[0]).clamp_max(_LARGEST)
        self._point[rows] = self._best[rows]
        self._new_triangle(rows)

    def _narrow(self, rows: Tensor) -> None:
        self._alpha[rows] = (self._alpha[rows] - self._rates[1]).clamp_min(_SMALLEST)
