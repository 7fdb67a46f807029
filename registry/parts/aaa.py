"""AAA: what its linear and its sine form share (Chen et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from benchmark.data import Dataset
from benchmark.defense import Defense, QueryContext
from benchmark.registry import Preset, Source
from benchmark.victim import Victim
from registry.parts.margins import cells, margin, with_margin
from registry.parts.solvers import Goal, adam, exact
from registry.parts.temperature import calibrated_temperature

EXAMPLES = ("@official", "[solver=adam,steps=20]", "[solver=exact]", "[alpha=0.5,tau=2]")
PRESETS = {
    "official": Preset(
        "authors' code",
        {"solver": "adam", "temperature": 1.0},
        note="its images are floored to 8 bits, its loss is averaged over the batch",
    ),
    "paper": Preset(
        "paper: confidence calibrated",
        {"solver": "adam"},
        note="its temperature minimises the calibration error",
    ),
    "rls": Preset(
        "random logit scaling (RLS) code", {"tau": 4.0, "solver": "adam", "temperature": 1.0}
    ),
}
_DIFFERENCES = (
    "by default the target margin is met exactly by moving the best logit alone "
    "(solver=margin); confidence is not kept, and no label ever changes",
    "solver=adam sums its loss over the queries, where the code averages: an answer does "
    "not depend on how many are asked together",
    "solver=exact is not in the paper: the minimum of its objective that keeps the label",
    "the temperature minimises the log-loss on calibration images; the code searches the "
    "calibration error, and as released never does",
    "images are not floored to 8 bits",
)


def source(*differences: str) -> Source:
    """Where both forms come from, with what is true of one alone."""
    return Source(
        paper="Chen et al.: Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box "
        "Score-Based Query Attacks (NeurIPS)",
        url="https://arxiv.org/abs/2205.12134",
        year=2022,
        code="https://github.com/Sizhe-Chen/AAA",
        differences=(*_DIFFERENCES, *differences),
    )


@dataclass(kw_only=True)
class AAA(Defense):
    """Answers logits whose margin moves against the true one; the entries list the parameters."""

    tau: Annotated[float, Field(gt=0)] = 6.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    solver: Literal["margin", "adam", "exact"] = "margin"
    beta: Annotated[float, Field(gt=0)] = 5.0
    steps: Annotated[int, Field(ge=1)] = 100
    rate: Annotated[float, Field(gt=0)] = 0.1
    temperature: Annotated[float, Field(gt=0)] | None = None
    _temperature: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.traits = replace(type(self).traits, keeps_label=self.solver != "adam")

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Calibrate the temperature on calibration images, unless given or not needed."""
        if self.solver != "margin":
            self._temperature = self.temperature or calibrated_temperature(victim, data)

    def target(self, margins: Tensor) -> Tensor:
        """Return the margin to show for each true one, (n, 1), never negative."""
        raise NotImplementedError

    def on_logits(self, logits: Tensor, context: QueryContext) -> Tensor:
        """Move the logits of each query, (n, K), towards its target."""
        del context
        targets = self.target(margin(logits))
        if self.solver == "margin":
            return with_margin(logits, targets)
        chances = (logits.double() / self._temperature).softmax(1).amax(1, keepdim=True)
        goal = Goal(targets, chances, self.beta)
        if self.solver == "adam":
            return adam(logits, goal, self.steps, self.rate)
        return exact(logits, goal)


def linear_target(margins: Tensor, tau: float, alpha: float) -> Tensor:
    """Mirror margins at the middle a of their cell: t = a - alpha (m - a), a = (k + 1/2) tau.

    Args:
        margins: m >= 0, in logits.
        tau: Width of a cell, in logits; cell k is [k tau, (k + 1) tau).
        alpha: Slope against the true margin, 0 to 1; 1 maps a cell onto itself.

    Returns:
        Targets t >= 0, in logits.
    """
    cell, place = cells(margins, tau)
    return tau * (cell + 0.5 - alpha * (place - 0.5))


def sine_target(margins: Tensor, tau: float, alpha: float) -> Tensor:
    """Bend margins by a sine of period tau: t = m + alpha tau sin(2 pi m / tau).

    The same as m - alpha tau sin(pi (1 - 2 (m - a) / tau)) with the middle a of the cell.

    Args:
        margins: m >= 0, in logits.
        tau: Period, in logits.
        alpha: Height of the sine as a share of tau, 0 to 0.73: above, targets are negative.

    Returns:
        Targets t >= 0, in logits.
    """
    _, place = cells(margins, tau)
    return margins + alpha * tau * (2 * math.pi * place).sin()
