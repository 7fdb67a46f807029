"""Knockoff nets: asks about natural images and trains a clone on the answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from benchmark.registry import Preset, Source, stealer
from benchmark.stealing.stealer import Asking, Scene, Stealer
from registry.parts.bandit import Bandit
from registry.parts.clones import CloneName, clone_of
from registry.parts.distil import Course, descend, fit_clone
from registry.parts.transfer import TransferSet

_ASKED, _ACTIONS = 128, 64  # queries of a step; images of an adaptive one


class Strategy(StrEnum):
    """How images are chosen."""

    RANDOM = "random"
    ADAPTIVE = "adaptive"  # by a bandit over the classes of the pool


class Labels(StrEnum):
    """What the clone learns."""

    SOFT = "soft"  # the probabilities
    ARGMAX = "argmax"  # the best class alone, whatever a defense does to the others


@stealer(
    source=Source(
        paper="Orekondy, Schiele, Fritz: Knockoff Nets: Stealing Functionality of Black-Box "
        "Models (CVPR)",
        url="https://arxiv.org/abs/1812.02766",
        year=2019,
        code="https://github.com/tribhuvanesh/knockoffnets",
        differences=(
            "by default the clone starts from random weights and trains as networks for CIFAR do: "
            "a large rate that falls along a cosine, and weight decay. The paper's starts from "
            "ImageNet weights, with a small rate",
            "the clone is trained anew for every budget, and for all epochs: no test set chooses "
            "among them",
            "when the pool is used up, blended copies of its images are asked about; the paper's "
            "budgets never exceed its pools",
            "adaptive: batches of 64 actions, without replacement, over one level of classes; the "
            "paper has a hierarchy, and one action at a time. The official code has none of it",
            "adaptive: rewards are the mean of running z-scores; the paper's are scaled to [0, 1]. "
            "The loss is that before the clone has seen the image",
        ),
    ),
    presets={
        "official": Preset(
            "authors' code",
            {"epochs": 100, "batch": 64, "rate": 0.01, "momentum": 0.5, "decay": 0.0},
            note="there a ResNet-34 with ImageNet weights, and a rate that falls tenfold every 60 "
            "epochs",
        ),
    },
    examples=(
        "[epochs=1,network=cnn]",
        "[strategy=adaptive,epochs=1,network=cnn]",
        "[repeats=3,labels=argmax,epochs=1,network=cnn]",
    ),
)
@dataclass(kw_only=True)
class Knockoff(Stealer):
    """Asks about each image of a pool once, then trains a clone on the answers (section 4).

    Attributes:
        strategy: Take images at random, or by a policy that learns which classes of the pool are
            worth it (section 4.1.2); once all were asked about, both go on with blended copies.
        labels: Learn the probabilities, or the best class alone.
        repeats: Queries about each image; answers are averaged. All are billed.
        network: Architecture of the clone.
        epochs: Times that every image is shown in the training.
        batch: Images in a step of the training.
        rate: First learning rate; it falls to zero along a cosine.
        momentum: Momentum of the training.
        decay: Weight decay of the training.
    """

    strategy: Strategy = Strategy.RANDOM
    labels: Labels = Labels.SOFT
    repeats: Annotated[int, Field(gt=0)] = 1
    network: CloneName = CloneName.USUAL
    epochs: Annotated[int, Field(gt=0)] = 30
    batch: Annotated[int, Field(gt=1)] = 64
    rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0)] = 5e-4

    def blank(self, channels: int, num_classes: int) -> nn.Module:
        """Build the clone's network with whatever weights."""
        return clone_of(self.network, channels, num_classes)

    def begin(self, scene: Scene) -> None:
        """Order the pool, and make what the adaptive strategy learns with."""
        super().begin(scene)
        self.transfer = TransferSet(scene)
        if self.strategy is Strategy.ADAPTIVE:
            self.bandit = Bandit(self.transfer.labels, scene.pool.num_classes, scene.num_classes)
            self.draws = scene.stream("actions")
            self.online = self._network("online")
            self.optimizer = self._course.optimizer(self.online)

    def step(self, left: int) -> Asking:
        """Ask about one batch of images."""
        exploring, first, last = self._exploring, len(self.transfer), len(self.scene.pool)
        most = min(_ACTIONS, last - first) if exploring else max(1, _ASKED // self.repeats)
        count = min(most, left // self.repeats)
        if not count:
            return
        if exploring:
            numbers = self.bandit.choose(count, self.draws)
        else:
            numbers = torch.arange(first, first + count)
        images = self.transfer.images(numbers)
        replies = yield images.repeat(self.repeats, 1, 1, 1).to(self.scene.device)
        answers = replies.cpu().view(self.repeats, count, -1).mean(0)
        targets = self._targets(answers)
        self.transfer.add(numbers, targets)
        if exploring:
            self.bandit.update(numbers, answers, self._losses(images, targets))

    def learn(self) -> Iterator[float]:
        """Train a clone from random weights on all answers so far."""
        transfer, count = self.transfer, len(self.transfer)
        clone, stream = self._network("learn", count), self.scene.stream("learn", count)
        yield from fit_clone(clone, transfer.again, transfer.targets, self._course, stream)
        self.clone = clone

    def sample(self, count: int, stream: torch.Generator) -> Tensor:
        """Draw images of the pool that were not asked about; if they run out, blended copies."""
        return self.transfer.fresh(count, stream).to(self.scene.device)

    @property
    def _exploring(self) -> bool:
        """The policy chooses: some image of the pool was not asked about."""
        return self.strategy is Strategy.ADAPTIVE and len(self.transfer) < len(self.scene.pool)

    @property
    def _course(self) -> Course:
        return Course(self.epochs, self.batch, self.rate, self.momentum, self.decay)

    def _network(self, *names: object) -> nn.Module:
        channels, classes = self.scene.shape[0], self.scene.num_classes
        return self.scene.network(lambda: self.blank(channels, classes), *names)

    def _targets(self, answers: Tensor) -> Tensor:
        """What the clone learns of answers, (n, K)."""
        if self.labels is Labels.SOFT:
            return answers
        return one_hot(answers.argmax(1), answers.shape[1]).to(answers)

    def _losses(self, images: Tensor, targets: Tensor) -> Tensor:
        """Losses, (n,), of the clone that learns while asking; then it takes a step on them."""
        with torch.no_grad():
            logits = self.online.eval()(images.to(self.scene.device)).cpu()
        losses = cross_entropy(logits, targets, reduction="none")
        if len(images) > 1:  # batch normalisation learns nothing from one
            descend(self.online, self.optimizer, images, targets)
        return losses
