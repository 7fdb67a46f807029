"""AAA-sine: the margin shown is bent by a sine, so that it falls over half of each period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.registry import Level, Traits, defense
from registry.parts.aaa import AAA, EXAMPLES, PRESETS, sine_target, source


@defense(
    source=source(),
    level=Level.LOGITS,
    traits=Traits(keeps_label=True),
    presets=PRESETS,
    examples=EXAMPLES,
)
@dataclass(kw_only=True)
class AAASine(AAA):
    """Shows the margin t = m + alpha tau sin(2 pi m / tau).

    The margin m is the best logit less the second. The solvers adam and exact minimise
    |m(z') - t| + beta |softmax(z')_y - p| over the answer z', with y the label and
    p = max softmax(z / temperature).

    Attributes:
        tau: Period of the sine, in logits.
        alpha: Height of the sine as a share of tau; above 0.73 some targets would be negative.
        solver: "margin" moves the best logit until the margin is t; "adam" is the published
            descent, which may change labels; "exact" finds the minimum that keeps the label.
        beta: Weight of the probability in adam and exact.
        steps: Steps of adam.
        rate: Length of adam's steps, in logits.
        temperature: Of p, in adam and exact; none calibrates it.
    """

    alpha: Annotated[float, Field(ge=0, le=0.73)] = 0.7

    def target(self, margins: Tensor) -> Tensor:
        """Return the margin to show for each true one, (n, 1)."""
        return sine_target(margins, self.tau, self.alpha)
