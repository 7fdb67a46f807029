"""What a reply shows of the defended logits (docs/protocol.md, question 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from benchmark.types import Access

_FORM = re.compile(r"(top|rounded)-(\d+)")
LEAST = 1e-12  # a probability of zero, before its logarithm is taken
DIGITS = 7  # most decimals of a probability: float32 has no more


def rounded(chances: Tensor, digits: int) -> Tensor:
    """Round probabilities to decimals; zero becomes half a unit of the last, the most it hides."""
    unit = 10.0**-digits
    return ((chances / unit).round() * unit).clamp_min(unit / 2)


class Kind(StrEnum):
    """Which of the outputs a service shows."""

    LOGITS = "logits"
    LOG_PROBABILITIES = "log-probabilities"
    PROBABILITIES = "probabilities"
    TOP = "top"
    ROUNDED = "rounded"
    LABEL = "label"


@dataclass(frozen=True)
class Scores:
    """What replies show.

    Attributes:
        kind: Which output.
        number: Classes of `top`, decimals of `rounded`, 0 for the others.
    """

    kind: Kind = Kind.LOG_PROBABILITIES
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> Scores:
        """Read `logits`, `top-5`, `rounded-3`, ...

        Raises:
            ValueError: With what is allowed.
        """
        match = _FORM.fullmatch(text)
        if match and int(match[2]) >= 1 and (match[1] == "top" or int(match[2]) <= DIGITS):
            return cls(Kind(match[1]), int(match[2]))
        if text in {kind.value for kind in Kind} - {Kind.TOP, Kind.ROUNDED}:
            return cls(Kind(text))
        raise ValueError(
            "Allowed: logits, log-probabilities, probabilities, top-K (K classes), "
            f"rounded-D (1 to {DIGITS} decimals), label."
        )

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        return f"{self.kind}-{self.number}" if self.number else str(self.kind)

    @property
    def access(self) -> Access:
        """What an attack is shown."""
        return {Kind.TOP: Access.TOPK, Kind.LABEL: Access.LABEL}.get(self.kind, Access.SCORES)

    def covers(self, other: Scores) -> bool:
        """Tell whether everything that the other shows can be told from what this one shows."""
        if self.kind in {Kind.TOP, Kind.ROUNDED} and other.kind is self.kind:
            return self.number >= other.number
        if self.kind in {Kind.TOP, Kind.ROUNDED, Kind.LABEL}:
            return other.kind is Kind.LABEL
        order = list(Kind)  # from the most to the least
        return order.index(self.kind) <= order.index(other.kind)

    def show(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn logits, (n, K), into what is shown.

        Returns:
            Logarithms of probabilities (or logits), (n, K), and which of them were shown, (n, K)
            bool, None for all. A class that was not shown has the most it can have: the least
            probability shown, or what the shown ones leave, whichever is less.
        """
        if self.kind is Kind.LOGITS:
            return logits.clone(), None
        if self.kind is Kind.LOG_PROBABILITIES:
            return logits.log_softmax(1), None
        chances = logits.softmax(1)
        if self.kind is Kind.PROBABILITIES:
            return chances.clamp_min(LEAST).log(), None
        if self.kind is Kind.ROUNDED:
            return rounded(chances, self.number).log(), None
        return self._best(chances)

    def _best(self, chances: Tensor) -> tuple[Tensor, Tensor]:
        best, places = chances.topk(min(self.number or 1, chances.shape[1]), 1)
        shown = torch.zeros_like(chances, dtype=torch.bool).scatter_(1, places, True)
        rest = torch.minimum(1 - best.sum(1, keepdim=True), best[:, -1:])
        return torch.where(shown, chances, rest).clamp_min(LEAST).log(), shown
