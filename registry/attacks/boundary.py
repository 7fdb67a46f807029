"""Boundary attack: a random walk along the boundary that drifts towards the image."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, length
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Goal, Norm, Problem, Queries, Steps
from registry.moves.phases import DONE, Phase, phased
from registry.moves.starting import Approach

_SEARCH, _BLEND, _LOOK, _STEP = range(4)
_FACTOR = 1.5  # by which steps change
_CONVERGED = 1e-7  # of the step towards the image, as share of the distance


@attack(
    source=Source(
        paper="Brendel, Rauber and Bethge: Decision-Based Adversarial Attacks (ICLR)",
        url="https://arxiv.org/abs/1712.04248",
        year=2018,
        code="https://github.com/bethgelab/foolbox",
        differences=(
            "the search for a start and every check count",
            "each image draws its own directions; foolbox draws one for the whole batch",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.L2,),
    randomised=True,
    goal=Goal.NEAREST,
    starts=True,
    presets={
        "foolbox": Preset("foolbox and BlackboxBench, any data set, 25,000 steps", {}),
    },
)
def boundary(
    problem: Problem,
    rng: RowRng,
    *,
    sideways: Annotated[float, Field(gt=0, le=1)] = 0.01,
    inward: Annotated[float, Field(gt=0, le=1)] = 0.01,
    every: Annotated[int, Field(ge=1)] = 10,
) -> Steps:
    """Step sideways on the sphere around the image, then inward; keep what is still adversarial.

    A step costs one query, every tenth one more, which tells the two step lengths how to adapt.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        sideways: First step on the sphere, as share of the distance.
        inward: First step towards the image, as share of the distance.
        every: Steps between two looks at the point on the sphere.
    """
    state = _Boundary(problem, rng, (sideways, inward), every)
    yield from phased(problem, state.phases, state.at)


class _Boundary:
    """An adversarial point for every image, its two steps, and how often they succeeded."""

    def __init__(
        self, problem: Problem, rng: RowRng, steps: tuple[float, float], every: int
    ) -> None:
        self._images, self._rng, self._every = problem.images, rng, every
        self.at = torch.zeros_like(problem.labels)
        self._turn = self.at.clone()
        self._point, self._sphere = problem.images.clone(), problem.images.clone()
        like = torch.zeros_like(problem.labels, dtype=torch.float64)
        self._sideways, self._inward = like + steps[0], like + steps[1]
        self._looks, self._steps = _Window(problem, 100), _Window(problem, 30)
        approach = Approach(problem, rng, self.at, self._point, self._propose)
        self.phases = [
            *approach.phases,
            Phase(self._ask_look, self._tell_look),
            Phase(self._ask_step, self._tell_step),
        ]

    def _propose(self, rows: Tensor) -> None:
        """Draw the next points on the spheres."""
        inward = self._images[rows] - self._point[rows]
        away = length(inward).clamp_min(1e-12)
        unit = inward / column(away, inward)
        noise = self._rng.normal(rows, inward.shape[1:]).to(inward)
        noise -= column((noise * unit).flatten(1).sum(1), noise) * unit
        side = self._sideways[rows]
        noise *= column(side.to(away) * away / length(noise).clamp_min(1e-12), noise)
        shrink = column((1 + side.square()).rsqrt().to(inward), inward)
        self._sphere[rows] = (self._images[rows] + shrink * (noise - inward)).clamp_(0.0, 1.0)
        self._turn[rows] += 1
        self.at[rows] = torch.where(self._turn[rows] % self._every == 0, _LOOK, _STEP)

    def _ask_look(self, rows: Tensor) -> Queries:
        return Queries(self._sphere[rows], rows)

    def _tell_look(self, queries: Queries, hit: Tensor) -> None:
        self._looks.add(queries.rows, hit)
        self.at[queries.rows] = _STEP

    def _ask_step(self, rows: Tensor) -> Queries:
        """Go inward from the sphere, further if clipping moved the point off it."""
        centres, sphere = self._images[rows], self._sphere[rows]
        inward = centres - sphere
        now, before = length(inward).clamp_min(1e-12), length(centres - self._point[rows])
        stride = (self._inward[rows].to(now) * before + now - before).clamp_min(0)
        return Queries((sphere + column(stride / now, inward) * inward).clamp_(0.0, 1.0), rows)

    def _tell_step(self, queries: Queries, hit: Tensor) -> None:
        images, rows = queries
        centres = self._images[rows]
        nearer = hit & (length(images - centres) < length(self._point[rows] - centres))
        self._point[rows[nearer]] = images[nearer]
        looked = self._turn[rows] % self._every == 0
        self._steps.add(rows[looked], hit[looked])
        self._adapt(rows[looked])
        self._propose(rows)
        self.at[rows[self._inward[rows] < _CONVERGED]] = DONE

    def _adapt(self, rows: Tensor) -> None:
        """Lengthen steps that succeed often, shorten those that seldom do."""
        for window, low, high, steps in (
            (self._looks, 0.2, 0.5, (self._sideways, self._inward)),
            (self._steps, 0.1, 0.25, (self._inward,)),
        ):
            share = window.share(rows)  # NaN while the window fills, which neither bound takes
            for bound, factor in ((share > high, _FACTOR), (share < low, 1 / _FACTOR)):
                for step in steps:
                    step[rows[bound]] *= factor
                window.clear(rows[bound])


class _Window:
    """The last successes and failures of every image."""

    def __init__(self, problem: Problem, size: int) -> None:
        count = len(problem.labels)
        self._results = torch.zeros((count, size), dtype=torch.bool, device=problem.labels.device)
        self._seen = torch.zeros_like(problem.labels)

    def add(self, rows: Tensor, results: Tensor) -> None:
        self._results[rows, self._seen[rows] % self._results.shape[1]] = results
        self._seen[rows] += 1

    def share(self, rows: Tensor) -> Tensor:
        """Share of successes, (n,) float64, NaN until the window is full."""
        shares = self._results[rows].double().mean(1)
        return shares.masked_fill(self._seen[rows] < self._results.shape[1], torch.nan)

    def clear(self, rows: Tensor) -> None:
        self._seen[rows] = 0
