"""DLD: the margin shown jumps between a rising and a falling line in short dashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Source, Traits, defense
from registry.parts.margins import cells, margin, with_margin


@defense(
    source=Source(
        paper="Fu et al.: Dashed Line Defense: Plug-And-Play Defense Against Adaptive Score-Based "
        "Query Attacks (AISTATS)",
        url="https://arxiv.org/abs/2602.08679",
        year=2026,
        code="https://github.com/fyzdalao/Dashed-Line-Defense",
        differences=(
            "a margin on the lower edge of a dash belongs to it; the code leaves both edges to "
            "the falling line",
            "a label leads by 1e-6 at least",
        ),
    ),
    level=Level.LOGITS,
    traits=Traits(keeps_label=True),
    examples=("[width=0.3,ratio=0.2]",),
)
@dataclass(frozen=True, kw_only=True)
class DashedLine(Defense):
    """Moves the best logit so that its lead is the target of its true lead m.

    With L = floor(m / tau) tau and c = (m - L) / tau in [0, 1): c is cut into dashes of the given
    width, and t = L + tau (split + (1 - split) c) in the upper `ratio` of each dash, else
    t = L + tau (split - split c). Both lines start at L + tau split; one rises to L + tau, the
    other falls to L, so that no label changes.

    Attributes:
        tau: Width of a cell of margins, in logits.
        split: Where both lines start, as a share of tau (h in the paper).
        width: Width of a dash, as a share of tau (s in the code).
        ratio: Share of each dash, at its upper end, that is on the rising line.
    """

    tau: Annotated[float, Field(gt=0)] = 6.0
    split: Annotated[float, Field(ge=0, le=1)] = 0.3
    width: Annotated[float, Field(gt=0, le=1)] = 0.04
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5

    def on_logits(self, logits: Tensor, context: QueryContext) -> Tensor:
        """Move the best logit of each query, (n, K)."""
        return with_margin(logits, self.target(margin(logits)))

    def target(self, margins: Tensor) -> Tensor:
        """Return the margin to show for each true one, both in logits and not negative."""
        cell, place = cells(margins, self.tau)
        _, inside = cells(place, self.width)
        slope = (inside >= 1 - self.ratio).to(margins) - self.split
        return self.tau * (cell + self.split + slope * place)
