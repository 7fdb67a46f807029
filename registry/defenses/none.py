"""No defense: the undefended row that every table shows."""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.defense import Defense
from benchmark.registry import Level, Source, Traits, defense


@defense(
    source=Source(paper="the bare victim", url="", year=2026),
    level=Level.NOWHERE,
    traits=Traits(keeps_label=True),
)
@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """The bare victim."""
