"""Training a clone on what a victim answered, or on labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from registry.parts.training import cut, moved


@dataclass(frozen=True)
class Course:
    """How a clone is trained.

    Attributes:
        epochs: Times that every image is shown.
        batch: Images in a step.
        rate: First learning rate.
        momentum: Share of the earlier direction that is kept.
        decay: Weight decay.
    """

    epochs: int
    batch: int
    rate: float
    momentum: float = 0.9
    decay: float = 5e-4

    def optimizer(self, network: nn.Module) -> torch.optim.SGD:
        """Make the optimiser of a network's weights."""
        return torch.optim.SGD(
            network.parameters(), self.rate, momentum=self.momentum, weight_decay=self.decay
        )


def fit_clone(
    clone: nn.Module,
    read: Callable[[Tensor], Tensor],
    targets: Tensor,
    course: Course,
    stream: torch.Generator,
) -> Iterator[float]:
    """Train a clone by SGD whose rate falls to zero along a cosine over all its steps.

    Images are shifted at random and (in colour) mirrored; their targets stay.

    Args:
        clone: Network from images to logits; it is in evaluation mode afterwards.
        read: Loads images by position, (m,) on the CPU, as (m, C, H, W) in [0, 1].
        targets: Probabilities, (n, K), or classes, (n,), of all images. With none, nothing is
            trained.
        course: How to train.
        stream: Source of all random numbers, on the CPU.

    Yields:
        The share done, after each step.
    """
    optimizer, taken = course.optimizer(clone), 0
    epochs = course.epochs if len(targets) else 0
    steps = epochs * len(cut(torch.arange(len(targets)), course.batch))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(epochs):
        order = torch.randperm(len(targets), generator=stream)
        for places in cut(order, course.batch):
            descend(clone, optimizer, moved(read(places), stream), targets[places])
            rates.step()
            taken += 1
            yield taken / steps
    clone.eval()


def descend(
    clone: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> None:
    """Take a training step down the mean cross-entropy with probabilities or classes."""
    device = next(clone.parameters()).device
    clone.train()
    loss = cross_entropy(clone(images.to(device)), targets.to(device))
    optimizer.zero_grad()
    torch.autograd.backward([loss])
    optimizer.step()
