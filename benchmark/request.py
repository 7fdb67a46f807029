"""What a user asks for, from the command line, a suite or Python, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmark.errors import SpecError, suggestion
from benchmark.params import number, reason
from benchmark.ref import split_list
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

    attacks: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ("none",)
    pairs: tuple[tuple[str, str], ...] = ()
    exclude: tuple[Exclusion, ...] = ()
    dataset: str = "mnist"
    model: str | None = None
    images: Annotated[int, Field(ge=1, le=10**9)] = 200
    queries: Annotated[int, Field(ge=1, le=10**9)] = 300
    budgets: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    norm: Norm = Norm.LINF
    eps: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    run_to_budget: bool = False
    match_drop: tuple[Annotated[float, Field(gt=0, le=50)], ...] | None = None
    targeted: bool = False
    eot: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    scores: Scores = Scores()
    probes: Probes = Probes.BOX
    votes: Annotated[int, Field(ge=1, le=MOST_VOTES)] = 9
    draws: Annotated[int, Field(ge=1, le=10**6)] = 20
    shard: Annotated[int, Field(ge=1, le=10**9)] = 100

    @field_validator("attacks", "defenses", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return split_list(value) if isinstance(value, str) else value

    @field_validator("budgets", "eot", "match_drop", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        if isinstance(value, int | float):
            return [value]
        return value.split(",") if isinstance(value, str) else value

    @field_validator("scores", mode="before")
    @classmethod
    def _shown(cls, value: object) -> object:
        return Scores.parse(value) if isinstance(value, str) else value

    @field_validator("eps", mode="before")
    @classmethod
    def _fractions(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(number(part) for part in value.split(","))
        return [value] if isinstance(value, int | float) else value

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
        asked = self.budgets or tuple(mark for mark in _MARKS if mark < self.queries)
        if max(asked, default=0) > self.queries:
            raise SpecError(
                f"--budgets {max(asked)} lies beyond --queries {self.queries}, the budget of a run"
            )
        return tuple(sorted({*asked, self.queries}))


def make_request(*, attacked: bool = True, **given: Any) -> Request:
    """Check a request; None counts as not given.

    Args:
        attacked: The request is to name at least one attack.
        **given: Fields of `Request`.

    Raises:
        SpecError: For an unknown field or a value that is not allowed.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    for name in fields:
        check_field(name, "request")
    request = checked(fields)
    if attacked and not (request.attacks or request.pairs):
        raise SpecError("no attack was named: give --attacks a,b or a suite")
    return request


def check_field(name: object, where: str) -> None:
    """Refuse what is no field of a request."""
    if name not in Request.model_fields:
        known = suggestion(str(name), Request.model_fields)
        raise SpecError(f"{where} has an unknown field '{name}'. {known}")


class FieldError(SpecError):
    """A field of a request has a value that is not allowed.

    Attributes:
        place: Names and positions that lead to the value.
    """

    def __init__(self, place: tuple[int | str, ...], value: object, why: str) -> None:
        self.place = place
        name = ".".join(part for part in place if isinstance(part, str))
        super().__init__(f"{name}={value} is not allowed: {why}")


def checked(fields: Mapping[str, Any]) -> Request:
    """Make a request of fields that exist.

    Raises:
        FieldError: If a value is not allowed.
    """
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise FieldError(first["loc"], first["input"], reason(first)) from None
