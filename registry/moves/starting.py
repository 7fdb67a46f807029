"""The search for a first adversarial image: every look is a question."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from benchmark.geometry import column
from benchmark.rng import RowRng
from benchmark.types import Problem, Queries
from registry.moves.bracket import Bisection
from registry.moves.phases import DONE, Phase, blend

Noise = Literal["uniform", "growing"]

DRAWS = 100  # noise images an image may try
EARLY = {"uniform": 10, "growing": 30}  # of these before plain colours: ten misses foretell more
LOOKS = 3  # at the given image of the target's class
_GROWTH = 0.02  # of the standard deviation from one draw to the next, pixel units


class Search:
    """Shows noise and plain images until one is adversarial.

    Untargeted: `EARLY` noise images, the plain images at the corners of the colour cube, then noise
    again; an image that never hits is given up. Targeted: the given image of the class, `LOOKS`
    times at most.

    Args:
        problem: The images under attack.
        rng: One stream per image.
        at: (B,) phases; those given up are `DONE`.
        then: Called with the questions that hit, one for each image.
        noise: Uniform noise, or normal noise around the image that grows by 0.02 with each draw.

    Attributes:
        phase: To be listed among the phases.
    """

    def __init__(
        self,
        problem: Problem,
        rng: RowRng,
        at: Tensor,
        then: Callable[[Queries], None],
        noise: Noise = "uniform",
    ) -> None:
        self._problem, self._rng, self._at, self._then = problem, rng, at, then
        self._noise, self._early = noise, EARLY[noise]
        self._tries = torch.zeros_like(at)
        self._plain = plain_images(problem.images)
        self._most = LOOKS if problem.starts is not None else DRAWS + len(self._plain)
        self.phase = Phase(self._ask, self._tell)

    def _ask(self, rows: Tensor) -> Queries:
        if self._problem.starts is not None:
            return Queries(self._problem.starts[rows], rows)
        tries, count = self._tries[rows], len(self._plain)
        plain = (tries >= self._early) & (tries < self._early + count)
        images = self._plain[(tries - self._early).clamp(0, count - 1)]
        noisy = rows[~plain]
        if len(noisy):
            drawn = torch.where(tries < self._early, tries, tries - count)[~plain]
            images[~plain] = self._drawn(noisy, drawn)
        return Queries(images, rows)

    def _drawn(self, rows: Tensor, number: Tensor) -> Tensor:
        images = self._problem.images
        if self._noise == "uniform":
            return self._rng.uniform(rows, images.shape[1:]).to(images)
        noise = self._rng.normal(rows, images.shape[1:]).to(images)
        scale = column(_GROWTH * (number + 1).to(images), noise)
        return (images[rows] + scale * noise).clamp_(0.0, 1.0)

    def _tell(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        self._tries[rows] += 1
        self._at[rows[~hit & (self._tries[rows] >= self._most)]] = DONE
        if bool(hit.any()):
            self._then(Queries(queries.images[hit], rows[hit]))


def plain_images(images: Tensor) -> Tensor:
    """Images of one colour: every corner of the colour cube, or black and white."""
    channels = images.shape[1]
    corners = list(itertools.product((0.0, 1.0), repeat=channels if channels <= 3 else 1))
    colours = torch.tensor(corners, dtype=images.dtype, device=images.device)
    return colours[:, :, None, None].expand(-1, *images.shape[1:]).contiguous()


class Approach:
    """Finds a start and halves the way back to the boundary ten times.

    Args:
        problem: The images under attack.
        rng: One stream per image.
        at: (B,) phases; images begin in phase 0, the search, and come back in phase 1.
        points: (B, C, H, W), where the points that are reached are put.
        then: Called with the rows that have arrived, (n,).
        noise: Of the search.

    Attributes:
        phases: The two phases, the first of an attack.
    """

    def __init__(
        self,
        problem: Problem,
        rng: RowRng,
        at: Tensor,
        points: Tensor,
        then: Callable[[Tensor], None],
        noise: Noise = "uniform",
    ) -> None:
        self._images, self._at, self._points, self._then = problem.images, at, points, then
        self._bisection = Bisection(problem, self._blended, self._arrive)
        search = Search(problem, rng, at, self._found, noise)
        self.phases = [search.phase, self._bisection.phase]

    def _found(self, queries: Queries) -> None:
        self._points[queries.rows] = queries.images
        self._at[queries.rows] = 1
        self._bisection.begin(queries.rows, 0.0, 1.0, 1e-3)

    def _blended(self, rows: Tensor, share: Tensor) -> Tensor:
        return blend(self._images[rows], self._points[rows], share)

    def _arrive(self, rows: Tensor) -> None:
        self._points[rows] = self._blended(rows, self._bisection.high[rows])
        self._then(rows)
