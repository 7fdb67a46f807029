"""RND-GF: input noise on a victim that was fine-tuned to stand it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.data import Dataset
from benchmark.registry import Level, Source, Traits, defense
from benchmark.victim import Victim
from registry.defenses.rnd import Rnd
from registry.parts.training import Schedule, Trainer


@defense(
    source=Source(
        paper="Qin et al.: Random Noise Defense Against Query-Based Black-Box Attacks (NeurIPS)",
        url="https://arxiv.org/abs/2104.11470",
        year=2021,
        differences=(
            "few epochs from the given victim with its batch statistics kept, where published "
            "numbers took 100 epochs",
            "by default trained with the noise it is tested with in the literature, 0.05",
        ),
    ),
    level=Level.IMAGES,
    traits=Traits(randomised=True),
    strength="sigma",
    examples=("[draws=1,epochs=1]",),
)
@dataclass(frozen=True, kw_only=True)
class RndGf(Rnd):
    """Answers g(x + sigma * v), with g fine-tuned on Gaussian noise (section 4.2 of the paper).

    The loss is that of the mean softmax over draws of the noise, not the mean of their losses.

    Attributes:
        sigma: Standard deviation of a query's noise, in pixel units of the [0, 1] range.
        clip: Clip the noisy image to [0, 1].
        trained: Standard deviation of the noise in training.
        draws: Noises of an image whose softmax is averaged.
        epochs: Times that every image of split `train` is shown.
        rate: Largest learning rate.
    """

    inside = True
    sigma: Annotated[float, Field(ge=0)] = 0.05
    trained: Annotated[float, Field(gt=0)] = 0.05
    draws: Annotated[int, Field(ge=1)] = 2
    epochs: Annotated[int, Field(ge=1)] = 5
    rate: Annotated[float, Field(gt=0)] = 2e-3

    def recipe(self) -> Mapping[str, object]:
        """Return what training depends on: all but the noise of queries."""
        names = ("trained", "draws", "epochs", "rate", "clip")
        return {name: getattr(self, name) for name in names}

    def fit(self, victim: Victim, data: Dataset) -> Iterator[float]:
        """Fine-tune the victim."""
        trainer = Trainer(victim, data, Schedule(self.epochs, 64, self.rate))
        for images, labels in trainer.batches():
            logits = torch.stack(
                [victim(self._noisy(images, trainer.normal(images))) for _ in range(self.draws)]
            )
            yield trainer.step(mean_softmax_loss(logits, labels))

    def _noisy(self, images: Tensor, noise: Tensor) -> Tensor:
        noisy = images + self.trained * noise
        return noisy.clamp(0.0, 1.0) if self.clip else noisy


def mean_softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative logarithm of the mean softmax of the label over draws.

    Args:
        logits: (M, n, K), M draws of the noise.
        labels: (n,).

    Returns:
        The mean over images, a number; cross-entropy if M is 1.
    """
    every = logits.log_softmax(2)[:, torch.arange(len(labels), device=labels.device), labels]
    return (math.log(len(logits)) - every.logsumexp(0)).mean()
