"""Mixup inference: classify mixtures of the query with known images, and average."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.data import Dataset, Split
from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.victim import Victim

_LOOKS = 5  # draws with which "combined" looks whether a query is adversarial
_DROP = 0.2  # loss of confidence from which on it is


class Pool:
    """Images by class.

    Args:
        images: (m, C, H, W).
        labels: (m,), their classes.
    """

    def __init__(self, images: Tensor | None = None, labels: Tensor | None = None) -> None:
        labels = torch.zeros(0, dtype=torch.int64) if labels is None else labels
        self._classes, self._sizes = torch.unique(labels, return_counts=True)
        self._first = self._sizes.cumsum(0) - self._sizes
        self.images = torch.zeros(0) if images is None else images[labels.argsort(stable=True)]

    def pick(self, labels: Tensor, chances: Tensor, *, other: bool) -> Tensor:
        """Pick images of the labels, or of other classes, all classes as likely.

        Args:
            labels: (n,).
            chances: Uniform on [0, 1], (n, N, 2): for the class, and for the image in it.
            other: Pick a class that is not the label.

        Returns:
            Positions in `images`, (n, N); -1 where no class fits.
        """
        count = len(self._classes)
        place = torch.searchsorted(self._classes, labels)
        known = (self._classes == labels[:, None]).any(1)
        if other:
            fitting = count - known.long()
            turn = _below(chances[..., 0], fitting[:, None])
            # The classes after the label move up by one place.
            chosen = turn + (known[:, None] & (turn >= place[:, None]))
        else:
            fitting = known.long()
            chosen = place[:, None].expand(chances.shape[:2])
        chosen = chosen.clamp(max=count - 1)
        picks = self._first[chosen] + _below(chances[..., 1], self._sizes[chosen])
        return torch.where(fitting[:, None] > 0, picks, -1)


@defense(
    source=Source(
        paper="Pang et al.: Mixup Inference: Better Exploiting Mixup to Defend Adversarial "
        "Attacks (ICLR)",
        url="https://arxiv.org/abs/1909.11515",
        year=2020,
        code="https://github.com/P2333/Mixup-Inference",
        differences=(
            "the default mixes in a tenth, for victims that were not trained with mixup; "
            "the paper's half is meant for those that were",
            "the pool holds training images as they are; the code's holds augmented test images",
            "answers are the logarithms of the mean probabilities",
            "combined has one share for both of its parts, and answers with its first look where "
            "it sees no attack, as the code does",
            "a query for which the pool has no fitting class is mixed with itself",
        ),
    ),
    level=Level.ANSWER,
    traits=Traits(randomised=True),
    strength="share",
    presets={
        "official": Preset(
            "authors' code, CIFAR-10, victim trained with mixup",
            {"share": 0.5, "pool": 10_000},
        ),
        "official-iat": Preset(
            "authors' code, CIFAR-10, victim of interpolated adversarial training",
            {"share": 0.4, "pool": 10_000},
        ),
        "official-pl": Preset(
            "authors' code, CIFAR-10, victim trained with mixup",
            {"variant": "pl", "share": 0.5, "draws": 10},
        ),
        "official-combined": Preset(
            "authors' code, CIFAR-10, victim trained with mixup",
            {"variant": "combined", "share": 0.5, "draws": 15, "pool": 10_000},
        ),
        "unig": Preset("UniG, CIFAR-10 and ImageNet", {"share": 0.1}),
    },
    examples=("[variant=pl]", "[variant=combined]", "[variant=combined,share=0.7]", "[draws=1]"),
)
@dataclass(kw_only=True)
class MixupInference(Defense):
    """Answers log mean_k softmax f((1 - share) x + share x_k) (algorithm 1).

    Attributes:
        share: Share of the other image in a mixture; 1 - lambda in the paper.
        variant: Which images x_k are mixed in: of a class other than the predicted one, each
            class as likely ("ol"), of the predicted class ("pl"), or "combined": those of "pl",
            unless they lower the confidence by 0.2 or more; then those of "ol".
        draws: Mixtures for each query, N; "combined" has 5 of "pl" besides.
        pool: Most training images to draw from.
    """

    share: Annotated[float, Field(ge=0, le=1)] = 0.1
    variant: Literal["ol", "pl", "combined"] = "ol"
    draws: Annotated[int, Field(ge=1)] = 30
    pool: Annotated[int, Field(ge=1)] = 1000
    _known: Pool = field(default_factory=Pool, init=False, repr=False)

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Store training images by their true class."""
        count = max(1, min(self.pool, len(data.splits[Split.TRAIN])))
        samples = data.take(Split.TRAIN, count)
        device = victim.mean.device
        self._known = Pool(samples.images.to(victim.mean), samples.labels.to(device))

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Classify mixtures of each image, (n, C, H, W), to (n, K)."""
        bare: Tensor = victim(images)
        if self.share == 0:
            return bare
        looks = _LOOKS if self.variant == "combined" else 0
        chances = (context.rng.cube(context.rows, (looks + self.draws, 2)) + 1) / 2
        first, rest = torch.split(chances.to(images), [looks, self.draws], 1)
        labels = bare.argmax(1)
        if not looks:
            return self._mean(victim, images, labels, rest, other=self.variant == "ol")
        answers = self._mean(victim, images, labels, first, other=False)
        drop = bare.softmax(1).amax(1) - answers.exp().amax(1)
        odd = (drop >= _DROP).nonzero()[:, 0]
        if len(odd):
            answers[odd] = self._mean(victim, images[odd], labels[odd], rest[odd], other=True)
        return answers

    def _mean(
        self, victim: Victim, images: Tensor, labels: Tensor, chances: Tensor, *, other: bool
    ) -> Tensor:
        """Logarithm of the mean probability over the mixtures, (n, K)."""
        picks = self._known.pick(labels, chances, other=other)
        total = torch.full((), -torch.inf).to(images)
        for pick in picks.unbind(1):
            beside = torch.where((pick < 0).view(-1, 1, 1, 1), images, self._known.images[pick])
            logits: Tensor = victim(images.lerp(beside, self.share))
            total = torch.logaddexp(total, logits.log_softmax(1))
        return total - math.log(picks.shape[1])


def _below(chances: Tensor, high: Tensor) -> Tensor:
    """Integers from 0 to high - 1 from uniform numbers on [0, 1], both (n, N)."""
    return torch.minimum((chances * high).long(), high - 1).clamp_(min=0)
