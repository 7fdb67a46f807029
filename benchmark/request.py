"""What a user asks for, from the command line, a suite or Python, checked in one place."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from benchmark.errors import SpecError
from benchmark.fields import (
    Counts,
    Drops,
    Fractions,
    Names,
    Shown,
    checked,
    checkpoints,
    given,
)
from benchmark.scores import Scores
from benchmark.types import Norm, Probes

_MARKS = (100, 1000, 2500, 10_000)  # usual checkpoints of the literature
MOST_VOTES = 999


class Exclusion(BaseModel):
    """Combinations that are left out of a run.

    Attributes:
        attack: Pattern of attacks, as written or by name alone, for example "nes*".
        defense: Pattern of defenses, likewise.
        reason: Why; it is told with every run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    attack: str = "*"
    defense: str = "*"
    reason: Annotated[str, Field(min_length=1)]

    def covers(self, attack: str, defense: str) -> bool:
        """Tell whether a combination, as its parts are written, is left out."""
        return _fits(attack, self.attack) and _fits(defense, self.defense)


def _fits(text: str, pattern: str) -> bool:
    # A bracket is no pattern here: it holds parameters.
    name = "+".join(part.partition("[")[0].partition("@")[0] for part in text.split("+"))
    return text == pattern or fnmatch(name, pattern)


class Request(BaseModel):
    """A run: attacks crossed with defenses on one victim.

    Attributes:
        attacks: Attacks, for example "square[p=0.3]".
        defenses: Defenses; the undefended row is always added.
        pairs: Attacks and defenses that meet besides all those named above.
        exclude: Combinations left out, with reasons.
        dataset: Data set.
        model: Victim; None means the data set's usual one.
        images: Images evaluated, the first of split `eval`.
        queries: Budget of each image.
        budgets: Checkpoints up to `queries`; None means the usual ones.
        norm: Norm of the threat.
        eps: Radii in pixel units of the [0, 1] range; None means the data set's usual one.
        run_to_budget: Attacks that look for the nearest adversarial image do not stop in the ball:
            all radii are read off one run, and distances are those of the whole budget.
        match_drop: Points of clean accuracy that each defense may cost; its strength is set so.
        targeted: Attacks aim at one label, drawn for each image.
        eot: Queries a question (EOT); several run each attack once for each. None means what the
            attacks say themselves, usually 1.
        seed: Seed of every random stream.
        scores: What replies show, for example "top-5".
        probes: Where estimators may place their probes.
        votes: Fresh answers that verify a hit, odd.
        draws: Fresh answers averaged for S3.
        shard: Images in a shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    attacks: Names = ()
    defenses: Names = ("none",)
    pairs: tuple[tuple[str, str], ...] = ()
    exclude: tuple[Exclusion, ...] = ()
    dataset: str = "mnist"
    model: str | None = None
    images: Annotated[int, Field(ge=1, le=10**9)] = 200
    queries: Annotated[int, Field(ge=1, le=10**9)] = 300
    budgets: Counts = None
    norm: Norm = Norm.LINF
    eps: Annotated[tuple[Annotated[float, Field(gt=0)], ...] | None, Fractions] = None
    run_to_budget: bool = False
    match_drop: Drops = None
    targeted: bool = False
    eot: Counts = None
    seed: Annotated[int, Field(ge=0)] = 0
    scores: Shown = Scores()
    probes: Probes = Probes.BOX
    votes: Annotated[int, Field(ge=1, le=MOST_VOTES)] = 9
    draws: Annotated[int, Field(ge=1, le=10**6)] = 20
    shard: Annotated[int, Field(ge=1, le=10**9)] = 100

    @field_validator("votes")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a majority always exists")
        return value

    def opponents(self) -> tuple[str, ...]:
        """Every defense that is named, in order, without repetitions."""
        return tuple(dict.fromkeys((*self.defenses, *(defense for _, defense in self.pairs))))

    def attackers(self) -> tuple[str, ...]:
        """Every attack that is named, in order, without repetitions."""
        return tuple(dict.fromkeys((*self.attacks, *(attack for attack, _ in self.pairs))))

    def meets(self, attack: str, defense: str) -> bool:
        """Tell whether two that are named are to meet, as long as nothing excludes it."""
        crossed = attack in self.attacks and defense in self.defenses
        return crossed or (attack, defense) in self.pairs

    def excluded(self, attack: str, defense: str) -> str:
        """Say why a combination is left out; empty if it is not."""
        reasons = (one.reason for one in self.exclude if one.covers(attack, defense))
        return next(reasons, "")

    def checkpoints(self) -> tuple[int, ...]:
        """Checkpoints in ascending order, the budget last.

        Raises:
            SpecError: If one lies beyond the budget.
        """
        return checkpoints(self.budgets, self.queries, _MARKS)


def make_request(*, attacked: bool = True, **fields: Any) -> Request:
    """Check a request; None counts as not given.

    Args:
        attacked: The request is to name at least one attack.
        **fields: Fields of `Request`.

    Raises:
        SpecError: For an unknown field or a value that is not allowed.
    """
    request = checked(Request, given(Request, fields))
    if attacked and not (request.attacks or request.pairs):
        raise SpecError("no attack was named: give --attacks a,b or a suite")
    return request
