"""What an attack is given (Problem), asks (Queries) and is told (Replies)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.errors import AccessError


class Access(StrEnum):
    """What an attack has to be shown, from most to least."""

    SCORES = "scores"  # the score of its label or target in every reply
    TOPK = "topk"  # the scores of the few best classes
    LABEL = "label"  # the predicted label alone


class Goal(StrEnum):
    """What an attack looks for."""

    IN_BALL = "in-ball"  # an adversarial image inside the ball
    NEAREST = "nearest"  # an adversarial image as near as possible, whatever the ball
    INWARD = "inward"  # from an adversarial image outside into the ball


class Aim(StrEnum):
    """When an answer is adversarial."""

    UNTARGETED = "untargeted"  # any label but the true one
    TARGETED = "targeted"  # one label, drawn for each image


class Norm(StrEnum):
    """The norm of the threat model."""

    LINF = "linf"
    L2 = "l2"


class Probes(StrEnum):
    """Where an estimator may place its probes (docs/protocol.md, question 6)."""

    BALL = "ball"  # ball and box: probes are possible hits
    BOX = "box"  # valid images only; those outside the ball never count as hits
    FREE = "free"  # anything finite: what most papers do


@dataclass(frozen=True)
class Threat:
    """A threat model.

    Attributes:
        norm: Norm of the perturbation.
        eps: Radius of the ball, in pixel units of the [0, 1] range, > 0.
        budget: Most queries an image may cost, >= 1.
        aim: What counts as adversarial.
    """

    norm: Norm
    eps: float
    budget: int
    aim: Aim = Aim.UNTARGETED


@dataclass(frozen=True)
class Problem:
    """The images of a shard as an attack sees them.

    Attributes:
        images: Clean images, (B, C, H, W), in [0, 1].
        labels: True labels, (B,), int64.
        threat: Norm, radius and budget.
        num_classes: Number of classes K.
        probes: Where an attack that declares `probes` may ask.
        targets: Wanted labels, (B,), int64; None when untargeted.
        starts: An image of each target's class, (B, C, H, W), for an attack that declares
            `starts`; None for others.
        repeats: Queries that one question costs (EOT).
    """

    images: Tensor
    labels: Tensor
    threat: Threat
    num_classes: int
    probes: Probes = Probes.BOX
    targets: Tensor | None = None
    starts: Tensor | None = None
    repeats: int = 1

    @property
    def rows(self) -> Tensor:
        """All row numbers, (B,), int64."""
        return torch.arange(len(self.images), device=self.images.device)

    @property
    def questions(self) -> int:
        """Most questions an image may ask: the budget, or less if each is repeated."""
        return self.threat.budget // self.repeats

    def adversarial(self, predicted: Tensor, rows: Tensor) -> Tensor:
        """Which predicted labels, (n,), of images of these rows are adversarial, (n,) bool."""
        if self.targets is None:
            return predicted != self.labels[rows]
        return predicted == self.targets[rows]


class Queries(NamedTuple):
    """Questions of one round.

    Attributes:
        images: (n, C, H, W); any number for any image, none included. May be reused by the
            attack after the reply: whoever keeps an image copies it.
        rows: (n,), the row of `Problem.images` each question belongs to. Of several questions
            about one row the earlier is asked first.
    """

    images: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Replies:
    """Answers of one round, in the order of the questions.

    Attributes:
        labels: Predicted labels, (n,), -1 where not answered.
        answered: (n,) bool, False where the image's budget is spent or it is finished.
        finished: (n,) bool, True where this image needs no more questions.
        used: (n,) queries this image has cost so far, this round included.
        remaining: (n,) questions this image may still ask, each repeated as EOT says.
        shown: (n, K) bool, the classes whose score was shown; None for all.
    """

    labels: Tensor
    answered: Tensor
    finished: Tensor
    used: Tensor
    remaining: Tensor
    _scores: Tensor | None = None
    shown: Tensor | None = None
    _draws: Tensor | None = None

    @property
    def bare(self) -> bool:
        """Only labels are shown."""
        return self._scores is None

    @property
    def scores(self) -> Tensor:
        """Scores of all classes, (n, K), NaN where not answered.

        A class that was not shown has the most it can have.

        Raises:
            AccessError: Under label access, which shows no scores.
        """
        if self._scores is None:
            raise AccessError("scores were read, but the access level is 'label'. Declare access.")
        return self._scores

    @property
    def draws(self) -> Tensor:
        """Scores whose losses are averaged, (n, M, K): M repeats under EOT by loss, else 1."""
        return self.scores[:, None] if self._draws is None else self._draws


Steps = Generator[Queries, Replies, None]
