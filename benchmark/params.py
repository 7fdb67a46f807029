"""Parameters of an entry, read from its signature and checked by pydantic."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from benchmark.errors import SpecError, suggestion

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def number(text: str) -> float:
    """Read a number or a fraction such as "8/255".

    Raises:
        ValueError: If the text is neither.
    """
    if match := _FRACTION.fullmatch(text):
        if float(match[2]) == 0:
            raise ValueError(f"'{text}' divides by zero")
        return float(match[1]) / float(match[2])
    return float(text)


def schema(
    target: Callable[..., Any], common: Mapping[str, tuple[Any, Any]] | None = None
) -> type[BaseModel]:
    """Build the model of all keyword-only parameters of a function or dataclass.

    Args:
        target: The function or class.
        common: Type and default of parameters that it has besides its own.

    Raises:
        TypeError: If a keyword-only parameter has no default or no annotation, or the name of a
            common one.
    """
    hints = get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.default is inspect.Parameter.empty or name not in hints:
            raise TypeError(f"parameter '{name}' of '{target.__name__}' needs a type and a default")
        if name in (common or {}):
            raise TypeError(f"parameter '{name}' of '{target.__name__}' is one that all have")
        fields[name] = (hints[name], parameter.default)
    fields |= common or {}
    config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
    return create_model(target.__name__, __config__=config, **fields)


def resolve(model: type[BaseModel], given: Mapping[str, object], who: str) -> dict[str, Any]:
    """Check given parameters and fill in the defaults.

    Args:
        model: The schema of the entry.
        given: Parameters by name; text is converted, fractions such as "2/255" are read.
        who: How messages name the entry, for example "attack 'square'".

    Returns:
        Every parameter of the entry, by name, in the order of the signature.

    Raises:
        SpecError: For an unknown name or a value that is not allowed.
    """
    for name in given:
        if name not in model.model_fields:
            known = suggestion(name, model.model_fields)
            raise SpecError(f"{who} has no parameter '{name}'. {known}")
    try:
        filled = model.model_validate({name: _plain(value) for name, value in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0]
        raise SpecError(
            f"{who}: {field}={first['input']} is not allowed: {reason(first)}"
        ) from None
    return {name: getattr(filled, name) for name in model.model_fields}


def reason(error: Mapping[str, Any]) -> str:
    """Say what pydantic finds wrong, without the prefix of its own value errors."""
    return str(error["msg"]).removeprefix("Value error, ")


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return the default of every parameter, by name."""
    return {name: field.default for name, field in model.model_fields.items()}


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lower() in {"none", "null"}:
        return None
    match = _FRACTION.fullmatch(value)
    return number(value) if match and float(match[2]) else value
