"""Anti-adversary: move each image away from the boundary before it is classified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.victim import Victim
from registry.parts.single import twice


@defense(
    source=Source(
        paper="Alfarra et al.: Combating Adversaries with Anti-Adversaries (AAAI)",
        url="https://arxiv.org/abs/2103.14347",
        year=2022,
        code="https://github.com/MotasemAlfarra/Combating-Adversaries-with-Anti-Adversaries",
        differences=(
            "steps are in pixel units of the [0, 1] range; the code takes them after "
            "its own normalisation, if it has any",
            "signs are those of the exact gradient; the code's cross-entropy, in single "
            "precision, gets a third of them wrong where the victim is very sure",
        ),
    ),
    level=Level.ANSWER,
    traits=Traits(),
    strength="alpha",
    presets={
        "official": Preset(
            "authors' code, CIFAR-10, adversarially trained victim",
            {"alpha": 0.15},
            note="its victim gets pixels in [0, 1] without normalisation",
        ),
        "unig": Preset("UniG, CIFAR-10 and ImageNet", {"alpha": 4 / 255}),
    },
    examples=("[steps=3]", "[alpha=0.15]"),
)
@dataclass(frozen=True, kw_only=True)
class AntiAdversary(Defense):
    """Answers f(x + g_K) where g moves the victim's own label up (algorithm 1).

    g_0 = 0 and g_{k+1} = g_k - alpha * sign(grad CE(f(x + g_k), argmax f(x))), neither projected
    nor clipped to [0, 1].

    Attributes:
        alpha: Length of a step for each pixel, in pixel units of the [0, 1] range.
        steps: Number of steps, K.
    """

    inside = True

    alpha: Annotated[float, Field(ge=0)] = 4 / 255
    steps: Annotated[int, Field(ge=1)] = 2

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Move the images, (n, C, H, W), and classify them, (n, K)."""
        labels: Tensor | None = None
        moved = images
        for _ in range(self.steps if self.alpha else 0):
            slopes, own = ascent(victim, moved, labels)
            labels = own if labels is None else labels
            moved = moved - self.alpha * slopes.sign()
        logits: Tensor = victim(moved)
        return logits


def ascent(victim: Victim, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find the way in which the cross-entropy to the labels grows.

    Args:
        victim: The classifier.
        images: (n, C, H, W).
        labels: (n,), or None for the victim's own.

    Returns:
        A positive multiple of the gradient for each image, (n, C, H, W), and the victim's own
        labels, (n,).
    """
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits: Tensor = victim(twice(leaf))[: len(images)]
        own = logits.detach().argmax(1)
        column = (own if labels is None else labels)[:, None]
        # Cross-entropy is softplus of this: it grows with it, but does not go flat.
        others = logits.scatter(1, column, -torch.inf).logsumexp(1)
        loss = (others - logits.gather(1, column)[:, 0]).sum()
    (slopes,) = torch.autograd.grad(loss, leaf)
    return slopes, own
