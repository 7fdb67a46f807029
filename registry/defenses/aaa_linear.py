"""AAA-linear: the margin shown falls where the true margin rises, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.registry import Level, Traits, defense
from registry.parts.aaa import AAA, EXAMPLES, PRESETS, linear_target, source


@defense(
    source=source(
        "a margin of exactly k tau belongs to the cell above; the code rounds half to even"
    ),
    level=Level.LOGITS,
    traits=Traits(keeps_label=True),
    presets=PRESETS,
    examples=EXAMPLES,
)
@dataclass(kw_only=True)
class AAALinear(AAA):
    """Shows the margin t = a - alpha (m - a), a the middle of the cell of m.

    The margin m is the best logit less the second. The solvers adam and exact minimise
    |m(z') - t| + beta |softmax(z')_y - p| over the answer z', with y the label and
    p = max softmax(z / temperature).

    Attributes:
        tau: Width of a cell, in logits.
        alpha: Slope against the true margin; 1 mirrors each cell.
        solver: "margin" moves the best logit until the margin is t; "adam" is the published
            descent, which may change labels; "exact" finds the minimum that keeps the label.
        beta: Weight of the probability in adam and exact.
        steps: Steps of adam.
        rate: Length of adam's steps, in logits.
        temperature: Of p, in adam and exact; none calibrates it.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0

    def target(self, margins: Tensor) -> Tensor:
        """Return the margin to show for each true one, (n, 1)."""
        return linear_target(margins, self.tau, self.alpha)
