"""A network trained on the victim's own data: what transfer reaches without stealing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from benchmark.errors import SpecError
from benchmark.registry import Source, stealer
from benchmark.stealing.stealer import Asking, Scene, Stealer
from registry.parts.clones import CloneName, clone_of
from registry.parts.distil import Course, fit_clone
from registry.parts.transfer import blended


@stealer(
    source=Source(
        paper="Papernot, McDaniel, Goodfellow: Transferability in Machine Learning: from "
        "Phenomena to Black-Box Attacks using Adversarial Samples",
        url="https://arxiv.org/abs/1605.07277",
        year=2016,
        differences=(
            "a line of reference and no attack: the true labels of the victim's own training data "
            "are known, and nothing is asked",
        ),
    ),
    asks=False,
    examples=("[epochs=1,network=cnn]",),
)
@dataclass(kw_only=True)
class Surrogate(Stealer):
    """Trains a network on the true labels of a pool of the victim's own classes.

    Attributes:
        network: Its architecture.
        epochs: Times that every image is shown in the training.
        batch: Images in a step of the training.
        rate: First learning rate; it falls to zero along a cosine.
    """

    network: CloneName = CloneName.USUAL
    epochs: Annotated[int, Field(gt=0)] = 30
    batch: Annotated[int, Field(gt=1)] = 64
    rate: Annotated[float, Field(gt=0)] = 0.1

    def blank(self, channels: int, num_classes: int) -> nn.Module:
        """Build the network with whatever weights."""
        return clone_of(self.network, channels, num_classes)

    def begin(self, scene: Scene) -> None:
        """Look at the pool.

        Raises:
            SpecError: If it has another number of classes than the victim.
        """
        super().begin(scene)
        if scene.pool.num_classes != scene.num_classes:
            raise SpecError(
                f"surrogate learns the labels of its pool: the victim has {scene.num_classes} "
                f"classes, the pool {scene.pool.num_classes}. Take the victim's own data set."
            )

    def step(self, left: int) -> Asking:  # noqa: ARG002 - it asks nothing
        """Ask nothing."""
        yield from ()

    def learn(self) -> Iterator[float]:
        """Train from random weights on the true labels."""
        scene = self.scene
        clone = scene.network(lambda: self.blank(scene.shape[0], scene.num_classes), "learn")
        course, stream = Course(self.epochs, self.batch, self.rate), scene.stream("learn")
        yield from fit_clone(clone, scene.pool.read, scene.pool.labels, course, stream)
        self.clone = clone

    def sample(self, count: int, stream: torch.Generator) -> Tensor:
        """Draw blended copies of the pool's images: it has seen the images themselves."""
        return blended(self.scene.pool, count, stream).to(self.scene.device)
