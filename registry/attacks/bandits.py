"""Bandits: descent along a prior of tiles that two queries a step correct (Bandits-T, -TD)."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, length
from benchmark.objective import Loss, Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Access, Norm, Problem, Queries, Steps
from registry.moves.estimates import descend, probes

_UNPROJECTED = "probes leave ball and box there: --probes free"
_LINF, _L2 = Norm.LINF, Norm.L2
_MADRY = {"step": 0.01, "rate": 100.0, "explore": 1.0, "radius": 0.1}
_MADRY_L2 = {"step": 0.5, "rate": 0.1, "explore": 0.01, "radius": 0.01}
_MACHANIC = {"step": 1 / 255, "rate": 1.0, "explore": 0.3, "radius": 0.1}
_MACHANIC_L2 = {"step": 0.1, "rate": 0.1, "explore": 0.3, "radius": 0.01}

# SignHunter and BlackboxBench divide the slope by `explore` once more: rate = theirs / explore.
# For CIFAR-10 they count pixels to 255: step and radius are divided by it, which makes the slope
# 255 times as steep, so the rate is divided by it too.
_HUNTER = {"step": 5 / 255, "rate": 1e-4 / 0.1 / 255, "explore": 0.1, "radius": 2.55 / 255}
_HUNTER_L2 = {"step": 12 / 255, "rate": 1e-5 / 0.1 / 255, "explore": 0.1, "radius": 2.55 / 255}
_HUNTER_IMAGENET = {"step": 0.01, "rate": 1e-4 / 0.01, "explore": 0.01, "radius": 0.1}
_HUNTER_IMAGENET_L2 = {"step": 0.1, "rate": 0.1 / 0.1, "explore": 0.1, "radius": 0.1}
# BlackboxBench does not divide the prior's noise by the root of its 3 * 20 * 20 values.
_LOUD = 1200**0.5
_BBB = {
    "step": 2.55 / 255,
    "rate": 0.1 * _LOUD / 0.1 / 255,
    "explore": 0.1 * _LOUD,
    "radius": 2.55 / 255,
    "tile": 20,
}

# Bounds of the stored prior: tanh(8) < 1 in float32, and squares of 1e15 can be added up.
_BOUND = {Norm.LINF: 8.0, Norm.L2: 1e15}


class _Defaults(NamedTuple):
    step: float  # over eps
    rate: float
    explore: float
    radius: float


_SMALL = {_LINF: _Defaults(1 / 8, 1.0, 0.3, 0.1), _L2: _Defaults(1 / 10, 0.1, 0.3, 0.01)}
_LARGE = {_LINF: _Defaults(1 / 5, 100.0, 1.0, 0.1), _L2: _Defaults(1 / 10, 0.1, 0.01, 0.01)}


def _preset(origin: str, values: dict[str, float], norm: Norm, tile: int) -> Preset:
    return Preset(origin, {**values, "tile": tile, "loss": "ce"}, norm, note=_UNPROJECTED)


@attack(
    source=Source(
        paper="Ilyas et al.: Prior Convictions: Black-Box Adversarial Attacks with Bandits (ICLR)",
        url="https://arxiv.org/abs/1807.07978",
        year=2019,
        code="https://github.com/MadryLab/blackbox-bandits",
        differences=(
            "images up to 64 pixels get the settings of SimulatorAttack, and tiles; there are "
            "no official ones",
            "by default the margin, not cross-entropy, which is flat where the victim is sure",
            "the new iterate is queried, and the query is charged",
            "linf: the prior is kept as its inverse hyperbolic tangent, within 8; in the "
            "official code it overflows, and a value that was rounded to 1 never comes back",
            "probes stay in the box unless the probe policy says otherwise",
            "works on images that are not square: as many tiles a pixel in both directions",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    probes=True,
    presets={
        "madry": _preset("MadryLab, ImageNet, Bandits-TD", _MADRY, _LINF, 50),
        "madry-l2": _preset("MadryLab, ImageNet, Bandits-TD", _MADRY_L2, _L2, 50),
        "madry-t": _preset("MadryLab, ImageNet, Bandits-T", _MADRY, _LINF, 0),
        "madry-t-l2": _preset("MadryLab, ImageNet, Bandits-T", _MADRY_L2, _L2, 0),
        "signhunter": _preset("SignHunter, CIFAR-10", _HUNTER, _LINF, 20),
        "signhunter-l2": _preset("SignHunter, CIFAR-10", _HUNTER_L2, _L2, 20),
        "signhunter-imagenet": _preset("SignHunter, ImageNet", _HUNTER_IMAGENET, _LINF, 50),
        "signhunter-imagenet-l2": _preset("SignHunter, ImageNet", _HUNTER_IMAGENET_L2, _L2, 50),
        "unig": _preset("UniG, CIFAR-10 and ImageNet", _MADRY, _LINF, 0),
        "blackboxbench": Preset(
            "BlackboxBench, CIFAR-10", _BBB, note="probes are projected there: --probes ball"
        ),
        "rfd": Preset(
            "randomized feature defense (mail-research)",
            {**_MADRY, "radius": 0.01, "tile": 50},
            _LINF,
            note=_UNPROJECTED + "; there a sign error makes the prior move the wrong way",
        ),
        "rfd-l2": Preset(
            "randomized feature defense (mail-research)",
            {**_MADRY_L2, "tile": 50},
            _L2,
            note=_UNPROJECTED + "; there a sign error makes the prior move the wrong way",
        ),
        "simulator": _preset("SimulatorAttack (machanic), CIFAR-10", _MACHANIC, _LINF, 0),
        "simulator-l2": _preset("SimulatorAttack (machanic), CIFAR-10", _MACHANIC_L2, _L2, 0),
        "simulator-imagenet": _preset(
            "SimulatorAttack (machanic), ImageNet", {**_MACHANIC, "step": 0.01}, _LINF, 50
        ),
        "simulator-imagenet-l2": _preset(
            "SimulatorAttack (machanic), ImageNet",
            {**_MACHANIC_L2, "step": 0.5, "radius": 0.1},
            _L2,
            50,
        ),
    },
)
def bandits(
    problem: Problem,
    rng: RowRng,
    *,
    step: Annotated[float, Field(gt=0)] | None = None,
    rate: Annotated[float, Field(gt=0)] | None = None,
    explore: Annotated[float, Field(gt=0)] | None = None,
    radius: Annotated[float, Field(gt=0)] | None = None,
    tile: Annotated[int, Field(ge=0)] | None = None,
    loss: Loss = "margin",
) -> Steps:
    """Keep a prior of where the loss falls, correct it by one difference a step, follow it.

    The prior has one value a tile and channel. Two probes go along the prior plus and minus
    noise; their difference moves the prior along the noise: by exponentiated gradients for linf,
    additively for l2. A step costs 3 queries: two probes and the new iterate. "Small" are images
    up to 64 pixels.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        step: Length of a step in the threat's norm, in pixel units; none means eps / 8 for linf
            on small images, eps / 5 on others, and eps / 10 for l2.
        rate: Learning rate of the prior, in MadryLab's form; none means 1 for linf on small
            images, 100 on others, and 0.1 for l2.
        explore: Length of the noise that is added to the prior, whose values lie in (-1, 1)
            for linf; none means 0.3 on small images, on others 1 for linf, 0.01 for l2.
        radius: l2 distance of a probe from the iterate, in pixel units; none means 0.1 for linf,
            0.01 for l2.
        tile: Tiles along the shorter edge, at most its pixels; 0 means one tile a pixel
            (Bandits-T). None means 50, and 0.625 times the edge, rounded, on small images: 20
            for 32 pixels.
        loss: Loss whose gradient is estimated.
    """
    rows, centres, threat = problem.rows, problem.images, problem.threat
    usual = (_SMALL if min(centres.shape[2:]) <= 64 else _LARGE)[threat.norm]
    stride, pace = step or usual.step * threat.eps, rate or usual.rate
    reach, noisy = radius or usual.radius, explore or usual.explore
    grid, bound = _grid(tile, centres), _BOUND[threat.norm]
    objective = Objective(problem, loss)
    current, left = centres, problem.questions
    prior = centres.new_zeros((len(rows), *grid))
    downhill = torch.zeros_like(centres)
    while left >= 3 and len(rows):
        noise = rng.normal(rows, grid).to(prior) / prior[0].numel() ** 0.5
        aside = _spread(noisy * noise, centres)
        pair = torch.stack((downhill + aside, downhill - aside), 1)
        pair *= (reach / length(pair.flatten(0, 1)).clamp_min(1e-12)).view(-1, 2, 1, 1, 1)
        queries = probes(problem, current, centres, rows, pair)
        replies = yield queries
        losses = objective(replies, queries.rows).view(-1, 2)
        fall = pace * (losses[:, 1] - losses[:, 0]) / reach
        prior = (prior + column(fall, noise) * noise).clamp_(-bound, bound)
        rows, centres, current, prior = keep(~replies.finished[::2], rows, centres, current, prior)
        downhill = _spread(_value(prior, threat.norm), centres)
        current = descend(current, centres, -downhill, stride, threat)
        replies = yield Queries(current, rows)
        left -= 3
        rows, centres, current, prior, downhill = keep(
            ~replies.finished, rows, centres, current, prior, downhill
        )


def _grid(tile: int | None, images: Tensor) -> tuple[int, int, int]:
    """Shape of the prior: channels, and tiles in both directions."""
    _, channels, height, width = images.shape
    edge = min(height, width)
    if tile is None:
        tile = round(0.625 * edge) if edge <= 64 else 50
    share = min(tile or edge, edge) / edge
    return channels, max(round(share * height), 1), max(round(share * width), 1)


def _value(prior: Tensor, norm: Norm) -> Tensor:
    """The prior as a direction in tiles."""
    return prior.tanh() if norm is Norm.LINF else prior


def _spread(tiles: Tensor, like: Tensor) -> Tensor:
    """Give each pixel the value of its tile."""
    for axis in (2, 3):
        here, there = tiles.shape[axis], like.shape[axis]
        if here != there:
            nearest = torch.arange(there, device=tiles.device) * here // there
            tiles = tiles.index_select(axis, nearest)
    return tiles
