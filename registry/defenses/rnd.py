"""RND: Gaussian noise on the input, fresh for every query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Source, Traits, defense


@defense(
    source=Source(
        paper="Qin et al.: Random Noise Defense Against Query-Based Black-Box Attacks (NeurIPS)",
        url="https://arxiv.org/abs/2104.11470",
        year=2021,
        code="https://github.com/SCLBD/BlackboxBench",
        differences=("the noisy image is clipped to [0, 1] unless clip=false",),
    ),
    level=Level.IMAGES,
    traits=Traits(randomised=True),
    strength="sigma",
    examples=("[clip=false]",),
)
@dataclass(frozen=True, kw_only=True)
class Rnd(Defense):
    """Answers f(x + sigma * v) with v standard normal (section 3 of the paper).

    Attributes:
        sigma: Standard deviation of the noise, in pixel units of the [0, 1] range.
        clip: Clip the noisy image to [0, 1].
    """

    sigma: Annotated[float, Field(ge=0)] = 0.02
    clip: bool = True

    def on_images(self, images: Tensor, context: QueryContext) -> Tensor:
        """Add noise to each query, (n, C, H, W)."""
        if self.sigma == 0:
            return images
        noisy = context.rng.normal(context.rows, images.shape[1:]).to(images)
        noisy.mul_(self.sigma).add_(images)
        return noisy.clamp_(0.0, 1.0) if self.clip else noisy
