"""One registered entry, and one with every parameter resolved."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from benchmark import params
from benchmark.errors import RegistryError, suggestion
from benchmark.facts import AttackFacts, DatasetFacts, DefenseFacts, ModelFacts, StealerFacts
from benchmark.ref import display

_PACKAGE = "registry"  # where ours are

F = TypeVar("F", AttackFacts, DefenseFacts, ModelFacts, DatasetFacts, StealerFacts)


@dataclass(frozen=True)
class Member:
    """One attack of a family: what the family's entry makes of the name after the colon.

    Attributes:
        build: The generator function; its keyword-only parameters are those that users may give.
        packages: Version of each package of others that it runs.
        check: Raises SpecError unless parameters go together.
    """

    build: Callable[..., Any]
    packages: Mapping[str, str]
    check: Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Entry(Generic[F]):
    """One registered attack, defense, model, data set or stealing attack.

    Attributes:
        kind: "attack", "defense", "model", "dataset" or "stealing attack".
        name: Name as users write it.
        build: The function or class that was decorated.
        facts: What the entry declares about itself.
        parameters: Schema of its keyword-only parameters.
        module: Module that defines it.
        packages: Version of each package of others that it runs; part of every result's key.
    """

    kind: str
    name: str
    build: Callable[..., Any]
    facts: F
    parameters: type[BaseModel]
    module: str
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def builtin(self) -> bool:
        """It is one of ours, not of a plug-in or another package."""
        return self.module.partition(".")[0] == _PACKAGE

    @property
    def code(self) -> str:
        """Hash of the file that defines it, 16 hex digits."""
        file = sys.modules[self.module].__file__
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""

    def settings(self, preset: str = "") -> dict[str, Any]:
        """Every parameter under a preset, by default our own settings.

        Raises:
            RegistryError: If there is no such preset.
        """
        if not preset:
            return params.defaults(self.parameters)
        presets = getattr(self.facts, "presets", {})
        if preset not in presets:
            raise RegistryError(
                f"{self.kind} '{self.name}' has no preset '{preset}'. {suggestion(preset, presets)}"
            )
        who = f"preset '{self.name}@{preset}'"
        return params.resolve(self.parameters, presets[preset].values, who)

    @property
    def summary(self) -> str:
        """First line of the docstring; of a class, whose own shows a formula, that of its file."""
        classes = self.kind in {"defense", "stealing attack"}
        file = inspect.getdoc(sys.modules[self.module]) if classes else ""
        return (file or inspect.getdoc(self.build) or "").partition("\n")[0]


@dataclass(frozen=True)
class Choice(Generic[F]):
    """An entry with every parameter resolved.

    Attributes:
        entry: The entry.
        argument: What follows the colon, or empty.
        values: Every parameter in force.
        preset: Name of the preset whose settings were the defaults, or empty.
    """

    entry: Entry[F]
    argument: str
    values: dict[str, Any]
    preset: str = ""

    def __str__(self) -> str:
        """Write the choice as tables show it: parameters that differ from the default."""
        return self._written(self.shown_argument, self._shown_values())

    def spelled(self) -> str:
        """Write the choice so that it can be resolved again, with whole paths."""
        return self._written(self.argument, self.values)

    def _written(self, argument: str, values: Mapping[str, Any]) -> str:
        usual = self.entry.settings(self.preset)
        name = f"{self.entry.name}@{self.preset}" if self.preset else self.entry.name
        return display(name, argument, values, usual)

    def _shown_values(self) -> dict[str, Any]:
        return {k: v.name if isinstance(v, Path) else v for k, v in self.values.items()}

    @property
    def shown_argument(self) -> str:
        """The argument, of a path the last part: a table must not depend on one machine."""
        return Path(self.argument).name or self.argument

    def record(self) -> dict[str, Any]:
        """Return what identifies the choice in a stored result."""
        record: dict[str, Any] = {
            "name": self.entry.name,
            "argument": self.shown_argument,
            "version": self.entry.facts.version,
            "parameters": to_jsonable_python(self._shown_values()),
        }
        if self.preset:
            record["preset"] = self.preset
        if self.entry.packages:
            record["packages"] = dict(self.entry.packages)
        # Code of others carries no version that we could trust: its file is in the key.
        return record if self.entry.builtin else {**record, "code": self.entry.code}
