"""GeoDA: a flat boundary, its normal estimated in low frequencies, rays from the image."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, distance, length
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Aim, Goal, Norm, Problem, Queries, Steps
from registry.moves.bracket import Bisection
from registry.moves.frequencies import Frequencies
from registry.moves.phases import Phase, blend, phased
from registry.moves.starting import Search
from registry.moves.votes import Votes, heading

_START, _BLEND, _PROBE, _GROW = range(4)
_GROWTHS = 20  # looks along a ray: ten times the distance reached so far
_SHARE = 0.6 ** (-2 / 3)  # probes of an iteration over those of the one before
_FIRST = 80  # most probes of the first iteration
_RESERVED = 25  # queries of an iteration that are not probes


@attack(
    source=Source(
        paper="Rahmati et al.: GeoDA: A Geometric Framework for Black-box Attacks (CVPR)",
        url="https://arxiv.org/abs/2003.06468",
        year=2020,
        code="https://github.com/thisisalirah/GeoDA",
        differences=(
            "the search for a start and every check count",
            "works on pixels in [0, 1] and asks valid images only; the official code works on "
            "normalised images and clips no probe",
            "probes are 0.03 in each frequency, not 2e-4, which noise drowns (`probe`)",
            "the normal has unit length, so that a ray's first look does not depend on the number "
            "of probes: it lies at `reach` of the distance reached so far",
            "a ray that finds nothing in 20 looks (there 100) leaves the image where it was",
            "probes are planned for every budget; the official code divides by zero below 250",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    goal=Goal.NEAREST,
    aims=(Aim.UNTARGETED,),
    presets={
        "official": Preset(
            "thisisalirah/GeoDA, ImageNet, 4,000 queries",
            {"frequencies": 75, "probe": 2e-4},
            note="there lengths are in units of normalised images",
        ),
        "blackboxbench": Preset("BlackboxBench, CIFAR-10 and ImageNet", {"probe": 2e-4}),
    },
)
def geoda(
    problem: Problem,
    rng: RowRng,
    *,
    frequencies: Annotated[int, Field(ge=1)] = 10,
    probe: Annotated[float, Field(gt=0)] = 0.03,
    reach: Annotated[float, Field(gt=0)] = 0.5,
    tolerance: Annotated[float, Field(gt=0)] = 1e-4,
) -> Steps:
    """Estimate the normal at the boundary, and look along it from the clean image (Algorithm 1).

    The budget is split over iterations in advance, each with more probes than the one before;
    what is left after them goes to further iterations like the last.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        frequencies: Lowest frequencies in each direction of which probes are made.
        probe: Standard deviation of a probe in each of these, pixel units.
        reach: Length of one growth of a ray, as share of the distance reached so far.
        tolerance: Euclidean width at which bisections stop.
    """
    state = _GeoDA(problem, rng, frequencies, probe, (reach, tolerance))
    yield from phased(problem, state.phases, state.at)


def shares(budget: int) -> list[int]:
    """Probes of each iteration: growing shares of what a budget leaves besides bisections.

    The number of iterations is the least that keeps the first share at 80 or below.
    """
    reserved = _RESERVED * _iterations(budget)
    probes = max(budget - reserved, 1)
    count = _iterations(probes)
    whole = sum(_SHARE**turn for turn in range(count))
    return [max(round(probes * _SHARE**turn / whole), 1) for turn in range(count)]


def _iterations(probes: int) -> int:
    count = 1
    while probes > _FIRST * sum(_SHARE**turn for turn in range(count)):
        count += 1
    return count


class _GeoDA:
    """A point on the boundary for every image, and the normal summed over iterations."""

    def __init__(
        self,
        problem: Problem,
        rng: RowRng,
        frequencies: int,
        probe: float,
        lengths: tuple[float, float],
    ) -> None:
        self._images, self._norm = problem.images, problem.threat.norm
        self._probe = probe
        self._reach, self._tolerance = lengths
        self._plan = torch.tensor(shares(problem.questions), device=problem.labels.device)
        self.at = torch.zeros_like(problem.labels)
        self._turn, self._grown = self.at.clone(), self.at.clone()
        self._growth = torch.zeros_like(problem.labels, dtype=torch.float64)
        self._far, self._point = problem.images.clone(), problem.images.clone()
        self._normal, self._way = (torch.zeros_like(problem.images) for _ in range(2))
        search = Search(problem, rng, self.at, self._found, noise="growing")
        waves = Frequencies(rng, problem.images)
        self._blending = Bisection(problem, self._blended, self._arrive)
        self._votes = Votes(
            problem, lambda owners: waves.low(owners, frequencies), self._point, self._head
        )
        grow = Phase(self._ask_grow, self._tell_grow)
        self.phases = [search.phase, self._blending.phase, self._votes.phase, grow]

    def _found(self, queries: Queries) -> None:
        images, rows = queries
        self._far[rows] = images
        self.at[rows] = _BLEND
        width = self._tolerance / length(images - self._images[rows]).clamp_min(1e-12)
        self._blending.begin(rows, 0.0, 1.0, width)

    def _blended(self, rows: Tensor, share: Tensor) -> Tensor:
        return blend(self._images[rows], self._far[rows], share)

    def _arrive(self, rows: Tensor) -> None:
        self._point[rows] = self._blended(rows, self._blending.high[rows])
        self._estimate(rows)

    def _estimate(self, rows: Tensor) -> None:
        self.at[rows] = _PROBE
        count = self._plan[self._turn[rows].clamp_max(len(self._plan) - 1)]
        self._turn[rows] += 1
        radius = torch.full_like(rows, self._probe, dtype=torch.float64)
        self._votes.begin(rows, count, radius)

    def _head(self, rows: Tensor) -> None:
        """Add the new estimate to the normal, and start a ray from the clean image along it."""
        self._normal[rows] += self._votes.mean(rows)
        self._way[rows] = heading(self._normal[rows], self._norm)
        away = distance(self._point[rows], self._images[rows], self._norm)
        self._growth[rows] = self._reach * away.double()
        self._grown[rows] = 0
        self.at[rows] = _GROW

    def _ask_grow(self, rows: Tensor) -> Queries:
        images = self._images[rows]
        reach = self._growth[rows] * (self._grown[rows] + 1)
        step = self._way[rows] * column(reach.to(images), images)
        return Queries((images + step).clamp_(0.0, 1.0), rows)

    def _tell_grow(self, queries: Queries, hit: Tensor) -> None:
        won, lost = queries.rows[hit], queries.rows[~hit]
        self._grown[lost] += 1
        over = lost[self._grown[lost] >= _GROWTHS]
        if len(won):
            self._found(Queries(queries.images[hit], won))
        if len(over):
            self._estimate(over)
