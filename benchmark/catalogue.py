"""The catalogues of entries of each kind, and how these join them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

from benchmark import params
from benchmark.entry import Choice, Entry, F, Member
from benchmark.eot import PARAMETERS
from benchmark.errors import RegistryError, SpecError, suggestion
from benchmark.facts import AttackFacts, DatasetFacts, DefenseFacts, ModelFacts, StealerFacts
from benchmark.ref import Ref

_PACKAGE = "registry"


class Catalogue(Generic[F]):
    """All entries of one kind, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[F]] = {}

    def __iter__(self) -> Iterator[Entry[F]]:
        """Iterate over the entries by name."""
        load_all()
        return iter([self._entries[name] for name in sorted(self._entries)])

    def add(self, name: str, build: Callable[..., Any], facts: F) -> None:
        """Register an entry.

        Raises:
            RegistryError: If the name is taken.
            SpecError: If a preset has a parameter or value that is not allowed.
        """
        name, module = name.replace("_", "-"), build.__module__
        if name in self._entries:
            first = self._entries[name].module
            raise RegistryError(
                f"{self.kind} '{name}' of module '{module}' is already registered by '{first}'. "
                "Rename one of them."
            )
        schema = params.schema(build, PARAMETERS if isinstance(facts, AttackFacts) else None)
        entry = Entry(self.kind, name, build, facts, schema, module)
        for preset in getattr(facts, "presets", {}):
            entry.settings(preset)
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Forget an entry (for tests and interactive work)."""
        self._entries.pop(name.replace("_", "-"), None)

    def get(self, name: str) -> Entry[F]:
        """Return the entry of that name.

        Raises:
            RegistryError: If there is none; the message names the nearest match.
        """
        load_all()
        name = name.replace("_", "-")
        if name not in self._entries:
            raise RegistryError(f"unknown {self.kind} '{name}'. {suggestion(name, self._entries)}")
        return self._entries[name]

    def choose(self, text: str) -> Choice[F]:
        """Resolve what a user wrote, such as `square[p=0.3]` or `nes@unig`.

        Raises:
            RegistryError: If the name or the preset is unknown.
            SpecError: If the form, the argument, a parameter or a value is wrong.
        """
        ref = Ref.parse(text)
        entry = self.get(ref.name)
        needed = getattr(entry.facts, "argument", "")
        if bool(needed) != bool(ref.argument):
            form = f"{entry.name}:{needed}" if needed else entry.name
            raise SpecError(f"{self.kind} '{text}' should be written {form}")
        check, argument = None, ref.argument
        if getattr(entry.facts, "members", {}):
            entry, check = _member(entry, argument)
            argument = ""
        given = {**(entry.settings(ref.preset) if ref.preset else {}), **ref.parameters}
        values = params.resolve(entry.parameters, given, f"{self.kind} '{entry.name}'")
        if check:
            check(values)
        return Choice(entry, argument, values, ref.preset)

    def facts(self, text: str) -> F:
        """Facts of what a user wrote; nothing that it needs to run has to be there.

        Raises:
            RegistryError: If the name is unknown.
            SpecError: If the form is wrong.
        """
        ref = Ref.parse(text)
        facts = self.get(ref.name).facts
        found: F = getattr(facts, "members", {}).get(ref.argument, facts)
        return found


def _member(entry: Entry[F], argument: str) -> tuple[Entry[F], Callable[[Mapping[str, Any]], None]]:
    """The entry that a family makes of an argument, and the check of its parameters."""
    made: Member = entry.build(argument)
    facts = getattr(entry.facts, "members", {})[argument]
    member = replace(
        entry,
        name=f"{entry.name}:{argument}",
        build=made.build,
        facts=facts,
        parameters=params.schema(made.build, PARAMETERS),
        packages=made.packages,
    )
    return member, made.check


ATTACKS: Catalogue[AttackFacts] = Catalogue("attack")
DEFENSES: Catalogue[DefenseFacts] = Catalogue("defense")
MODELS: Catalogue[ModelFacts] = Catalogue("model")
DATASETS: Catalogue[DatasetFacts] = Catalogue("dataset")
STEALERS: Catalogue[StealerFacts] = Catalogue("stealing attack")

_GROUPS = ("attacks", "defenses", "models", "datasets", "stealing")
_loaded: set[str] = set()
_alone = threading.RLock()  # two threads that import at once would register everything twice


def load_all() -> None:
    """Import every entry of the package and of installed third parties, once."""
    with _alone:
        if _PACKAGE in _loaded:
            return
        _loaded.add(_PACKAGE)
        for group in _GROUPS:
            package = importlib.import_module(f"{_PACKAGE}.{group}")
            for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
                importlib.import_module(f"{package.__name__}.{module}")
            for point in importlib.metadata.entry_points(group=f"querybench.{group}"):
                _foreign(f"entry point '{point.name}' of '{point.value}'", point.load)


def load_file(path: Path) -> list[Entry[Any]]:
    """Import a plug-in file and return the entries it registers.

    A file that was loaded before is not loaded again.

    Raises:
        RegistryError: If the file is missing, cannot be imported or registers nothing.
    """
    load_all()
    path = path.resolve()
    name = f"querybench_plugin_{path.stem}"
    with _alone:
        if str(path) not in _loaded:
            _import(path, name)
            _loaded.add(str(path))
    found = [entry for _, entry in _of_module(name)]
    if not found:
        raise RegistryError(f"plug-in '{path}' registers nothing. Decorate an entry.")
    return found


def _import(path: Path, name: str) -> None:
    if not path.is_file():
        raise RegistryError(f"plug-in '{path}' does not exist")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RegistryError(f"plug-in '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    try:
        _foreign(f"plug-in '{path}'", lambda: loader.exec_module(module))
    except RegistryError:
        for catalogue, entry in _of_module(name):
            catalogue.remove(entry.name)
        raise


def _of_module(name: str) -> list[tuple[Catalogue[Any], Entry[Any]]]:
    catalogues: tuple[Catalogue[Any], ...] = (ATTACKS, DEFENSES, MODELS, DATASETS, STEALERS)
    return [(kind, entry) for kind in catalogues for entry in kind if entry.module == name]


def _foreign(who: str, load: Callable[[], object]) -> None:
    try:
        load()
    except RegistryError:
        raise
    except (Exception, SystemExit) as error:  # code of others may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RegistryError(f"{who} cannot be imported: {reason}") from error
