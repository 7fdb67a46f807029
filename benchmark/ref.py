"""How an entry with its parameters is written: `square[p=0.3]`, `nes@unig`, `timm:resnet18`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmark.errors import SpecError

_FORM = re.compile(
    r"(?P<name>[A-Za-z][\w.-]*)(?:@(?P<preset>[A-Za-z][\w.-]*))?(?::(?P<argument>[^\[\]]+))?"
    r"(?:\[(?P<parameters>[^\[\]]*)\])?"
)


@dataclass(frozen=True)
class Ref:
    """A reference to a registry entry as a user writes it.

    Attributes:
        name: Name of the entry; underscores and hyphens are the same.
        argument: What follows the colon (`folder:PATH`, `timm:NAME`), empty if nothing does.
        parameters: Parameters given in brackets, as text.
        preset: What follows the `@`, whose settings are the defaults; empty for our own.
    """

    name: str
    argument: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    preset: str = ""

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read `name`, `name@preset`, `name:argument` or `name[key=value,...]`.

        Raises:
            SpecError: If the text has another form.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise SpecError(
                f"'{text}' is not of the form name, name@preset, name:argument or name[key=value]"
            )
        parameters: dict[str, str] = {}
        for part in filter(None, (match["parameters"] or "").split(",")):
            key, separator, value = part.partition("=")
            if not separator or not key.strip() or not value.strip():
                raise SpecError(f"'{part}' in '{text}' is not of the form key=value")
            if key.strip() in parameters:
                raise SpecError(f"parameter '{key.strip()}' is given twice in '{text}'")
            parameters[key.strip()] = value.strip()
        name, preset = match["name"].replace("_", "-"), match["preset"] or ""
        return cls(name, match["argument"] or "", parameters, preset.replace("_", "-"))


def split_list(text: str) -> list[str]:
    """Split `a,b[x=1,y=2]` at the commas outside brackets; empty parts are dropped."""
    parts = re.split(r",(?![^\[]*\])", text)
    return [part.strip() for part in parts if part.strip()]


def display(name: str, argument: str, values: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Write an entry with the parameters that differ from their defaults, sorted.

    Args:
        name: Name of the entry, preset included.
        argument: What follows the colon, or empty.
        values: Every parameter in force.
        usual: The default of every parameter.
    """
    shown = [f"{key}={text(value)}" for key, value in sorted(values.items()) if value != usual[key]]
    head = f"{name}:{argument}" if argument else name
    return f"{head}[{','.join(shown)}]" if shown else head


def text(value: object) -> str:
    """Write a parameter value as `Ref.parse` and the parameter schema read it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
