"""Thefts and transfers: what a result of stealing is of, and the key that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchmark.scores import Scores
from benchmark.spec import Part, digest

_THEFT, _TRANSFER = 1, 1  # versions of what their files mean


class Method(StrEnum):
    """How images of a transfer are made; all lie in an linf ball."""

    PGD = "pgd"
    MI_FGSM = "mi-fgsm"
    SIGN_NOISE = "sign-noise"


class Origin(StrEnum):
    """What gradients a transfer follows."""

    CLONES = "clones"  # of thefts
    VICTIM = "white-box"  # the victim's own, which no attacker has: the most there is
    NOTHING = "noise"  # none: the least there is


@dataclass(frozen=True)
class Theft:
    """One stealing attack on one defended victim; all of it is in the key.

    Attributes:
        dataset: Data set.
        model: Victim.
        defense: Defense at one strength.
        attack: Stealing attack.
        pool: Data set whose split `train` the attacker has.
        pool_images: How many of its images; None for all.
        budgets: Checkpoints, ascending; the last is the budget.
        scores: What replies show.
        images: Images on which clones are compared with the victim, the first of split `eval`.
        draws: Answers of a randomised defense that are averaged for that.
        seed: Seed of every random stream.
        device: "cpu" or "cuda".
    """

    dataset: Part
    model: Part
    defense: Part
    attack: Part
    pool: Part
    pool_images: int | None
    budgets: tuple[int, ...]
    scores: Scores
    images: int
    draws: int
    seed: int
    device: str = "cpu"

    @property
    def parts(self) -> dict[str, Part]:
        """Everything that is looked up by name."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            "defense": self.defense,
            "attack": self.attack,
            "pool": self.pool,
        }

    @property
    def key(self) -> str:
        """Name of the theft: 16 hex digits."""
        records = {name: part.record for name, part in self.parts.items()}
        return digest({"theft": _THEFT, **records, **self._numbers()})

    @property
    def label(self) -> str:
        """Name that stays the same when code or data are repaired: 16 hex digits."""
        names = {name: part.name for name, part in self.parts.items()}
        return digest({"theft": names, **self._numbers()})

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.attack.name} against {self.defense.name}, seed {self.seed}"

    def _numbers(self) -> dict[str, Any]:
        return {
            "pool_images": self.pool_images,
            "budgets": self.budgets,
            "scores": str(self.scores),
            "images": self.images,
            "draws": self.draws,
            "seed": self.seed,
            "device": self.device,
        }


@dataclass(frozen=True)
class Transfer:
    """White-box attacks on one set of networks, shown to one defended victim.

    Attributes:
        dataset: Data set.
        model: Victim.
        defense: Defense at one strength.
        origin: What gradients are followed.
        thefts: Thefts whose clones are attacked together, by their keys; empty for other origins.
        attack: Stealing attack, for the name of its clones; of other origins a name alone.
        budget: Queries after which the clones were made; 0 for other origins.
        eps: Radius of the linf ball, in pixel units of the [0, 1] range.
        images: Images attacked, the first of split `eval`.
        draws: Answers of a randomised defense to each.
        seeds: Seeds of the thefts.
        device: "cpu" or "cuda".
    """

    dataset: Part
    model: Part
    defense: Part
    origin: Origin
    thefts: tuple[str, ...]
    attack: Part
    budget: int
    eps: float
    images: int
    draws: int
    seeds: tuple[int, ...]
    device: str = "cpu"

    @property
    def methods(self) -> tuple[Method, ...]:
        """How its images are made."""
        if self.origin is Origin.NOTHING:
            return (Method.SIGN_NOISE,)
        return Method.PGD, Method.MI_FGSM

    @property
    def key(self) -> str:
        """Name of the transfer: 16 hex digits."""
        records = {name: part.record for name, part in self._parts().items()}
        return digest({"transfer": _TRANSFER, **records, "thefts": self.thefts, **self._numbers()})

    @property
    def label(self) -> str:
        """Name that stays the same when code or data are repaired: 16 hex digits."""
        names = {name: part.name for name, part in self._parts().items()}
        return digest({"transfer": names, **self._numbers()})

    @property
    def title(self) -> str:
        """What messages call it."""
        seeds = "+".join(map(str, self.seeds))
        after = f" after {self.budget} queries, seed {seeds}" if self.thefts else ""
        return f"transfer from {self.attack.name} to {self.defense.name}{after}"

    def _parts(self) -> dict[str, Part]:
        named = {"dataset": self.dataset, "model": self.model, "defense": self.defense}
        return {**named, "attack": self.attack}

    def _numbers(self) -> dict[str, Any]:
        return {
            "origin": str(self.origin),
            "budget": self.budget,
            "eps": self.eps,
            "images": self.images,
            "draws": self.draws,
            "seeds": self.seeds,
            "device": self.device,
        }


def settings(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Every parameter and version of what a result is of."""
    return {name: part.record for name, part in parts.items()}
