"""What defenses that train share: batches, steps, adversarial images, what a recipe names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from benchmark.data import Dataset, Split
from benchmark.errors import DataError
from benchmark.machine import settle
from benchmark.victim import Victim

_MOMENTUM, _DECAY = 0.9, 5e-4
_SHIFT = 8  # images move by up to this part of their side


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Times that every training image is shown.
        batch: Images in a step.
        rate: Largest learning rate; it rises for a fifth of the steps and falls to zero.
    """

    epochs: int
    batch: int
    rate: float


class Trainer:
    """Trains all weights of a victim by SGD, or those of another network by Adam.

    Args:
        victim: The victim, changed in place unless a network is given.
        data: Split `train` of it is used.
        schedule: How long and how fast.
        statistics: Normalise by the batch and learn its statistics (and drop out, where the network
            does); else the victim stays in evaluation mode, which suits a short fine-tuning.

    Attributes:
        noise: Source of all random numbers of the training.
    """

    def __init__(
        self,
        victim: Victim,
        data: Dataset,
        schedule: Schedule,
        *,
        statistics: bool = False,
        beside: Sequence[Tensor] = (),
        network: nn.Module | None = None,
    ) -> None:
        settle()
        victim.train(statistics)
        self._victim, self._schedule = victim, schedule
        samples = data.take(Split.TRAIN, len(data.splits[Split.TRAIN]))
        self._images, self._labels = samples.images.to(victim.mean.dtype), samples.labels
        self.noise = torch.Generator().manual_seed(0)
        self._optimizer: torch.optim.Optimizer
        if network is None:
            weights: list[Tensor] = [p.requires_grad_() for p in victim.network.parameters()]
            others = [value.requires_grad_() for value in beside]
            self._optimizer = _sgd(weights, others, schedule.rate)
            self._trained = [*weights, *others]
        else:
            self._trained = [p for p in network.parameters() if p.requires_grad]
            self._optimizer = torch.optim.Adam(self._trained, schedule.rate)
        steps = max(1, schedule.epochs * len(cut(torch.arange(len(self._images)), schedule.batch)))
        self._rates = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, schedule.rate, total_steps=steps + 1, pct_start=0.2
        )
        self._steps, self._taken = steps, 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, shifted at random and (in colour) mirrored, and their labels."""
        for _ in range(self._schedule.epochs):
            order = torch.randperm(len(self._images), generator=self.noise)
            for index in cut(order, self._schedule.batch):
                images = moved(self._images[index], self.noise)
                yield images.to(self._victim.mean), self._labels[index].to(self._victim.mean.device)

    def step(self, loss: Tensor) -> float:
        """Take a step down the loss; return the share of the training that is done."""
        self._optimizer.zero_grad()
        torch.autograd.backward([loss], inputs=self._trained)
        self._optimizer.step()
        self._rates.step()
        self._taken += 1
        return self._taken / self._steps

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normals of a tensor's shape."""
        return torch.randn(like.shape, generator=self.noise, dtype=like.dtype).to(like.device)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw uniformly from [-1, 1] of a tensor's shape."""
        drawn = torch.rand(like.shape, generator=self.noise, dtype=like.dtype)
        return drawn.mul_(2).sub_(1).to(like.device)


def cut(order: Tensor, batch: int) -> list[Tensor]:
    """Cut an order into batches; a last image alone is left out (see `parts.single`)."""
    parts = list(torch.split(order, batch))
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts


def moved(images: Tensor, noise: torch.Generator) -> Tensor:
    """Shift images, (n, C, H, W), together by up to an eighth, and mirror some if in colour."""
    _, channels, height, width = images.shape
    far = max(height, width) // _SHIFT
    wide = pad(images, (far, far, far, far))
    down, right = torch.randint(2 * far + 1, (2,), generator=noise).tolist()
    images = wide[:, :, down : down + height, right : right + width]
    if channels > 1:
        mirrored = torch.rand(len(images), generator=noise) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def _sgd(weights: list[Tensor], others: list[Tensor], rate: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(weights, rate, momentum=_MOMENTUM, weight_decay=_DECAY)
    if others:
        optimizer.add_param_group({"params": others, "weight_decay": 0.0})
    return optimizer


def adversarial(
    victim: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    eps: float,
    steps: int,
) -> Tensor:
    """Climb the cross-entropy inside an linf ball: FGSM for one step, PGD for more.

    Args:
        victim: Maps images to logits.
        images: (n, C, H, W) in [0, 1].
        labels: (n,).
        start: (n, C, H, W) in [-1, 1]: where in the ball to begin.
        eps: Radius, pixel units.
        steps: Steps; one is 1.25 eps long (Wong et al., 2020), several 2.5 eps / steps each.

    Returns:
        Images in ball and box, (n, C, H, W).
    """
    length = 1.25 * eps if steps == 1 else 2.5 * eps / steps
    moved = (images + eps * start).clamp(0.0, 1.0)
    for _ in range(steps):
        moved.requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(victim(moved), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, moved)
        moved = (moved.detach() + length * slope.sign() - images).clamp(-eps, eps) + images
        moved = moved.clamp(0.0, 1.0)
    return moved.detach()


def file_hash(path: Path) -> str:
    """Hash a checkpoint, so that a recipe depends on its content and not on its name.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        DataError: If there is no such file.
    """
    if not path.is_file():
        raise DataError(f"checkpoint '{path}' does not exist")
    return hashlib.sha256(path.read_bytes()).hexdigest()
