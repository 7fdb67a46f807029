"""RND: Gaussian noise on the input, fresh for every query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Preset, Source, Traits, defense


@defense(
    source=Source(
        paper="Qin et al.: Random Noise Defense Against Query-Based Black-Box Attacks (NeurIPS)",
        url="https://arxiv.org/abs/2104.11470",
        year=2021,
        code="https://github.com/SCLBD/BlackboxBench",
        differences=(
            "the noisy image is clipped to [0, 1] unless clip=false; codes differ in it, the "
            "paper's formula has no clipping",
        ),
    ),
    level=Level.IMAGES,
    traits=Traits(randomised=True),
    strength="sigma",
    presets={
        "aaa": Preset(
            "AAA code, standard models",
            {"sigma": 0.02, "quantise": True},
            note="there the queries of the attack are rounded down to 8 bits too",
        ),
        "aaa-at": Preset(
            "AAA code, adversarially trained models and every CIFAR-10 model but its standard one",
            {"sigma": 0.05, "quantise": True},
            note="there the queries of the attack are rounded down to 8 bits too",
        ),
        "rfd": Preset(
            "mail-research, input noise",
            {"clip": False},
            note="the authors choose sigma for each victim, at a clean drop of 1 to 4 points",
        ),
        "snd": Preset(
            "Byun et al., SND (WACV 2022)",
            {"sigma": 0.01},
            note="the paper's values are of this order or below",
        ),
    },
    examples=("[clip=false]", "[quantise=true]"),
)
@dataclass(frozen=True, kw_only=True)
class Rnd(Defense):
    """Answers f(x + sigma * v) with v standard normal (section 3 of the paper).

    Attributes:
        sigma: Standard deviation of the noise, in pixel units of the [0, 1] range.
        clip: Clip the noisy image to [0, 1].
        quantise: Round the noisy image down to multiples of 1/255. At sigma = 0 nothing is
            done, so that it is the bare victim.
    """

    sigma: Annotated[float, Field(ge=0)] = 0.02
    clip: bool = True
    quantise: bool = False

    def on_images(self, images: Tensor, context: QueryContext) -> Tensor:
        """Add noise to each query, (n, C, H, W)."""
        if self.sigma == 0:
            return images
        noisy = context.rng.normal(context.rows, images.shape[1:]).to(images)
        noisy.mul_(self.sigma).add_(images)
        if self.clip:
            noisy.clamp_(0.0, 1.0)
        return noisy.mul_(255).floor_().div_(255) if self.quantise else noisy
