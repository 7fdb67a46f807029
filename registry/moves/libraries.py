"""What is borrowed from a library of attacks: which classes, and how a run sets them up."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.errors import RegistryError, SpecError, suggestion
from benchmark.extras import load_extra
from benchmark.facts import AttackFacts
from benchmark.registry import Member
from benchmark.rng import RowRng
from benchmark.types import Access, Problem, Steps, Threat
from registry.moves.apart import their_turn
from registry.moves.borrowed import Ask, Case, Shows, Visit, host

# What differs from the library's own use, whatever the attack.
EVERY = (
    "each image is attacked alone, and every look that the library takes is charged, also at the "
    "clean image and at its own result",
    "the budget ends the attack, where its own limits are not given",
    "a pixel that is not a number is asked as the clean one",
    "what it returns is ignored: hits are the oracle's, in ball and box",
    "it ends as soon as it believes to have succeeded, on a randomised victim perhaps wrongly",
)

_SIMPLE = (int, float, bool, str, types.NoneType)


@dataclass(frozen=True)
class Borrowed:
    """One attack of a library.

    Attributes:
        facts: What it is.
        ends: Parameters at which it would end by itself, and the queries that one unit of them
            costs. Unless the user gives them they are what the budget pays for.
        sets: Parameters that the run decides.
        types: Types of parameters that their signature does not tell.
        shows: What it is shown, if not scores or label as its access says.
        surrenders: How errors begin, as "Type: message", by which it gives an image up.
    """

    facts: AttackFacts
    ends: Mapping[str, int] = field(default_factory=dict)
    sets: Mapping[str, Callable[[Case], object]] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    shows: Shows | None = None
    surrenders: tuple[str, ...] = ()

    @property
    def shown(self) -> Shows:
        """What its model answers."""
        return self.shows or ("label" if self.facts.access is Access.LABEL else "scores")

    def filled(self, values: Mapping[str, Any], case: Case) -> dict[str, Any]:
        """All parameters of its constructor."""
        paid = {key: max(1, math.ceil(case.questions / cost)) for key, cost in self.ends.items()}
        given = {
            key: value for key, value in values.items() if value is not None or key not in paid
        }
        return {**paid, **given, **{key: decide(case) for key, decide in self.sets.items()}}


@dataclass(frozen=True)
class Library:
    """A library of attacks.

    Attributes:
        entry: Name of its entry, and of the extra that installs it.
        package: Name it is installed by.
        module: Module that holds its attacks.
        more: Other modules that `start` needs.
        attacks: What is borrowed, by name.
        gradients: Names of attacks that need gradients.
        refused: Why other attacks are not borrowed, by name.
        start: Builds an attack for one image, from its class and all parameters, and returns a
            function that runs it.
        makers: What builds an attack that is no class of the module, by name.
        kept: Parameters that no user may give.
    """

    entry: str
    package: str
    module: str
    attacks: Mapping[str, Borrowed]
    start: Callable[[Any, Case, Ask, dict[str, Any]], Callable[[], object]]
    gradients: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    makers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    more: tuple[str, ...] = ()

    @property
    def members(self) -> dict[str, AttackFacts]:
        """Facts of each attack, by name."""
        return {name: borrowed.facts for name, borrowed in self.attacks.items()}

    def member(self, name: str) -> Member:
        """Make an attack of ours of one of the library's.

        Raises:
            RegistryError: If it is not borrowed, or the library is not installed.
        """
        borrowed, full = self._borrowed(name), f"{self.entry}:{name}"
        target, version = self._found(name), importlib.metadata.version(self.package)

        def attack(problem: Problem, rng: RowRng, **values: Any) -> Steps:
            def run(case: Case, ask: Ask) -> None:
                self.start(target, case, ask, borrowed.filled(values, case))()

            visit = Visit(full, run, borrowed.shown, borrowed.surrenders)
            return host(problem, rng, visit)

        def check(values: Mapping[str, Any]) -> None:
            own = {key: values[key] for key in values if key in fields}
            try:
                with their_turn():
                    case = _example(borrowed.facts)
                    self.start(target, case, _unasked, borrowed.filled(own, case))
            except Exception as error:
                line = " ".join(f"{type(error).__name__}: {error}".split())
                raise SpecError(f"attack '{full}' refuses its parameters: {line}") from error

        fields = {p.name: p for p in self._parameters(target, borrowed)}
        _sign(attack, list(fields.values()))
        attack.__name__ = name
        attack.__doc__ = f"{name} of {self.package} {version}, run on each image alone."
        return Member(attack, {self.package: version}, check)

    def _borrowed(self, name: str) -> Borrowed:
        if name in self.gradients:
            raise RegistryError(
                f"attack '{self.entry}:{name}' needs gradients, which no query answers"
            )
        if name in self.refused:
            raise RegistryError(
                f"attack '{self.entry}:{name}' is not offered: {self.refused[name]}"
            )
        if name not in self.attacks:
            known = suggestion(name, self.attacks)
            raise RegistryError(f"unknown attack '{self.entry}:{name}'. {known}")
        return self.attacks[name]

    def _found(self, name: str) -> Any:
        """The class; what is missing is said."""
        who = f"attack '{self.entry}:{name}'"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            needed = ("greenlet", self.module, *self.more)
            modules = [load_extra(module, self.entry, who) for module in needed][1:]
        found = self.makers.get(name) or getattr(modules[0], name, None)
        if found is None:
            version = importlib.metadata.version(self.package)
            raise RegistryError(f"{self.package} {version} has no attack '{name}'")
        return found

    def _parameters(self, target: Any, borrowed: Borrowed) -> Iterator[inspect.Parameter]:
        """What a user may give of the parameters of its constructor, keyword-only."""
        for parameter in inspect.signature(target).parameters.values():
            name, usual = parameter.name, parameter.default
            if name in borrowed.ends:
                annotation, usual = Annotated[int, Field(gt=0)] | None, None
            else:
                annotation = borrowed.types.get(name) or _type(parameter, target.__module__)
            if annotation is None or name in {*self.kept, *borrowed.sets}:
                continue
            kind = inspect.Parameter.KEYWORD_ONLY
            yield inspect.Parameter(name, kind, default=usual, annotation=annotation)


def _type(parameter: inspect.Parameter, module: str) -> Any:
    """Type of a parameter that can be written in brackets; None of any other."""
    said = parameter.annotation
    if isinstance(said, str):
        try:  # the source of a library that is installed, and imported just now
            said = eval(said, vars(sys.modules[module]))
        except (NameError, TypeError):  # names that only type checkers import
            said = inspect.Parameter.empty
    if parameter.default is inspect.Parameter.empty:
        return None
    if said is inspect.Parameter.empty:
        said = type(parameter.default)
    return said if _simple(said) else None


def _simple(said: Any) -> bool:
    form, parts = typing.get_origin(said), typing.get_args(said)
    if form in {typing.Union, types.UnionType}:
        return all(_simple(part) for part in parts)
    return said in _SIMPLE or form is Literal or (form is Annotated and _simple(parts[0]))


def _sign(attack: Any, parameters: list[inspect.Parameter]) -> None:
    """Give an attack function the signature that its parameters are read from."""
    attack.__signature__ = inspect.Signature(parameters)
    attack.__annotations__ = {one.name: one.annotation for one in parameters}


def _example(facts: AttackFacts) -> Case:
    """A case on which an attack is built to see whether its parameters will do."""
    image, label = torch.full((1, 3, 32, 32), 0.5), torch.zeros(1, dtype=torch.int64)
    return Case(image, label, Threat(facts.norms[0], 0.1, 100, facts.aims[0]), 10, 100, 0, image)


def _unasked(_images: Tensor) -> Tensor:
    raise RuntimeError("an attack that is only built asks nothing")
