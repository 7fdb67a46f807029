"""RLS: the logits of every query are multiplied by a random number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.errors import SpecError
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.victim import Victim
from registry.parts.margins import lead

_MEAN, _STD = 1.0, 100.0  # of the normal law before it is cut
_ONE = 1 - 2.0**-24  # a draw of exactly 1 would be infinitely far out


@defense(
    source=Source(
        paper="Random Logit Scaling: Defending Deep Neural Networks Against Black-Box Score-Based "
        "Adversarial Example Attacks (TMLR)",
        url="https://openreview.net/forum?id=CXafPv4aAG",
        year=2026,
        differences=(
            "each query draws its own factor; whether the authors' does, or each call of several, "
            "is not known to us",
            "a label that rounding would make equal to another class leads by 1e-6",
        ),
    ),
    level=Level.LOGITS,
    traits=Traits(randomised=True, keeps_label=True),
    presets={"normal": Preset("authors' code, normal law", {"law": "normal", "low": 0.2})},
    examples=("@normal",),
)
@dataclass(frozen=True, kw_only=True)
class RandomLogitScaling(Defense):
    """Answers m z with a factor m > 0 drawn for each query.

    Attributes:
        law: "uniform" between low and high, or "normal" with mean 1 and standard deviation 100,
            given that it is above low.
        low: Least factor.
        high: Greatest factor of the uniform law.
    """

    law: Literal["uniform", "normal"] = "uniform"
    low: Annotated[float, Field(gt=0)] = 0.5
    high: Annotated[float, Field(gt=0)] = 10.0

    def check(self, victim: Victim) -> None:
        """Refuse an empty range."""
        if self.law == "uniform" and self.low >= self.high:
            raise SpecError(f"low={self.low:g} must be below high={self.high:g}")

    def on_logits(self, logits: Tensor, context: QueryContext) -> Tensor:
        """Scale the logits of each query, (n, K)."""
        shares = (context.rng.cube(context.rows, (1,)) + 1) / 2
        scaled = logits * self._factors(shares).to(logits)
        return lead(scaled, logits.argmax(1, keepdim=True))

    def _factors(self, shares: Tensor) -> Tensor:
        """Quantiles of the law, (n, 1), at shares of [0, 1]."""
        if self.law == "uniform":
            return self.low + (self.high - self.low) * shares
        cut = torch.tensor((self.low - _MEAN) / _STD, dtype=torch.float64, device=shares.device)
        below = torch.special.ndtr(cut)
        place = below + (1 - below) * shares.double().clamp_max(_ONE)
        factors: Tensor = _MEAN + _STD * torch.special.ndtri(place)
        return factors.clamp_min(self.low)
