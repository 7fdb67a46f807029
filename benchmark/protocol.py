"""How a cell is measured: the decisions of docs/protocol.md as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmark.scores import Scores
from benchmark.types import Probes


@dataclass(frozen=True)
class Protocol:
    """Everything about a measurement that is neither victim, defense, attack nor threat.

    Attributes:
        budgets: Checkpoints, ascending; the last is the threat's budget.
        scores: What replies show.
        probes: Where attacks that declare `probes` may ask.
        votes: Fresh answers that decide whether a hit is verified (S2), odd. The same number
            decides whether an image is attacked at all, and measures the clean accuracy.
        draws: Fresh answers averaged for the expected label (S3).
        run_to_budget: Attacks that look for the nearest adversarial image go on when they are
            in the ball, for distances; always False for other attacks.
    """

    budgets: tuple[int, ...]
    scores: Scores = field(default_factory=Scores)
    probes: Probes = Probes.BOX
    votes: int = 9
    draws: int = 20
    run_to_budget: bool = False
