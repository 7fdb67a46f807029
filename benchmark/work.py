"""Pieces of work: which are missing, what they take, how they ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmark.errors import StoreError
from benchmark.packing import rows_of
from benchmark.spec import Look, Shard
from benchmark.spending import Bills
from benchmark.store import LOOKS, SHARDS, Store
from benchmark.surroundings import Surroundings


class Step(Protocol):
    """Something that shards wait for; what it makes is kept in the cache."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def label(self) -> str:
        """Name of its traceback, 16 hex digits."""

    def run(self, surroundings: Surroundings) -> object:
        """Do it, and return what the main process is to know of it."""


Work = tuple[Shard, ...] | Look | Step  # shards that are run together, a look, a step before
Told = Callable[[Work, "Report"], None]  # called with each piece of work that has ended
Costs = Mapping[str, float]  # forward passes a query costs, by what builds the defense


@dataclass(frozen=True)
class Report:
    """How a piece of work ended.

    Attributes:
        names: What it was, a name for each shard or look.
        shards: Shards run together.
        looks: Looks taken.
        steps: Steps done that shards wait for.
        images: Images it attacked.
        queries: Queries it asked, counted or not.
        memory: Most bytes of a GPU in use at a time.
        halvings: How often the batch had to be halved because memory ran out.
        error: Why it failed, one line; empty if it did not.
        fault: "" if it did not fail, "input" for a mistake in the input, "bug" for ours.
        found: What a step returned.
        bills: What endpoints were asked for it.
    """

    names: tuple[str, ...] = ()
    shards: int = 0
    looks: int = 0
    steps: int = 0
    images: int = 0
    queries: int = 0
    memory: int = 0
    halvings: int = 0
    error: str = ""
    fault: str = ""
    found: object = None
    bills: Bills = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """What went wrong in a run.

    Attributes:
        failed: Work that failed twice and has no result.
        repaired: Work that failed once and then did not.
    """

    failed: tuple[Report, ...] = ()
    repaired: tuple[Report, ...] = ()


def missing(
    shards: Sequence[Shard], looks: Sequence[Look], store: Store
) -> tuple[list[Shard], list[Look], list[str]]:
    """Tell which shards and looks have to be run, and which of their files are damaged."""
    damage: list[str] = []

    def absent(key: str, kind: str) -> bool:
        try:
            return store.read(key, kind) is None
        except StoreError as error:
            damage.append(f"{error}; it is run again")
            return True

    todo = [shard for shard in shards if absent(shard.key, SHARDS)]
    return todo, [look for look in looks if absent(look.key, LOOKS)], damage


def costs_known(looks: Sequence[Look], store: Store) -> Costs:
    """Tell what a query costs behind each defense, as far as it was measured."""
    costs: dict[str, float] = {}
    for look in looks:
        try:
            found = store.read(look.key, LOOKS)
        except StoreError:  # it is run again
            continue
        if found:
            costs[look.defense.text] = found["row"]["forward_equivalents"]
    return costs


def effort(one: Work, costs: Costs) -> float:
    """Estimate what a piece of work takes, in forward passes of one image; at most, for attacks.

    Repeats of a question (EOT) are in the budget already. Of steps nothing is known.
    """
    if isinstance(one, Look):
        return one.images * one.draws * costs.get(one.defense.text, 1.0)
    if not isinstance(one, tuple):
        return 0.0
    first = one[0]
    queries = rows_of(one) * first.cell.threat.budget
    return queries * costs.get(first.cell.defense.text, 1.0)


def name_of(shard: Shard) -> str:
    """What messages call a shard."""
    cell, last = shard.cell, shard.first + shard.count - 1
    return f"{cell.attack.name} against {cell.defense.name}, images {shard.first}-{last}"
