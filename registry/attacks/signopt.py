"""Sign-OPT: descend the distance to the boundary over directions, one query a sign."""

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
from registry.moves.phases import DONE, Phase, group_size, phased
from registry.moves.radius import Radius
from registry.moves.starting import LOOKS, plain_images

_DRAW, _CHECK, _FIRST, _PROBE, _WALK, _FINE = range(6)
_TRIALS = 15  # of longer or shorter steps along one estimate
_LEAST_STEP = {Norm.L2: 1e-4, Norm.LINF: 1e-6}
_FIRST_WIDTH = {Norm.L2: 1e-3, Norm.LINF: 1e-5}  # of the bisection of a first direction
_LEAST_PROBE = 1e-8


@attack(
    source=Source(
        paper="Cheng et al.: Sign-OPT: A Query-Efficient Hard-label Adversarial Attack (ICLR)",
        url="https://arxiv.org/abs/1909.10773",
        year=2020,
        code="https://github.com/cmhcbb/attackbox",
        differences=(
            "every look counts; the official code forgets one in each bracketing",
            "distances are those of the clipped image, not of the ray",
            "a bracketing gives up after 100 looks, not at a length of 20",
            "without a first direction among the draws, plain images are tried",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    goal=Goal.NEAREST,
    starts=True,
    presets={
        "official": Preset("cmhcbb/attackbox, any data set", {}),
        "blackboxbench": Preset(
            "BlackboxBench",
            {"starts": 10},
            note="there directions have unit l2 length under linf too",
        ),
    },
)
def signopt(
    problem: Problem,
    rng: RowRng,
    *,
    starts: Annotated[int, Field(ge=1)] = 100,
    probes: Annotated[int, Field(ge=1)] = 200,
    step: Annotated[float, Field(gt=0)] = 0.2,
    probe: Annotated[float, Field(gt=0)] = 1e-3,
) -> Steps:
    """Estimate the sign of the distance's change along random directions, and step (Algorithm 1).

    An iteration costs `probes` queries and a bracketing with bisection for each step tried.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        starts: First directions that are tried, one query each and a bisection for each record.
        probes: Directions of an estimate.
        step: First step, in units of the direction, which has length 1 in the threat's norm.
        probe: First distance of the probes, in the same units.
    """
    state = _SignOPT(problem, rng, (starts, probes), step, probe)
    yield from phased(problem, state.phases, state.at)


class _SignOPT:
    """A direction and the radius at which it meets the boundary, for every image."""

    def __init__(
        self, problem: Problem, rng: RowRng, counts: tuple[int, int], step: float, probe: float
    ) -> None:
        self._problem, self._images, self._rng = problem, problem.images, rng
        self._norm = problem.threat.norm
        self._starts, self._probes = counts
        self._plain = plain_images(problem.images)
        if problem.starts is not None:
            self._starts, self._plain = LOOKS, self._plain[:0]
        self._group = group_size(problem.images[0].numel())
        self.at = torch.zeros_like(problem.labels)
        self._drawn, self._left, self._trial = (torch.zeros_like(self.at) for _ in range(3))
        self._shorter = torch.zeros_like(self.at, dtype=torch.bool)  # steps that are tried
        like = torch.zeros_like(self.at, dtype=torch.float64)
        self._step, self._probe = like + step, like + probe
        self._length, self._best = like + torch.inf, like + torch.inf
        self._tried = like.clone()  # length of a first direction
        # The direction held, the one that is tried, the best one tried, and the sum of probes.
        self._held, self._way, self._found, self._sum = (
            torch.zeros_like(problem.images) for _ in range(4)
        )
        self._noise = problem.images[:0]  # of the probes in flight
        self._first = Bisection(problem, self._on_ray, self._keep_first)
        self._radius = Radius(problem, self._on_ray, _FINE, self.at, self._measured)
        self.phases = [
            Phase(self._ask_draw, self._tell_draw),
            Phase(self._ask_check, self._tell_check),
            self._first.phase,
            Phase(self._ask_probes, self._tell_probes),
            self._radius.walk,
            self._radius.fine,
        ]

    def _on_ray(self, rows: Tensor, radius: Tensor) -> Tensor:
        images = self._images[rows]
        return (images + column(radius.to(images), images) * self._way[rows]).clamp_(0.0, 1.0)

    def _size(self, ways: Tensor) -> Tensor:
        """Length of directions in the threat's norm, (n,)."""
        return distance(ways, torch.zeros_like(ways), self._norm).clamp_min(1e-12)

    def _unit(self, ways: Tensor) -> Tensor:
        return ways / column(self._size(ways), ways)

    def _ask_draw(self, rows: Tensor) -> Queries:
        if self._problem.starts is not None:
            ways = self._problem.starts[rows] - self._images[rows]
        else:
            ways = self._rng.normal(rows, self._images.shape[1:]).to(self._images)
            late = self._drawn[rows] >= self._starts
            which = (self._drawn[rows] - self._starts)[late]
            ways[late] = self._plain[which] - self._images[rows[late]]
        self._tried[rows] = self._size(ways).double()
        self._way[rows] = self._unit(ways)
        return Queries((self._images[rows] + ways).clamp_(0.0, 1.0), rows)

    def _tell_draw(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        self._drawn[rows] += 1
        self._next_draw(rows[~hit])
        far = hit & (self._tried[rows] > self._length[rows])
        self.at[rows[far]] = _CHECK
        self._open_first(rows[hit & ~far])

    def _ask_check(self, rows: Tensor) -> Queries:
        return Queries(self._on_ray(rows, self._length[rows]), rows)

    def _tell_check(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        self._tried[rows] = self._length[rows]
        self._next_draw(rows[~hit])
        self._open_first(rows[hit])

    def _open_first(self, rows: Tensor) -> None:
        self.at[rows] = _FIRST
        if len(rows):
            self._first.begin(rows, 0.0, self._tried[rows], _FIRST_WIDTH[self._norm])

    def _keep_first(self, rows: Tensor) -> None:
        self._length[rows], self._held[rows] = self._first.high[rows], self._way[rows]
        self._next_draw(rows)

    def _next_draw(self, rows: Tensor) -> None:
        drawn, none = self._drawn[rows], self._length[rows].isinf()
        enough = 1 if self._problem.starts is not None else self._starts
        last = torch.where(none, self._starts + len(self._plain), enough)
        self.at[rows] = torch.where(drawn < last, _DRAW, DONE)
        self._estimate(rows[(drawn >= last) & ~none])

    def _estimate(self, rows: Tensor) -> None:
        self.at[rows] = _PROBE
        self._left[rows], self._sum[rows] = self._probes, 0.0

    def _ask_probes(self, rows: Tensor) -> Queries:
        owners = rows.repeat_interleave(self._left[rows].clamp_max(self._group))
        noise = self._rng.normal(owners, self._images.shape[1:]).to(self._images)
        self._noise = self._unit(noise)
        ways = column(self._probe[owners].to(noise), noise) * self._noise + self._held[owners]
        reach = (self._length[owners] / self._size(ways)).to(ways)
        return Queries((ways * column(reach, ways) + self._images[owners]).clamp_(0, 1), owners)

    def _tell_probes(self, queries: Queries, hit: Tensor) -> None:
        owners = queries.rows
        sign = 1 - 2 * hit.to(self._noise)  # a hit: the boundary is nearer that way
        self._sum.index_add_(0, owners, self._noise * column(sign, self._noise))
        self._left.index_add_(0, owners, -torch.ones_like(owners))
        rows = torch.unique_consecutive(owners)
        self._search(rows[self._left[rows] == 0])

    def _search(self, rows: Tensor) -> None:
        """Start the line search along a new estimate."""
        self._sum[rows] /= self._probes
        self._best[rows], self._trial[rows], self._shorter[rows] = self._length[rows], 0, False
        self._try(rows)

    def _try(self, rows: Tensor) -> None:
        step = column(self._step[rows].to(self._sum), self._sum)
        self._way[rows] = self._unit(self._held[rows] - step * self._sum[rows])
        self.at[rows] = _WALK
        self._radius.begin(rows, self._best[rows], self._probe[rows] / 500)

    def _measured(self, rows: Tensor) -> None:
        """Take longer steps while they come nearer; if the first did not, shorter ones."""
        self._trial[rows] += 1
        shorter, value = self._shorter[rows], self._radius.value[rows]
        nearer = value < self._best[rows]
        self._best[rows] = torch.where(nearer, value, self._best[rows])
        self._found[rows[nearer]] = self._way[rows[nearer]]
        self._step[rows[~shorter]] *= 2
        last = self._trial[rows] >= _TRIALS
        none = self._best[rows] >= self._length[rows]
        turn = ~shorter & none & (~nearer | last)
        over = torch.where(shorter, nearer | last, (~nearer | last) & ~turn)
        self._trial[rows[turn]], self._shorter[rows[turn]] = 0, True
        going = rows[~over]
        self._step[going[self._shorter[going]]] /= 4
        self._try(going)
        self._conclude(rows[over])

    def _conclude(self, rows: Tensor) -> None:
        nearer = rows[self._best[rows] < self._length[rows]]
        self._held[nearer], self._length[nearer] = self._found[nearer], self._best[nearer]
        lost = rows[self._step[rows] < _LEAST_STEP[self._norm]]
        self._step[lost] = 1.0
        self._probe[lost] /= 10
        self._estimate(rows)
        self.at[rows[self._probe[rows] < _LEAST_PROBE]] = DONE
