"""SimBA: one step along each direction of a basis, forth or back, kept if the loss falls."""

from __future__ import annotations

from itertools import count
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import corners
from benchmark.objective import Loss, Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Access, Norm, Problem, Queries, Steps, Threat
from registry.moves.bases import Basis, Cosines, Order, Pixels, walks

_SMALL = 64  # longest side of images whose whole spectrum is walked by default
_WINDOW = 2**20  # pixel values looked at together when candidates are passed over

_ITERATIONS = "there the budget counts directions, of up to two queries each"


@attack(
    source=Source(
        paper="Guo et al.: Simple Black-box Adversarial Attacks (ICML)",
        url="https://arxiv.org/abs/1905.07121",
        year=2019,
        code="https://github.com/cg563/simple-blackbox-attack",
        differences=(
            "the second sign is asked only if the first failed, as in the paper; the batched "
            "official code asks both, takes the better and may charge one",
            "the clean image is asked first, and the query is charged",
            "every image walks the directions in its own order",
            "l2: a candidate outside the ball is passed over without being asked or charged",
            "pixels: the ball bounds the walk, which the official code leaves free",
            "a hit is the answer to the candidate itself, not to another question about it",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    examples=("[basis=pixel]", "[order=strided,frequencies=3,stride=2]"),
    presets={
        "official": Preset(
            "cg563/simple-blackbox-attack, ImageNet, pixels",
            {"basis": "pixel", "order": "random", "step": 0.2},
            Norm.L2,
            note="there no ball bounds the walk",
        ),
        "official-dct": Preset(
            "cg563/simple-blackbox-attack, ImageNet, DCT",
            {"frequencies": 28, "step": 0.2},
            Norm.L2,
            note="there no ball bounds the walk",
        ),
        "official-linf": Preset(
            "cg563/simple-blackbox-attack, ImageNet, DCT, linf",
            {"order": "random", "frequencies": 224},
            Norm.LINF,
        ),
        "official-cifar": Preset(
            "cg563/simple-blackbox-attack, CIFAR-10, DCT",
            {"order": "random", "frequencies": 32, "step": 0.2},
            Norm.L2,
            note="there no ball bounds the walk",
        ),
        "unig": Preset(
            "UniG, CIFAR-10 and ImageNet",
            {"order": "random", "frequencies": 32},
            Norm.LINF,
            note=_ITERATIONS,
        ),
        "rfd": Preset(
            "randomized feature defense (mail-research), pixels",
            {"basis": "pixel", "order": "random"},
            Norm.LINF,
            note=f"{_ITERATIONS}, and plus is tried first",
        ),
        "rfd-dct": Preset(
            "randomized feature defense (mail-research), DCT",
            {"frequencies": 28},
            Norm.LINF,
            note=f"{_ITERATIONS}, and plus is tried first",
        ),
    },
)
def simba(
    problem: Problem,
    rng: RowRng,
    *,
    basis: Literal["pixel", "dct"] = "dct",
    step: Annotated[float, Field(gt=0)] | None = None,
    order: Order = "strided",
    frequencies: Annotated[int, Field(gt=0)] | None = None,
    stride: Annotated[int, Field(gt=0)] = 7,
    loss: Loss = "prob",
) -> Steps:
    """Try each direction once: minus the step, then, if the loss did not fall, plus the step.

    The clean image costs one query, a direction one or two. An image that has walked all its
    directions asks no more, whatever is left of its budget.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        basis: Single pixel values, or cosines over a whole channel (DCT).
        step: l2 length of a step, in pixel units of the [0, 1] range; none means 0.2, eps for
            pixels under linf, and eps / 25 under l2, which is 0.2 at the usual 5 of ImageNet: a
            walk has room for (eps / step)**2 steps.
        order: `random`: the low frequencies, shuffled. `strided`: the low frequencies, shuffled,
            then shells of higher ones. `diagonal`: all, from low to high, nothing drawn.
        frequencies: Low frequencies of each dimension (of pixels: rows and columns); none means
            all for pixels and for images of at most 64 by 64, else 28.
        stride: Frequencies by which a shell is wider than the one before.
        loss: Loss that has to fall.
    """
    images, threat = problem.images, problem.threat
    longest = max(images.shape[2:])
    low = frequencies or (longest if basis == "pixel" or longest <= _SMALL else 28)
    length = step or _usual_step(threat, basis)
    directions = walks(rng, problem.rows, images, order, low, stride)
    kind = Pixels(images) if basis == "pixel" else Cosines(images)
    walk, objective = _Walk(problem, kind, directions, length), Objective(problem, loss)
    replies = yield Queries(walk.images, walk.rows)
    walk.best = objective(replies, walk.rows)
    while True:
        walk.keep(~replies.finished)
        walk.skip()
        if not len(walk.rows):
            return
        tried = walk.attempt()
        replies = yield Queries(walk.images, walk.rows)
        walk.settle(tried, objective(replies, walk.rows))


def _usual_step(threat: Threat, basis: Literal["pixel", "dct"]) -> float:
    if threat.norm is Norm.L2:
        return threat.eps / 25
    return threat.eps if basis == "pixel" else 0.2


class _Step(NamedTuple):
    """One candidate for each of n images: what changes in one cell of each.

    Attributes:
        place: (n,) cells, numbered through all images.
        old: (n, k) pixel values now.
        new: (n, k) pixel values after the step, in the box and the linf ball.
        delta: (n, k) perturbation after the step, before it is cut.
        growth: (n,) change of the squared length of the cut perturbation, float64.
    """

    place: Tensor
    old: Tensor
    new: Tensor
    delta: Tensor
    growth: Tensor


class _Walk:
    """Where the images that are still attacked stand.

    Attributes:
        rows: (n,) rows of the problem.
        images: (n, C, H, W), the images to ask about.
        best: (n,) lowest loss so far.
    """

    def __init__(self, problem: Problem, basis: Basis, directions: Tensor, step: float) -> None:
        self.rows, self.images = problem.rows, problem.images.clone()
        self.best = self.images.new_zeros(len(self.rows))
        self._threat, self._basis, self._step = problem.threat, basis, step
        self._directions, self._end = directions, 2 * directions.shape[1]
        self._centres, self._delta = problem.images, torch.zeros_like(self.images)
        # An even turn tries minus one direction, the odd one after it tries plus the same.
        self._turn, self._taken = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        self._square = torch.zeros_like(self.rows, dtype=torch.float64)

    def keep(self, alive: Tensor) -> None:
        """Drop the rows that are finished."""
        self.rows, self.images, self._centres, self._delta = keep(
            alive, self.rows, self.images, self._centres, self._delta
        )
        self.best, self._turn, self._taken, self._square = keep(
            alive, self.best, self._turn, self._taken, self._square
        )

    def skip(self) -> None:
        """Pass over candidates outside the l2 ball, and drop images that have none left."""
        if self._threat.norm is Norm.L2:
            # Directions are orthonormal and cutting shortens, so few candidates need a look.
            near = (self._taken + 1) * self._step**2 > self._threat.eps**2
            todo = (near & (self._turn < self._end)).nonzero()[:, 0]
            for turn in count():
                if not len(todo):
                    break
                if turn == 2:
                    todo = self._leap(todo)
                todo = self._advance(todo, self._window(len(todo)) if turn else 1)
        self.keep(self._turn < self._end)

    def _window(self, images: int) -> int:
        """Candidates of each image to look at together."""
        cell = self._centres[0].numel() // self._basis.cells
        return max(1, min(64, _WINDOW // (images * cell + 1)))

    def _advance(self, todo: Tensor, window: int) -> Tensor:
        """Move images on to the first of `window` candidates that fits; return the others."""
        ahead = self._turn[todo, None] + torch.arange(window, device=todo.device)
        over = ahead >= self._end
        members = todo.repeat_interleave(window)
        growth = self._candidate(members, ahead.clamp_max(self._end - 1).flatten()).growth
        fits = self._square[todo, None] + growth.view(-1, window) <= self._threat.eps**2
        fits |= over
        found = fits.any(1)
        self._turn[todo] += torch.where(found, fits.int().argmax(1), window)
        return todo[~found]

    def _leap(self, todo: Tensor) -> Tensor:
        """Move images on to the first candidate that may fit; return those that have one."""
        least = self._basis.shortest(
            self.images[todo], self._centres[todo], self._delta[todo], self._step
        )
        directions = self._directions[self.rows[todo]].long()
        least = least.gather(1, directions[:, :, None].expand(-1, -1, 2)).flatten(1)
        fits = least <= self._threat.eps**2 * (1 + 1e-4)  # more than rounding
        fits &= torch.arange(self._end, device=todo.device) >= self._turn[todo, None]
        found = fits.any(1)
        self._turn[todo] = torch.where(found, fits.int().argmax(1), self._end)
        return todo[found]

    def attempt(self) -> _Step:
        """Put the next candidate of every image in its place."""
        tried = self._candidate(torch.arange(len(self.rows), device=self.rows.device), self._turn)
        self._cells(self.images).index_copy_(0, tried.place, tried.new)
        return tried

    def settle(self, tried: _Step, loss: Tensor) -> None:
        """Keep the candidates with a lower loss, put back the others, and move on."""
        better = loss < self.best
        self.best = torch.where(better, loss, self.best)
        worse, kept = (~better).nonzero()[:, 0], better.nonzero()[:, 0]
        self._cells(self.images).index_copy_(0, tried.place[worse], tried.old[worse])
        self._cells(self._delta).index_copy_(0, tried.place[kept], tried.delta[kept])
        self._square += torch.where(better, tried.growth, 0)
        self._taken += better
        self._turn = torch.where(better, self._turn | 1, self._turn) + 1

    def _candidate(self, members: Tensor, turn: Tensor) -> _Step:
        """Make the candidates of these images, (m,), at these turns."""
        direction = self._directions[self.rows[members], turn // 2].long()
        place = members * self._basis.cells + self._basis.cell(direction)
        centre, old, delta = (
            self._cells(part).index_select(0, place)
            for part in (self._centres, self.images, self._delta)
        )
        scale = (turn % 2 * 2 - 1).to(delta) * self._step
        delta += self._basis.pattern(direction, scale)
        new = centre + delta
        if self._threat.norm is Norm.LINF:
            low, high = corners(centre, self._threat.eps)
            new = torch.minimum(torch.maximum(new, low), high)
            return _Step(place, old, new, delta, self._square.new_zeros(len(place)))
        new.clamp_(0.0, 1.0)
        growth = (new - centre).square().sum(1) - (old - centre).square().sum(1)
        return _Step(place, old, new, delta, growth.double())

    def _cells(self, images: Tensor) -> Tensor:
        """View images as their cells, (n * cells, k)."""
        return images.view(len(images) * self._basis.cells, -1)
