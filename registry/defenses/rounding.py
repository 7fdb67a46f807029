"""Rounding: probabilities are shown with a few decimals, as services do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Source, Traits, defense
from benchmark.scores import DIGITS, rounded
from registry.parts.margins import lead


@defense(
    source=Source(
        paper="Tramèr et al.: Stealing Machine Learning Models via Prediction APIs (USENIX "
        "Security)",
        url="https://arxiv.org/abs/1609.02943",
        year=2016,
        differences=(
            "proposed there (section 7) against the theft of models",
            "zero is answered as half a unit of the last decimal, so that it has a logarithm",
            "rounded probabilities seldom sum to 1; softmax of the answer divides by their sum",
            "of classes that round alike the victim's own label leads by 1e-6 in log-probability",
        ),
    ),
    level=Level.LOGITS,
    traits=Traits(keeps_label=True),
    examples=("[digits=0]", "[digits=4]"),
)
@dataclass(frozen=True, kw_only=True)
class Rounding(Defense):
    """Answers the logarithms of the rounded probabilities; the label is always the victim's.

    Attributes:
        digits: Decimals that are shown; 0 leaves nothing but whether one class has over half.
    """

    digits: Annotated[int, Field(ge=0, le=DIGITS)] = 2

    def on_logits(self, logits: Tensor, context: QueryContext) -> Tensor:
        """Round the probabilities of each query; logarithms, (n, K)."""
        shown = rounded(logits.softmax(1), self.digits).log()
        return lead(shown, logits.argmax(1, keepdim=True))
