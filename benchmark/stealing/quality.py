"""How good a clone is, and what a defended victim answers on average."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.defended import Defended
from benchmark.rng import RowRng
from benchmark.stealing.divergence import divergence

Network = Callable[[Tensor], Tensor]

_BATCH = 200


class Answers(NamedTuple):
    """What a defended victim says of images.

    Attributes:
        mean: Mean of its probabilities, (n, K).
        right: Share of answers with the true label, (n,); of images without one, nothing.
    """

    mean: Tensor
    right: Tensor

    def expected(self, labels: Tensor) -> Tensor:
        """Whether the mean answer is right (S3), (n,) bool."""
        return self.mean.argmax(1) == labels


def answers(
    defended: Defended, images: Tensor, labels: Tensor | None, draws: int, rng: RowRng
) -> Answers:
    """Ask about images, (n, C, H, W), `draws` times each; a steady victim once."""
    rows = torch.arange(len(images), device=images.device)
    times = 1 if defended.steady else draws
    mean = images.new_zeros((len(images), defended.victim.num_classes))
    right = images.new_zeros(len(images))
    for _ in range(times):
        chances = defended.answer(images, rows, rng).softmax(1)
        mean += chances / times
        if labels is not None:
            right += (chances.argmax(1) == labels) / times
    return Answers(mean, right)


def likeness(
    clone: Callable[[Tensor], Tensor], images: Tensor, mean: Tensor
) -> tuple[float, float]:
    """Compare a clone with a victim's mean answers to the same images.

    Args:
        clone: From images in [0, 1] to logits.
        images: (n, C, H, W).
        mean: The victim's mean probabilities, (n, K).

    Returns:
        Share of images on which both have the same label, and the mean over images of the
        Kullback-Leibler divergence of the clone's answer from the victim's, nats.
    """
    logits = logits_of(clone, images)
    same = (logits.argmax(1) == mean.argmax(1)).double().mean()
    return float(same), float(divergence(mean, logits).double().mean())


@torch.no_grad()
def logits_of(network: Network, images: Tensor) -> Tensor:
    """Logits of a network, (n, K), a few images at a time."""
    return torch.cat([network(part) for part in torch.split(images, _BATCH)])
