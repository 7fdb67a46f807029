"""Randomised feature defense: Gaussian noise on features inside the victim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.data import Dataset, Split
from benchmark.defense import Defense, QueryContext
from benchmark.errors import SpecError
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.sites import Edit
from benchmark.victim import Victim

_SAMPLES = 64  # calibration images that measure a stage's spread
_TRIED = 2  # of them show that a stage matters
_OTHERS = "name others by stages="

_RLS = "Random Logit Scaling (TMLR 2026), its own implementation"
_CHOSEN = "the authors choose nu for each victim, at a clean drop of 1 to 4 points: give sigma"


@defense(
    source=Source(
        paper="Nguyen et al.: Understanding the Robustness of Randomized Feature Defense (ICLR)",
        url="https://arxiv.org/abs/2310.00567",
        year=2024,
        code="https://github.com/mail-research/randomized_defenses",
        differences=(
            "sigma is a standard deviation, as in the paper's code; its text prints a variance",
            "by default relative to the spread of each stage's own values",
            "on CIFAR ResNets after all three stages, where the code has noise after the last; "
            "@official-cifar",
            "no Laplace noise and no scale for each channel, which the code has as options",
        ),
    ),
    level=Level.FEATURES,
    traits=Traits(randomised=True),
    strength="sigma",
    presets={
        "official": Preset(
            "mail-research, the released command: all sites, absolute noise",
            {"relative": False},
            note=_CHOSEN,
        ),
        "official-cifar": Preset(
            "mail-research, ResNet-20 on CIFAR-10: after the last stage, absolute noise",
            {"stages": "layer3", "relative": False},
            note=_CHOSEN,
        ),
        "rls-resnet18": Preset(
            f"{_RLS}, ResNet-18 on CIFAR-10",
            {"stages": "layer4", "sigma": 2.5, "relative": False},
        ),
        "rls-resnet50": Preset(
            f"{_RLS}, ResNet-50 on ImageNet",
            {"stages": "layer4", "sigma": 3.0, "relative": False},
        ),
        "rls-vgg16": Preset(
            f"{_RLS}, VGG-16 on CIFAR-10",
            {"stages": "in:features.28", "sigma": 0.35, "relative": False},
            note="its site 28 is taken to be the input of the last convolution",
        ),
    },
    examples=("[relative=false]", "[stages=in:layer2]", "[stages=in:layer1.0+layer2]"),
)
@dataclass(kw_only=True)
class Feature(Defense):
    """Answers with h_l(x) + sigma * xi at each chosen site l (section 3 of the paper).

    Attributes:
        sigma: Standard deviation of the noise: a share of the standard deviation of the
            site's values over all of them if `relative`, else in the feature's own units.
        stages: Sites joined by "+": `layer1` is the output of that module, `in:layer1` its
            input; "all" means the victim's usual sites.
        relative: Scale the noise by the spread measured on calibration images.
    """

    sigma: Annotated[float, Field(ge=0)] = 0.1
    stages: str = "all"
    relative: bool = True
    _spread: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def check(self, victim: Victim) -> None:
        """Refuse sites the victim does not have."""
        named = self._named(victim)
        for site in named:
            victim.stage(site)
        if len(set(named)) < len(named):
            raise SpecError(f"stages={self.stages} names a stage twice")

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Measure the spread of every site on calibration images.

        Raises:
            SpecError: If noise at a site could not change an answer, or a site holds more or
                less than one entry for each image.
        """
        count = max(1, min(_SAMPLES, len(data.splits[Split.CALIBRATE])))
        images = data.take(Split.CALIBRATE, count).images.to(victim.mean)
        few = images[:_TRIED]
        with torch.no_grad():
            with victim.edited({s: self._measure(s, count) for s in self._named(victim)}):
                victim(images)
            bare = victim(few)
            for site in self._named(victim):
                with victim.edited({site: torch.zeros_like}):
                    if torch.equal(victim(few), bare):
                        raise SpecError(f"noise at stage '{site}' does nothing: {_OTHERS}")

    def _measure(self, site: str, count: int) -> Edit:
        def measure(features: Tensor) -> Tensor:
            if len(features) != count:
                raise SpecError(
                    f"stage '{site}' holds {len(features)} entries for {count} images: {_OTHERS}"
                )
            self._spread[site] = float(features.std())
            return features

        return measure

    def _named(self, victim: Victim) -> Sequence[str]:
        return victim.stages() if self.stages == "all" else self.stages.split("+")

    def sites(self, victim: Victim) -> Sequence[str]:
        """Name the sites that get noise: none at strength zero."""
        return self._named(victim) if self.sigma > 0 else ()

    def on_features(self, features: Tensor, site: str, context: QueryContext) -> Tensor:
        """Add noise to the features of a site, (n, ...)."""
        scale = self.sigma * (self._spread[site] if self.relative else 1.0)
        noise = context.rng.normal(context.rows, features.shape[1:]).to(features)
        return noise.mul_(scale).add_(features)
