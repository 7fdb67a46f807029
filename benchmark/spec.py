"""Cells and shards: what a result is of, and the key that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmark.protocol import Protocol
from benchmark.types import Threat

SCHEMA = 6  # of shard files; raised when their meaning changes
_LOOK = 1  # the same of looks
_PLAIN = (str, int, float, tuple, type(None))


@dataclass(frozen=True)
class Part:
    """One resolved ingredient of a cell.

    Attributes:
        text: What builds it again; may hold a path, so it is no part of the key.
        name: Name as tables show it.
        record: Name, version, every parameter, and for data and weights a hash of the content.
    """

    text: str
    name: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One resolved combination; all of it is in the key.

    Attributes:
        dataset: Data set.
        model: Victim.
        defense: Defense at one strength.
        attack: Attack.
        threat: Norm, radius, budget.
        protocol: How it is measured.
        images: Images evaluated: the first of split `eval`.
        seed: Seed of every random stream.
        device: "cpu" or "cuda": they draw different normals.
    """

    dataset: Part
    model: Part
    defense: Part
    attack: Part
    threat: Threat
    protocol: Protocol
    images: int
    seed: int
    device: str = "cpu"

    def content(self) -> dict[str, Any]:
        """Return everything that can change the result, as plain data."""
        return {
            "schema": SCHEMA,
            "dataset": self.dataset.record,
            "model": self.model.record,
            "defense": self.defense.record,
            "attack": self.attack.record,
            "threat": plain(self.threat),
            "protocol": plain(self.protocol),
            "images": self.images,
            "seed": self.seed,
            "device": self.device,
        }

    @property
    def key(self) -> str:
        """Name of the cell: 16 hex digits."""
        return digest(self.content())


@dataclass(frozen=True, slots=True)
class Shard:
    """A block of images of one cell: the unit of work, of retry and of storage.

    Attributes:
        cell: The cell.
        first: Position of the first image in split `eval`.
        count: Number of images.
    """

    cell: Cell
    first: int
    count: int
    key: str = field(init=False)

    def __post_init__(self) -> None:
        content = {**self.cell.content(), "first": self.first, "count": self.count}
        object.__setattr__(self, "key", digest(content))

    @property
    def label(self) -> str:
        """Name of the shard that stays the same when code or data are repaired: 16 hex digits."""
        cell = self.cell
        names = [part.name for part in (cell.dataset, cell.model, cell.defense, cell.attack)]
        place = {"first": self.first, "count": self.count, "seed": cell.seed}
        return digest({"names": names, "threat": plain(cell.threat), **place})


@dataclass(frozen=True)
class Look:
    """What a defense does to clean images: measured once for all attacks.

    Attributes:
        dataset: Data set.
        model: Victim.
        defense: Defense at one strength.
        images: Images looked at: the first of split `eval`.
        draws: Answers of a randomised defense to each.
        seed: Seed of every random stream.
        device: "cpu" or "cuda".
    """

    dataset: Part
    model: Part
    defense: Part
    images: int
    draws: int
    seed: int
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Name of the look: 16 hex digits."""
        return digest(
            {
                "look": _LOOK,
                "dataset": self.dataset.record,
                "model": self.model.record,
                "defense": self.defense.record,
                "images": self.images,
                "draws": self.draws,
                "seed": self.seed,
                "device": self.device,
            }
        )

    @property
    def label(self) -> str:
        """Name that stays the same when code or data are repaired: 16 hex digits."""
        names = [part.name for part in (self.dataset, self.model, self.defense)]
        return digest({"look": names, "images": self.images, "seed": self.seed})


def together(shards: Sequence[Shard]) -> list[tuple[Shard, ...]]:
    """Group shards that ask the same questions, in order: runs to the budget at several radii."""
    groups: dict[str, list[Shard]] = {}
    for shard in shards:
        cell = shard.cell
        alike = shard.key
        if cell.protocol.run_to_budget:
            threat = replace(cell.threat, eps=0.0)
            alike = replace(shard, cell=replace(cell, threat=threat)).key
        groups.setdefault(alike, []).append(shard)
    return [tuple(group) for group in groups.values()]


def plain(value: Any) -> dict[str, Any]:
    """Turn a dataclass into a dictionary, and those in its fields; faster than `asdict`."""
    fields = vars(value).items()
    return {name: part if isinstance(part, _PLAIN) else plain(part) for name, part in fields}


def digest(content: Mapping[str, Any]) -> str:
    """Hash plain data, 16 hex digits; equal in every process."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
