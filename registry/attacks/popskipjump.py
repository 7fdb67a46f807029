"""PopSkipJump: HopSkipJump for victims whose answers are random."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, distance
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Goal, Norm, Problem, Queries, Steps
from registry.moves.infomax import InfoMax
from registry.moves.phases import blend, clip_around, phased
from registry.moves.starting import Search
from registry.moves.votes import Votes, directions, heading

_START, _LOCATE, _PROBE = range(3)


@attack(
    source=Source(
        paper="Simon-Gabriel, Sheikh and Krause: PopSkipJump: Decision-Based Attack for "
        "Probabilistic Classifiers (ICML)",
        url="https://arxiv.org/abs/2106.07445",
        year=2021,
        code="https://github.com/cjsg/PopSkipJump",
        differences=(
            "the search for a start counts",
            "the point half as far again beyond the boundary is not asked: pushing to the ball's "
            "surface is the protocol's, for every attack",
            "of equally telling questions the first is asked, not a random one",
            "the boundary is never placed at the clean image itself",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    goal=Goal.NEAREST,
    starts=True,
    examples=("[grid=30]",),
    presets={
        "official": Preset("cjsg/PopSkipJump, CIFAR-10", {}),
        "official-mnist": Preset("cjsg/PopSkipJump, MNIST", {"grid": 100}),
    },
)
def popskipjump(
    problem: Problem,
    rng: RowRng,
    *,
    probes: Annotated[int, Field(ge=1)] = 100,
    most: Annotated[int, Field(ge=1)] = 50_000,
    grid: Annotated[int, Field(ge=2, le=1000)] = 300,
) -> Steps:
    """Locate the noisy boundary by the most telling questions, then ask probes as wide as it is.

    As many probes are asked as give an estimate as good as HopSkipJump's against a victim
    without noise, so an iteration costs what the noise makes it cost.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        probes: Probes of the first estimate if there were no noise.
        most: Most probes of an estimate.
        grid: Places of the boundary that are told apart between the image and the last point.
    """
    state = _PopSkipJump(problem, rng, (probes, most), grid)
    yield from phased(problem, state.phases, state.at)


class _PopSkipJump:
    """The end of a segment for every image, and the point on it where answers are even."""

    def __init__(self, problem: Problem, rng: RowRng, probes: tuple[int, int], grid: int) -> None:
        self._images, self._rng, self._norm = problem.images, rng, problem.threat.norm
        self._size, self._probes = problem.images[0].numel(), probes
        # Standard deviation of a probe across the boundary, in segments.
        wide = 1.0 if self._norm is Norm.L2 else self._size**0.5
        self._spread = wide / grid
        self._miss = 1 / wide  # how far the boundary may be missed, in these deviations
        self.at = torch.zeros_like(problem.labels)
        self._turn = self.at.clone()
        self._far, self._point = problem.images.clone(), problem.images.clone()
        search = Search(problem, rng, self.at, self._found)
        self._search = InfoMax(problem, grid, self._on_segment, self._arrive)
        self._votes = Votes(problem, self._directions, self._point, self._step)
        self.phases = [search.phase, self._search.phase, self._votes.phase]

    def _found(self, queries: Queries) -> None:
        self._far[queries.rows] = queries.images
        self._locate(queries.rows)

    def _locate(self, rows: Tensor) -> None:
        self.at[rows] = _LOCATE
        self._search.begin(rows)

    def _on_segment(self, rows: Tensor, place: Tensor) -> Tensor:
        """Points from the far end, at 0, to the clean image, at 1."""
        images, far = self._images[rows], self._far[rows]
        if self._norm is Norm.L2:
            return blend(images, far, 1 - place)
        return clip_around(images, far, (1 - place) * distance(far, images, self._norm).double())

    def _arrive(self, rows: Tensor) -> None:
        """Ask as many probes as the noise and the width of the boundary call for."""
        self._point[rows] = self._on_segment(rows, self._search.place[rows])
        self._turn[rows] += 1
        still = self._probes[0] * self._turn[rows].double().sqrt()
        slope = self._search.slope[rows] * self._spread
        seen = (1 - 2 * self._search.noise[rows]) * answer_slope(slope, self._miss)
        count = still * (_sharp(self._miss) / seen).square()
        count = count.clamp(1, self._probes[1]).long()
        away = distance(self._far[rows], self._images[rows], self._norm).double()
        self.at[rows] = _PROBE
        self._votes.begin(rows, count, away * self._spread * self._size**0.5)

    def _directions(self, owners: Tensor) -> Tensor:
        return directions(self._rng, owners, self._images, self._norm)

    def _step(self, rows: Tensor) -> None:
        """Step along the estimated normal; whether the end is adversarial is not asked."""
        way, point = heading(self._votes.normal(rows), self._norm), self._point[rows]
        away = distance(point, self._images[rows], self._norm)
        stride = away / self._turn[rows].to(away).sqrt()
        self._far[rows] = (point + column(stride, point) * way).clamp_(0.0, 1.0)
        self._locate(rows)


def answer_slope(slope: Tensor, miss: float) -> Tensor:
    """How much answers tell of the normal: mean of answer times standard normal, (n,).

    Args:
        slope: (n,) slope of the chance of an answer, in deviations of the probes, in the
            piecewise linear approximation of the sigmoid.
        miss: Distance of the probes' centre from the boundary, in deviations.
    """
    half = 1 / (2 * slope)
    return slope * (((miss + half) / math.sqrt(2)).erf() - ((miss - half) / math.sqrt(2)).erf())


def _sharp(miss: float) -> float:
    """The limit of `answer_slope` for a sharp boundary."""
    return math.sqrt(2 / math.pi) * math.exp(-(miss**2) / 2)
