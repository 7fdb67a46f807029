"""What a user asks for when victims are to be stolen, checked in one place."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmark.errors import SpecError, suggestion
from benchmark.params import number, reason
from benchmark.ref import split_list
from benchmark.request import FieldError, Request, make_request
from benchmark.scores import Scores
from benchmark.stealing.meter import COMPANY

_MARKS = (5_000, 20_000, 50_000)  # usual checkpoints


class StealRequest(BaseModel):
    """A run: stealing attacks crossed with defenses on one victim, and transfers from the clones.

    Attributes:
        attacks: Stealing attacks, for example "knockoff[labels=argmax]".
        defenses: Defenses; the undefended row is always added.
        dataset: Data set.
        model: Victim; None means the data set's usual one.
        pool: Data set whose split `train`, from its end, the attacker has; None means the victim's.
        pool_images: How many of its images; None means all.
        queries: Budget of a whole theft.
        budgets: Checkpoints up to `queries`; None means the usual ones.
        seeds: Seeds of all random streams; one theft for each, and one ensemble of all.
        images: Images attacked by transfer, the first of split `eval`.
        eps: Radius of the linf ball in pixel units of the [0, 1] range; None means the data set's.
        match_drop: Points of clean accuracy that each defense may cost; its strength is set so.
        scores: What replies show, for example "label".
        draws: Answers of a randomised defense that are averaged (S3).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    attacks: Annotated[tuple[str, ...], Field(min_length=1)]
    defenses: tuple[str, ...] = ("none",)
    dataset: str = "mnist"
    model: str | None = None
    pool: str | None = None
    pool_images: Annotated[int, Field(ge=1)] | None = None
    queries: Annotated[int, Field(ge=1, le=10**10)] = 5_000
    budgets: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    images: Annotated[int, Field(ge=1, le=10**9)] = 1_000
    eps: Annotated[float, Field(gt=0, le=1)] | None = None
    match_drop: tuple[Annotated[float, Field(gt=0, le=50)], ...] | None = None
    scores: Scores = Scores()
    draws: Annotated[int, Field(ge=1, le=10**6)] = 20

    @field_validator("attacks", "defenses", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return split_list(value) if isinstance(value, str) else value

    @field_validator("budgets", "seeds", "match_drop", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        if isinstance(value, int | float):
            return [value]
        return value.split(",") if isinstance(value, str) else value

    @field_validator("eps", mode="before")
    @classmethod
    def _fraction(cls, value: object) -> object:
        return number(value) if isinstance(value, str) else value

    @field_validator("scores", mode="before")
    @classmethod
    def _shown(cls, value: object) -> object:
        return Scores.parse(value) if isinstance(value, str) else value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is named twice")
        return value

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

    def defended(self) -> Request:
        """The part of the request that is about the victim and its defenses."""
        return make_request(
            attacked=False,
            defenses=self.defenses,
            dataset=self.dataset,
            model=self.model,
            images=self.images,
            match_drop=self.match_drop,
            scores=self.scores,
            shard=COMPANY,
        )


def make_steal(**given: Any) -> StealRequest:
    """Check a request; None counts as not given.

    Raises:
        SpecError: For an unknown field or a value that is not allowed.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    for name in fields:
        check_steal_field(name, "request")
    if not fields.get("attacks"):
        raise SpecError("no stealing attack was named: give --attacks a,b or a suite")
    return checked_steal(fields)


def check_steal_field(name: object, where: str) -> None:
    """Refuse what is no field of a request."""
    if name not in StealRequest.model_fields:
        known = suggestion(str(name), StealRequest.model_fields)
        raise SpecError(f"{where} has an unknown field '{name}'. {known}")


def checked_steal(fields: dict[str, Any]) -> StealRequest:
    """Make a request of fields that exist.

    Raises:
        FieldError: If a value is not allowed.
    """
    try:
        return StealRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise FieldError(first["loc"], first["input"], reason(first)) from None
