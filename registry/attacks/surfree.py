"""SurFree: circles through the boundary point and the image, in planes drawn at random."""

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
from registry.moves.frequencies import Frequencies, zigzag
from registry.moves.phases import Phase, phased
from registry.moves.starting import Approach

_SEARCH, _BLEND, _TRY, _REACH, _ANGLE = range(5)
_FAINT = 1e-3  # strength of a wave that the image does not have
_RIGHT = math.pi / 2  # at this angle the circle meets the image itself


@attack(
    source=Source(
        paper="Maho, Furon and Le Merrer: SurFree: A Fast Surrogate-free Black-box Attack (CVPR)",
        url="https://arxiv.org/abs/2011.12807",
        year=2021,
        code="https://github.com/t-maho/SurFree",
        differences=(
            "the search for a start and every check count; a black image counts too",
            "the start is brought to the boundary by ten halvings",
            "of the points of a circle the nearest that hit is kept; there the farthest candidate",
            "angles end at 90 degrees, where the circle meets the image itself",
            "waves that an image does not have are drawn faintly: a black one has none",
            "the last 10 directions are avoided by default (`memory`), not 100, to save memory",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.L2,),
    randomised=True,
    goal=Goal.NEAREST,
    starts=True,
    presets={
        "official": Preset(
            "t-maho/SurFree, defaults of the code",
            {"rho": 0.95, "memory": 100, "rounds": 7},
            note="there 100 steps end the attack",
        ),
        "config": Preset("t-maho/SurFree, its configuration file; RUB-InfSec/closing_the_gap", {}),
    },
)
def surfree(
    problem: Problem,
    rng: RowRng,
    *,
    angle: Annotated[float, Field(gt=0, lt=90)] = 30.0,
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.98,
    memory: Annotated[int, Field(ge=1)] = 10,
    rounds: Annotated[int, Field(ge=0)] = 10,
    gamma: Annotated[float, Field(gt=0)] = 0.01,
) -> Steps:
    """Turn towards the image on a circle, in a plane with a direction of the image's own cosines.

    A direction costs one query, two if its first side fails, and a bisection of the angle if it
    succeeds.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        angle: First angle that is tried, degrees; adapts.
        rho: Factor of the angle after a direction that failed; success divides by it.
        memory: Earlier directions to which a new one is orthogonal.
        rounds: Most halvings of an angle.
        gamma: Difference of 1 - cos(angle) at which they stop.
    """
    state = _SurFree(problem, rng, (math.radians(angle), rho), memory, (rounds, gamma))
    yield from phased(problem, state.phases, state.at)


class _SurFree:
    """A boundary point, a plane through it, and the bracketed angle, for every image."""

    def __init__(
        self,
        problem: Problem,
        rng: RowRng,
        first: tuple[float, float],
        memory: int,
        bisection: tuple[int, float],
    ) -> None:
        images = self._images = problem.images
        angle, self._rho = first
        self._rounds, self._gamma = bisection
        self._waves = Frequencies(rng, images)
        # Signs are drawn. A plain image has no waves of its own: a little of every one stands in.
        strength = self._waves.forward(images).abs().tanh().clamp_min(_FAINT)
        ranks = zigzag(*images.shape[2:]).to(images.device)
        self._strength = strength * (ranks < (ranks.numel() + 1) // 2)
        # So many that at least half of the directions are left.
        self._memory = max(1, min(memory, images[0].numel() // 4))
        self._past = images.new_zeros((len(images), self._memory, images[0].numel()))
        self.at = torch.zeros_like(problem.labels)
        self._drawn, self._round = self.at.clone(), self.at.clone()
        like = torch.zeros_like(self.at, dtype=torch.float64)
        self._angle, self._side = like + angle, like + 1.0
        self._hit, self._miss = like.clone(), like.clone()  # angles, with their side as sign
        self._both = torch.zeros_like(self.at, dtype=torch.bool)  # the other side is looked at too
        self._point, self._other = images.clone(), torch.zeros_like(images)
        approach = Approach(problem, rng, self.at, self._point, self._turn_to_new, noise="growing")
        self.phases = [
            *approach.phases,
            Phase(self._ask_try, self._tell_try),
            Phase(self._ask_reach, self._tell_reach),
            Phase(self._ask_angle, self._tell_angle),
        ]

    def _turn_to_new(self, rows: Tensor) -> None:
        """Draw a direction orthogonal to the perturbation and to the last ones."""
        drawn = self._waves.own(rows, self._strength[rows]).flatten(1)
        past = self._past[rows]  # orthonormal, or zero
        away = _without(past, (self._point[rows] - self._images[rows]).flatten(1))
        away /= length(away).clamp_min(1e-12)[:, None]
        others = torch.cat((past, away[:, None]), 1)
        drawn = _without(others, _without(others, drawn))  # twice: rounding would add up
        drawn /= length(drawn).clamp_min(1e-12)[:, None]
        self._past[rows, self._drawn[rows] % self._memory] = drawn
        self._other[rows] = drawn.view(len(rows), *self._images.shape[1:])
        self._drawn[rows] += 1
        self._side[rows] = 1.0
        self.at[rows] = _TRY

    def _on_circle(self, rows: Tensor, angle: Tensor) -> Tensor:
        """Points at angles from the perturbation, (n,); 0 is the boundary point."""
        images = self._images[rows]
        away = self._point[rows] - images
        along, across = angle.cos().square(), angle.cos() * angle.sin()
        across = across * length(away).double()
        step = away * column(along.to(away), away)
        step += self._other[rows] * column(across.to(away), away)
        return step.add_(images).clamp_(0.0, 1.0)

    def _ask_try(self, rows: Tensor) -> Queries:
        return Queries(self._on_circle(rows, self._side[rows] * self._angle[rows]), rows)

    def _tell_try(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        won, lost = rows[hit], rows[~hit]
        self._hit[won] = self._side[won] * self._angle[won]
        self._both[won] = self._side[won] > 0
        self._miss[won] = 2 * self._hit[won]
        self._angle[won] = (self._angle[won] / self._rho).clamp_max(_RIGHT * 0.99)
        self.at[won] = _REACH
        self._bound(won)
        first = self._side[lost] > 0
        self._side[lost[first]] = -1.0
        failed = lost[~first]
        self._angle[failed] *= self._rho
        self._turn_to_new(failed)

    def _bound(self, rows: Tensor) -> None:
        """Stop reaching at the image itself, which is known to miss."""
        end = rows[self._miss[rows].abs() >= _RIGHT]
        self._miss[end] = _RIGHT * self._hit[end].sign()
        self._open(end)

    def _ask_reach(self, rows: Tensor) -> Queries:
        return Queries(self._on_circle(rows, self._miss[rows]), rows)

    def _tell_reach(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        self._open(rows[~hit])
        further = rows[hit]
        stride = self._miss[further] - self._hit[further]
        self._hit[further] = self._miss[further]
        self._miss[further] += stride
        self._bound(further)

    def _open(self, rows: Tensor) -> None:
        self.at[rows], self._round[rows], self._side[rows] = _ANGLE, 0, 1.0
        self._narrow(rows)

    def _ask_angle(self, rows: Tensor) -> Queries:
        middle = (self._hit[rows] + self._miss[rows]) / 2
        return Queries(self._on_circle(rows, self._side[rows] * middle), rows)

    def _tell_angle(self, queries: Queries, hit: Tensor) -> None:
        """Halve the angle; where the first side misses, the other is asked at the same angle."""
        rows = queries.rows
        middle, other = (self._hit[rows] + self._miss[rows]) / 2, self._side[rows] < 0
        ask_other = ~hit & ~other & self._both[rows]
        self._side[rows[ask_other]] = -1.0
        crossed = hit & other
        self._miss[rows[crossed]] *= -1
        self._hit[rows[hit]] = torch.where(other, -middle, middle)[hit]
        failed = ~hit & ~ask_other
        self._miss[rows[failed]] = middle[failed]
        self._both[rows[other]] = False
        done = rows[~ask_other]
        self._side[done] = 1.0
        self._round[done] += 1
        self._narrow(done)

    def _narrow(self, rows: Tensor) -> None:
        """Move to the best point of the circle where the angle is known well enough."""
        width = (self._hit[rows].cos() - self._miss[rows].cos()).abs()
        through = rows[(width <= self._gamma) | (self._round[rows] >= self._rounds)]
        if len(through):
            self._point[through] = self._on_circle(through, self._hit[through])
            self._turn_to_new(through)


def _without(others: Tensor, values: Tensor) -> Tensor:
    """Take the parts along orthonormal others, (n, m, D), off values, (n, D)."""
    return values - ((others * values[:, None]).sum(2, keepdim=True) * others).sum(1)
