"""HopSkipJump: step along the boundary's normal, estimated from labels, and come back to it."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, distance
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Goal, Norm, Problem, Queries, Steps
from registry.moves.bracket import Bisection
from registry.moves.phases import Phase, blend, clip_around, phased
from registry.moves.starting import Approach
from registry.moves.votes import Votes, directions, heading

_SEARCH, _BLEND, _PROJECT, _PROBE, _STEP = range(5)
_HALVINGS = 20
_NARROWEST = 1e-6  # of a bracket: what float32 images still tell apart


@attack(
    source=Source(
        paper="Chen, Jordan and Wainwright: HopSkipJumpAttack (S&P)",
        url="https://arxiv.org/abs/1904.02144",
        year=2020,
        code="https://github.com/Jianbo-Lab/HSJA",
        differences=(
            "the search for a start and every check count",
            "adversarial means not the true label; the official code means not the victim's own",
            "probes lie at least `floor` per value away: nearer ones vanish in float32 images",
            "bisections stop at a width of 1e-6, steps after 20 halvings, which leave the image",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    goal=Goal.NEAREST,
    starts=True,
    examples=("[share=0.01]",),
    presets={
        "official": Preset(
            "Jianbo-Lab/HSJA, foolbox, BlackboxBench; any data set",
            {"floor": 0.0},
            note="foolbox probes at the distance after the projection, BlackboxBench at 0.1 twice",
        ),
        "art": Preset("Adversarial Robustness Toolbox", {"share": 0.01, "floor": 0.0}),
    },
)
def hopskipjump(
    problem: Problem,
    rng: RowRng,
    *,
    probes: Annotated[int, Field(ge=1)] = 100,
    most: Annotated[int, Field(ge=1)] = 10_000,
    share: Annotated[float, Field(gt=0, le=1)] | None = None,
    floor: Annotated[float, Field(ge=0)] = 1e-5,
) -> Steps:
    """Estimate the boundary's normal, step along it, and bisect back to the boundary (Algorithm 2).

    Iteration t costs probes * sqrt(t) queries, one for each halving of the step, and a bisection.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        probes: Probes of the first estimate.
        most: Most probes of an estimate.
        share: Radius of the probes as share of the distance, which also sets the width of
            bisections; none means 1 / D, D the number of values.
        floor: Least radius of the probes, in pixel units per value.
    """
    state = _HopSkipJump(problem, rng, (probes, most), share, floor)
    yield from phased(problem, state.phases, state.at)


class _HopSkipJump:
    """A point on the boundary for every image, and the step that is tried from it."""

    def __init__(
        self,
        problem: Problem,
        rng: RowRng,
        probes: tuple[int, int],
        share: float | None,
        floor: float,
    ) -> None:
        self._problem, self._rng = problem, rng
        self._images, self._norm = problem.images, problem.threat.norm
        self._size = problem.images[0].numel()
        self._probes, self._share = probes, share or 1 / self._size
        self._least = floor * self._size**0.5
        self.at = torch.zeros_like(problem.labels)
        self._turn, self._halved = self.at.clone(), self.at.clone()
        self._stride = torch.zeros_like(problem.labels, dtype=torch.float64)
        self._far = problem.images.clone()  # adversarial, off the boundary
        self._point = problem.images.clone()  # adversarial, at the boundary
        self._way = torch.zeros_like(problem.images)
        approach = Approach(problem, rng, self.at, self._far, self._project)
        self._projecting = Bisection(problem, self._projected, self._arrive)
        self._votes = Votes(problem, self._directions, self._point, self._head)
        self.phases = [
            *approach.phases,
            self._projecting.phase,
            self._votes.phase,
            Phase(self._ask_step, self._tell_step),
        ]

    def _blended(self, rows: Tensor, share: Tensor) -> Tensor:
        return blend(self._images[rows], self._far[rows], share)

    def _project(self, rows: Tensor) -> None:
        """Go from `far` back to the boundary: towards the image, or by clipping for linf."""
        self.at[rows] = _PROJECT
        away = self._away(self._far, rows)
        if self._norm is Norm.L2:
            width = max(self._share / self._size**0.5, _NARROWEST)
            self._projecting.begin(rows, 0.0, 1.0, width)
        else:
            width = (self._share / self._size * away.clamp_max(1.0)).clamp_min(_NARROWEST)
            self._projecting.begin(rows, 0.0, away, width)

    def _projected(self, rows: Tensor, place: Tensor) -> Tensor:
        if self._norm is Norm.L2:
            return self._blended(rows, place)
        return clip_around(self._images[rows], self._far[rows], place)

    def _arrive(self, rows: Tensor) -> None:
        self._point[rows] = self._projected(rows, self._projecting.high[rows])
        self._estimate(rows, self._away(self._far, rows))

    def _estimate(self, rows: Tensor, away: Tensor) -> None:
        """Ask probes around the boundary point; `away`, (n,), sets their radius."""
        self.at[rows] = _PROBE
        self._turn[rows] += 1
        turn = self._turn[rows].double()
        count = (self._probes[0] * turn.sqrt()).long().clamp_max(self._probes[1])
        radius = torch.where(turn == 1, 0.1, self._share * away).clamp_min(self._least)
        self._votes.begin(rows, count, radius)

    def _directions(self, owners: Tensor) -> Tensor:
        return directions(self._rng, owners, self._images, self._norm)

    def _head(self, rows: Tensor) -> None:
        """Turn the answers into a direction and a first step."""
        self._way[rows] = heading(self._votes.normal(rows), self._norm)
        self._stride[rows] = self._away(self._point, rows) / self._turn[rows].double().sqrt()
        self._halved[rows] = 0
        self.at[rows] = _STEP

    def _ask_step(self, rows: Tensor) -> Queries:
        point = self._point[rows]
        step = self._way[rows] * column(self._stride[rows].to(point), point)
        return Queries((point + step).clamp_(0.0, 1.0), rows)

    def _tell_step(self, queries: Queries, hit: Tensor) -> None:
        won, lost = queries.rows[hit], queries.rows[~hit]
        self._far[won] = queries.images[hit]
        self._stride[lost] /= 2
        self._halved[lost] += 1
        over = lost[self._halved[lost] >= _HALVINGS]
        if len(won):
            self._project(won)
        if len(over):  # the step is lost in rounding, or the victim in noise: estimate anew
            self._estimate(over, self._away(self._point, over))

    def _away(self, places: Tensor, rows: Tensor) -> Tensor:
        return distance(places[rows], self._images[rows], self._norm).double()
