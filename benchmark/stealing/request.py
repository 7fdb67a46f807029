"""What a user asks for when victims are to be stolen, checked in one place."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from benchmark.errors import SpecError
from benchmark.fields import (
    Counts,
    Drops,
    Fraction,
    Names,
    Numbers,
    Shown,
    checked,
    checkpoints,
    given,
)
from benchmark.request import Request, make_request
from benchmark.scores import Scores
from benchmark.stealing.meter import COMPANY

_Seeds = tuple[Annotated[int, Field(ge=0)], ...]
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

    attacks: Annotated[Names, Field(min_length=1)]
    defenses: Names = ("none",)
    dataset: str = "mnist"
    model: str | None = None
    pool: str | None = None
    pool_images: Annotated[int, Field(ge=1)] | None = None
    queries: Annotated[int, Field(ge=1, le=10**10)] = 5_000
    budgets: Counts = None
    seeds: Annotated[_Seeds, Field(min_length=1), Numbers] = (0, 1, 2)
    images: Annotated[int, Field(ge=1, le=10**9)] = 1_000
    eps: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Fraction] = None
    match_drop: Drops = None
    scores: Shown = Scores()
    draws: Annotated[int, Field(ge=1, le=10**6)] = 20

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
        return checkpoints(self.budgets, self.queries, _MARKS)

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


def make_steal(**fields: Any) -> StealRequest:
    """Check a request; None counts as not given.

    Raises:
        SpecError: For an unknown field or a value that is not allowed.
    """
    asked = given(StealRequest, fields)
    if not asked.get("attacks"):
        raise SpecError("no stealing attack was named: give --attacks a,b or a suite")
    return checked(StealRequest, asked)
