"""Fields of requests: what a user writes is read, checked, and refused in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from benchmark.errors import SpecError, suggestion
from benchmark.params import number, reason
from benchmark.ref import split_list
from benchmark.scores import Scores

M = TypeVar("M", bound=BaseModel)


def _listed(value: object) -> object:
    return split_list(value) if isinstance(value, str) else value


def _numbers(value: object) -> object:
    if isinstance(value, int | float):
        return [value]
    return value.split(",") if isinstance(value, str) else value


def _fraction(value: object) -> object:
    return number(value) if isinstance(value, str) else value


def _fractions(value: object) -> object:
    if isinstance(value, str):
        return tuple(number(part) for part in value.split(","))
    return [value] if isinstance(value, int | float) else value


def _shown(value: object) -> object:
    return Scores.parse(value) if isinstance(value, str) else value


Listed = BeforeValidator(_listed)  # "a,b[x=1]"
Numbers = BeforeValidator(_numbers)  # "1,2", or one number
Fraction = BeforeValidator(_fraction)  # "8/255"
Fractions = BeforeValidator(_fractions)  # "4/255,8/255"

Names = Annotated[tuple[str, ...], Listed]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, Numbers]
Drops = Annotated[tuple[Annotated[float, Field(gt=0, le=50)], ...] | None, Numbers]
Shown = Annotated[Scores, BeforeValidator(_shown)]


def checkpoints(asked: Sequence[int] | None, queries: int, usual: Sequence[int]) -> tuple[int, ...]:
    """Put checkpoints into ascending order, the budget last.

    Args:
        asked: Checkpoints; None means the usual ones below the budget.
        queries: The budget.
        usual: The usual ones.

    Raises:
        SpecError: If one lies beyond the budget.
    """
    marks = asked or tuple(mark for mark in usual if mark < queries)
    if max(marks, default=0) > queries:
        raise SpecError(
            f"--budgets {max(marks)} lies beyond --queries {queries}, the budget of a run"
        )
    return tuple(sorted({*marks, queries}))


def check_field(kind: type[BaseModel], name: object, where: str) -> None:
    """Refuse what is no field of a kind of request."""
    if name not in kind.model_fields:
        known = suggestion(str(name), kind.model_fields)
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


def checked(kind: type[M], fields: Mapping[str, Any]) -> M:
    """Make a request of fields that exist.

    Raises:
        FieldError: If a value is not allowed.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise FieldError(first["loc"], first["input"], reason(first)) from None


def given(kind: type[BaseModel], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given, which is None.

    Raises:
        SpecError: For what is no field of this kind of request.
    """
    for name in fields:
        check_field(kind, name, "request")
    return {name: value for name, value in fields.items() if value is not None}
