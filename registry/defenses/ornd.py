"""oRND: Gaussian noise on the output, fresh for every query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Preset, Source, Traits, defense


@defense(
    source=Source(
        paper="Aithal and Li: Mitigating Black-Box Adversarial Attacks via Output Noise "
        "Perturbation (IEEE Access)",
        url="https://arxiv.org/abs/2109.15160",
        year=2022,
        differences=(
            "sigma of the AAA code for its standard CIFAR-10 model; the paper's own noise, below "
            "0.01, is a hundred times weaker",
        ),
    ),
    level=Level.LOGITS,
    traits=Traits(randomised=True),
    strength="sigma",
    presets={
        "paper": Preset("paper, noise that costs no accuracy", {"sigma": 0.01}),
        "aaa": Preset("AAA (Sizhe-Chen), ImageNet and adversarially trained", {"sigma": 0.3}),
    },
)
@dataclass(frozen=True, kw_only=True)
class OutputNoise(Defense):
    """Answers f(x) + sigma * v with v standard normal in each class.

    Attributes:
        sigma: Standard deviation of the noise, in logits.
    """

    sigma: Annotated[float, Field(ge=0)] = 1.0

    def on_logits(self, logits: Tensor, context: QueryContext) -> Tensor:
        """Add noise to the logits of each query, (n, K)."""
        if self.sigma == 0:
            return logits
        noise = context.rng.normal(context.rows, logits.shape[1:]).to(logits)
        return noise.mul_(self.sigma).add_(logits)
