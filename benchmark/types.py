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
    """What replies contain: the scores of every class, or the label alone."""

    SCORES = "scores"
    LABEL = "label"


class Goal(StrEnum):
    """What an attack looks for: an adversarial image inside the ball."""

    IN_BALL = "in-ball"


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
    """

    norm: Norm
    eps: float
    budget: int


@dataclass(frozen=True)
class Problem:
    """The images of a shard as an attack sees them.

    Attributes:
        images: Clean images, (B, C, H, W), in [0, 1].
        labels: True labels, (B,), int64.
        threat: Norm, radius and budget.
        num_classes: Number of classes K.
        probes: Where an attack that declares `probes` may ask.
    """

    images: Tensor
    labels: Tensor
    threat: Threat
    num_classes: int
    probes: Probes = Probes.BOX

    @property
    def rows(self) -> Tensor:
        """All row numbers, (B,), int64."""
        return torch.arange(len(self.images), device=self.images.device)


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
        remaining: (n,) questions this image may still ask.
    """

    labels: Tensor
    answered: Tensor
    finished: Tensor
    used: Tensor
    remaining: Tensor
    _scores: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """Scores of all classes, (n, K), NaN where not answered.

        Raises:
            AccessError: Under label access, which shows no scores.
        """
        if self._scores is None:
            raise AccessError("scores were read, but the access level is 'label'. Declare access.")
        return self._scores


Steps = Generator[Queries, Replies, None]
