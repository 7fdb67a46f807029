"""Randomised feature defense: Gaussian noise on the outputs of named stages."""

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
from benchmark.registry import Level, Source, Traits, defense
from benchmark.victim import Edit, Victim

_SAMPLES = 64  # calibration images that measure a stage's spread


@defense(
    source=Source(
        paper="Nguyen et al.: Understanding the Robustness of Randomized Feature Defense (ICLR)",
        url="https://arxiv.org/abs/2310.00567",
        year=2024,
        code="https://github.com/mail-research/randomized_defenses",
        differences=(
            "sigma is a standard deviation, as in the paper's code; its text prints a variance",
            "by default relative to the spread of each stage's own output",
            "noise after every stage before the head, where the code leaves out the last",
        ),
    ),
    level=Level.FEATURES,
    traits=Traits(randomised=True),
    strength="sigma",
    examples=("[relative=false]",),
)
@dataclass(kw_only=True)
class Feature(Defense):
    """Answers with h_l(x) + sigma * xi at each chosen stage l (section 3 of the paper).

    Attributes:
        sigma: Standard deviation of the noise: a share of the standard deviation of the
            stage's output over all its values if `relative`, else in the feature's own units.
        stages: Names of modules, joined by "+"; "all" means the victim's usual stages.
        relative: Scale the noise by the spread measured on calibration images.
    """

    sigma: Annotated[float, Field(ge=0)] = 0.1
    stages: str = "all"
    relative: bool = True
    _spread: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def check(self, victim: Victim) -> None:
        """Refuse stages the victim does not have."""
        named = self._named(victim)
        for site in named:
            victim.stage(site)
        if len(set(named)) < len(named):
            raise SpecError(f"stages={self.stages} names a stage twice")

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Measure the spread of every stage on calibration images."""
        if not self.relative:
            return
        count = max(1, min(_SAMPLES, len(data.splits[Split.CALIBRATE])))
        images = data.take(Split.CALIBRATE, count).images.to(victim.mean)
        with torch.no_grad(), victim.edited({s: self._measure(s) for s in self._named(victim)}):
            victim(images)

    def _measure(self, site: str) -> Edit:
        def measure(features: Tensor) -> Tensor:
            self._spread[site] = float(features.std())
            return features

        return measure

    def _named(self, victim: Victim) -> Sequence[str]:
        return victim.stages() if self.stages == "all" else self.stages.split("+")

    def sites(self, victim: Victim) -> Sequence[str]:
        """Name the stages that get noise: none at strength zero."""
        return self._named(victim) if self.sigma > 0 else ()

    def on_features(self, features: Tensor, site: str, context: QueryContext) -> Tensor:
        """Add noise to the output of a stage, (n, ...)."""
        scale = self.sigma * (self._spread[site] if self.relative else 1.0)
        noise = context.rng.normal(context.rows, features.shape[1:]).to(features)
        return noise.mul_(scale).add_(features)
