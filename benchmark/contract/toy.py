"""Small problems and victims on which entries are checked in a fraction of a second."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.data import Dataset, Split, stratified
from benchmark.types import Aim, Norm, Probes, Problem, Threat
from benchmark.victim import Victim

CLASSES = 4
_RADIUS = {Norm.LINF: 0.05, Norm.L2: 0.6}


class Broken(Exception):  # noqa: N818 - a finding, not an error of the program
    """An entry does not keep the contract."""


class NotHere(Exception):  # noqa: N818 - not a fault
    """A check cannot run here, because data or weights are missing."""


def demand(condition: object, finding: str) -> None:
    """Raise `Broken` with the finding unless the condition holds."""
    if not condition:
        raise Broken(finding)


@dataclass(frozen=True)
class Toy:
    """A linear classifier in float64 and images it classifies correctly.

    Attributes:
        images: (B, C, H, W), some pixels exactly 0 or 1.
        labels: The classifier's own labels, (B,).
        weights: (K, D).
    """

    images: Tensor
    labels: Tensor
    weights: Tensor

    def answer(self, images: Tensor, rows: Tensor) -> Tensor:
        """Logits, row by row, so that neighbours cannot change the rounding."""
        del rows
        return torch.stack([self.weights @ image.flatten() for image in images])

    def problem(
        self, norm: Norm, budget: int, probes: Probes = Probes.BOX, rows: Sequence[int] = ()
    ) -> Problem:
        """Pose some of the images, by default all."""
        index = torch.tensor(rows or range(len(self.images)))
        threat = Threat(norm, _RADIUS[norm], budget)
        classes = len(self.weights)
        return Problem(
            self.images[index].clone(), self.labels[index].clone(), threat, classes, probes
        )

    def targeted(self, problem: Problem) -> Problem:
        """Aim at the next class, and give an image of it to start from."""
        targets = (problem.labels + 1) % problem.num_classes
        signs = self.weights[targets] - self.weights.mean(0)
        starts = (signs.view_as(problem.images) > 0).to(problem.images)
        threat = replace(problem.threat, aim=Aim.TARGETED)
        return replace(problem, threat=threat, targets=targets, starts=starts)


def toy(shape: tuple[int, int, int] = (3, 8, 7), count: int = 6, classes: int = CLASSES) -> Toy:
    """Make a toy whose images lie at moderate distances from the boundary."""
    source = torch.Generator().manual_seed(20260101)
    images = torch.rand((count, *shape), generator=source, dtype=torch.float64)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0.0, 1.0
    size = images[0].numel()
    weights = torch.randn((classes, size), generator=source, dtype=torch.float64) / size**0.5
    # Centred rows keep brightness from deciding, so that labels differ.
    weights -= weights.mean(1, keepdim=True)
    labels = torch.stack([weights @ image.flatten() for image in images]).argmax(1)
    return Toy(images, labels, weights)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU())
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer2(self.layer1(images))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def small_victim() -> Victim:
    """Make a small convolutional victim in float64 with stages and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = _Network()
    nn.init.normal_(network.linear.weight, std=4.0, generator=torch.Generator().manual_seed(6))
    return Victim(network, mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=CLASSES).double()


def small_data() -> Dataset:
    """Make random labelled images, 3x8x8, in three splits."""
    source = np.random.Generator(np.random.PCG64(3))
    pixels = torch.from_numpy(source.random((60, 3, 8, 8)))
    labels = source.integers(0, CLASSES, 60)
    shares = {Split.EVAL: 0.4, Split.CALIBRATE: 0.3, Split.TRAIN: 0.3}
    return Dataset(
        "toy",
        labels,
        tuple("abcd"),
        stratified(labels, shares, 0),
        lambda ids: pixels[torch.from_numpy(ids)],
        "toy",
    )


@contextmanager
def global_randomness_watched() -> Iterator[None]:
    """Find out whether the code inside draws from, or seeds, a global random stream."""
    before = _states()
    yield
    for name, old, new in zip(("torch", "numpy", "random"), before, _states(), strict=True):
        demand(old == new, f"it used the global random state of {name}; draw from the given rng")


def _states() -> tuple[bytes, str, str]:
    legacy = np.random.get_state()  # noqa: NPY002 - what entries must not touch
    return torch.get_rng_state().numpy().tobytes(), str(legacy), str(random.getstate())
