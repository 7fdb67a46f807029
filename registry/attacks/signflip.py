"""SignFlip (SFA): shrink the perturbation and flip the signs of a few values, in turn."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from benchmark.geometry import column
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Goal, Norm, Problem, Queries, Steps
from registry.moves.bracket import Bisection
from registry.moves.phases import Phase, clip_around, phased
from registry.moves.starting import Search

_START, _CLIP, _SHRINK, _FLIP = range(4)
_EVERY = 10  # turns between two adaptations
_KEPT = (0.99, 0.9999)  # chance of a value to keep its sign
_OFTEN, _SELDOM = 0.7, 0.3  # shares of successes above and below which steps change


@attack(
    source=Source(
        paper="Chen et al.: Boosting Decision-based Black-box Adversarial Attacks with "
        "Random Sign Flip (ECCV)",
        url="https://doi.org/10.1007/978-3-030-58555-6_17",
        year=2020,
        code="https://github.com/wubaoyuan/Sign-Flip-Attack",
        differences=(
            "the draws of the start and every check count; the official code counts neither",
            "each image draws its own start, and gives up alone",
            "a flip changes a sign at least (`require_flip`): an empty one repeats an answer",
            "a shrinking step is at most half the perturbation; a longer one made it constant",
            "stops at the query that enters the ball; the official code after the next flip",
        ),
    ),
    access=Access.LABEL,
    norms=(Norm.LINF,),
    randomised=True,
    goal=Goal.NEAREST,
    starts=True,
    examples=("[resize=2]",),
    presets={
        "official": Preset(
            "wubaoyuan/Sign-Flip-Attack, CIFAR-10; BlackboxBench; RFD",
            {"require_flip": False},
            note="there the search for a start is not counted",
        ),
        "official-imagenet": Preset(
            "wubaoyuan/Sign-Flip-Attack, ImageNet demo", {"resize": 2, "require_flip": False}
        ),
    },
)
def signflip(
    problem: Problem,
    rng: RowRng,
    *,
    step: Annotated[float, Field(gt=0)] = 0.004,
    flip: Annotated[float, Field(ge=1e-4, le=0.01)] = 0.001,
    resize: Annotated[int, Field(ge=1)] = 1,
    require_flip: bool = True,
) -> Steps:
    """Random search that shrinks the linf length and flips signs, one query each (Algorithm 1).

    A start costs the noise images shown and 10 queries of bisection.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        step: First reduction of the linf length, pixel units; adapts.
        flip: First chance of a value to change its sign; adapts between 1e-4 and 0.01.
        resize: Steps and flips are drawn on a grid that is coarser by this factor.
        require_flip: Every flip changes at least one sign.
    """
    state = _SignFlip(problem, rng, step, flip, (resize, require_flip))
    yield from phased(problem, state.phases, state.at)


class _SignFlip:
    """Perturbations, which may reach outside the box, and the adapted steps."""

    def __init__(
        self, problem: Problem, rng: RowRng, step: float, flip: float, grid: tuple[int, bool]
    ) -> None:
        self._images, self._rng = problem.images, rng
        self._resize, self._require = grid
        _, channels, height, width = problem.images.shape
        coarse = (max(height // self._resize, 1), max(width // self._resize, 1))
        count = len(problem.images)
        self.at = torch.zeros_like(problem.labels)
        self._delta = torch.zeros_like(problem.images)
        self._step = problem.images.new_full((count,), step, dtype=torch.float64)
        self._keep = problem.images.new_full((count, channels, *coarse), 1 - flip)
        self._turns, self._shrunk, self._flipped = (torch.zeros_like(self.at) for _ in range(3))
        self._shrunken = self._turned = self._delta  # perturbations of the last questions
        self._signs = self._keep  # and the flips of the last flipping ones
        search = Search(problem, rng, self.at, self._found)
        self._bisection = Bisection(problem, self._clipped, self._begin)
        self.phases = [
            search.phase,
            self._bisection.phase,
            Phase(self._ask_shrink, self._tell_shrink),
            Phase(self._ask_flip, self._tell_flip),
        ]

    def _found(self, queries: Queries) -> None:
        rows = queries.rows
        self._delta[rows] = queries.images - self._images[rows]
        self.at[rows] = _CLIP
        length = _length(self._delta[rows])
        self._bisection.begin(rows, 0.0, length, length / 1000)  # ten halvings

    def _clipped(self, rows: Tensor, radius: Tensor) -> Tensor:
        far = (self._images[rows] + self._delta[rows]).clamp_(0.0, 1.0)
        return clip_around(self._images[rows], far, radius)

    def _begin(self, rows: Tensor) -> None:
        radius = column(self._bisection.high[rows].to(self._delta), self._images)
        self._delta[rows] = torch.minimum(torch.maximum(self._delta[rows], -radius), radius)
        self.at[rows] = _SHRINK

    def _ask_shrink(self, rows: Tensor) -> Queries:
        delta = self._delta[rows]
        length = _length(delta)
        step = torch.minimum(self._step[rows], length / 2)
        noise = self._fine(self._rng.cube(rows, self._keep.shape[1:]).sign().to(delta))
        reach = column((length - step).to(delta), delta)
        moved = noise.mul_(column(step.to(delta), delta)).add_(delta)
        self._shrunken = torch.minimum(torch.maximum(moved, -reach), reach)
        return Queries((self._images[rows] + self._shrunken).clamp_(0.0, 1.0), rows)

    def _tell_shrink(self, queries: Queries, hit: Tensor) -> None:
        won = queries.rows[hit]
        self._delta[won] = self._shrunken[hit]
        self._shrunk[won] += 1
        self.at[queries.rows] = _FLIP

    def _ask_flip(self, rows: Tensor) -> Queries:
        self._signs = self._draw_flips(rows)
        delta = self._delta[rows]
        self._turned = torch.where(self._fine(self._signs) < 0, -delta, delta)
        return Queries((self._images[rows] + self._turned).clamp_(0.0, 1.0), rows)

    def _tell_flip(self, queries: Queries, hit: Tensor) -> None:
        rows, won = queries.rows, queries.rows[hit]
        self._delta[won] = self._turned[hit]
        self._keep[won] = (self._keep[won] - 1e-4 * self._signs[hit]).clamp_(*_KEPT)
        self._flipped[won] += 1
        self._turns[rows] += 1
        self._adapt(rows[self._turns[rows] % _EVERY == 0])
        self.at[rows] = _SHRINK

    def _adapt(self, rows: Tensor) -> None:
        """Change steps so that neither nearly all nor hardly any succeed."""
        shrunk, flipped = self._shrunk[rows] / _EVERY, self._flipped[rows] / _EVERY
        self._step[rows] *= 1.5 ** ((shrunk > _OFTEN).double() - (shrunk < _SELDOM).double())
        more = (flipped < _SELDOM).float() - (flipped > _OFTEN).float()
        keep = self._keep[rows]
        self._keep[rows] = (keep + column(1e-3 * more.to(keep), keep)).clamp_(*_KEPT)
        self._shrunk[rows], self._flipped[rows] = 0, 0

    def _draw_flips(self, rows: Tensor) -> Tensor:
        """Draw -1 for each value that flips and 1 for each that stays, on the coarse grid."""
        keep = self._keep[rows].flatten(1)
        flips = self._uniform(rows, keep.shape[1:]) >= keep
        empty = ~flips.any(1)
        if self._require and bool(empty.any()):
            flips[empty] = self._some_flips(rows[empty], keep[empty])
        return torch.where(flips, -1.0, 1.0).to(keep).view(len(rows), *self._keep.shape[1:])

    def _uniform(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._rng.cube(rows, shape).add_(1).div_(2).to(self._keep)

    def _some_flips(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Draw flips given that there is one: the place of the first, then those behind."""
        reached = -torch.expm1(keep.double().log().cumsum(1))  # chance of a flip up to here
        draws = self._uniform(rows, (1 + keep.shape[1],))
        first = (reached < draws[:, :1] * reached[:, -1:]).sum(1).clamp_max(keep.shape[1] - 1)
        places = torch.arange(keep.shape[1], device=keep.device)
        behind = (draws[:, 1:] >= keep) & (places > first[:, None])
        return behind | (places == first[:, None])

    def _fine(self, coarse: Tensor) -> Tensor:
        """Bring values on the coarse grid to the size of the images."""
        if self._resize == 1:
            return coarse
        size = self._images.shape[2:]
        return functional.interpolate(coarse, size, mode="bilinear", align_corners=False)


def _length(delta: Tensor) -> Tensor:
    """Largest absolute value of each row, (n,) float64."""
    return delta.abs().flatten(1).amax(1).double()
