"""Named benchmarks: YAML files of requests, checked so that a mistake is told with its line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from benchmark import located
from benchmark.catalogue import DATASETS, MODELS
from benchmark.choices import attack_choices
from benchmark.errors import BenchError, RegistryError, SpecError, suggestion
from benchmark.fields import FieldError, check_field, checked
from benchmark.located import Located
from benchmark.request import Request, make_request
from benchmark.stack import DefenseChoice, undefended

_FOLDER = "registry.suites"
_OWN = ("summary", "task", "runs", "reported")  # fields of a suite that are none of a request
ATTACK, STEAL = "attack", "steal"  # tasks, and the command of each
_COMMANDS = {ATTACK: "bench run", STEAL: "bench steal"}
_AXES = ("model", "seed")  # fields that a suite may give several values


def suites(task: str | None = None) -> list[str]:
    """Names of the built-in suites, of one task or of all."""
    files = resources.files(_FOLDER).iterdir()
    names = sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))
    return [name for name in names if task is None or task_of(name) == task]


def task_of(name: str) -> str:
    """Task of a suite, by name or path.

    Raises:
        RegistryError: If there is no such suite.
        SpecError: If the file is not a YAML mapping, or its task unknown.
    """
    return str(load_suite(name).data.get("task", ATTACK))


def load_suite(name: str, task: str | None = None) -> Located:
    """Read a built-in suite, or a YAML file given by its path.

    Args:
        name: Name or path.
        task: Task that it has to be of; None means any.

    Raises:
        RegistryError: If there is no such suite.
        SpecError: If the file is not a YAML mapping, or of another task.
    """
    path, builtin = Path(name), suites()
    source: Path | Traversable
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        source = path
    elif name in builtin:
        source = resources.files(_FOLDER).joinpath(f"{name}.yaml")
    else:
        raise RegistryError(f"unknown suite '{name}'. {suggestion(name, builtin)}")
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpecError(f"suite '{name}' is not YAML: {' '.join(str(error).split())}") from None
    found = located.read(text, f"suite '{name}'")
    mine = found.data.get("task", ATTACK)
    if mine not in _COMMANDS:
        known = suggestion(str(mine), _COMMANDS)
        raise SpecError(f"{found.at('task')}: unknown task '{mine}'. {known}")
    if task not in {None, mine}:
        raise SpecError(f"suite '{name}' is of task '{mine}': {_COMMANDS[mine]} {name}")
    return found


def make_requests(suite: str | None = None, **given: Any) -> list[Request]:
    """Check what is wanted: one request for each run of a suite, victim and seed.

    Args:
        suite: Name of a built-in suite or path of a YAML file, or None.
        **given: Fields of `Request`; they win over the suite, None counts as not given.

    Raises:
        SpecError: For an unknown field, or a value that is not allowed; with file and line.
        RegistryError: For an unknown suite, attack, defense, data set or victim.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    if suite is None:
        return [make_request(**fields)]
    source = load_suite(suite, ATTACK)
    requests = [r for run in runs_of(source, Request) for r in _expanded(source, run, fields)]
    _check_exclusions(source, requests)
    return requests


def _check_exclusions(source: Located, requests: Sequence[Request]) -> None:
    """Refuse an exclusion that nothing falls under: its names are surely misspelt."""
    bare = str(undefended())
    met = {
        pair
        for one in requests
        for pair in itertools.product(one.attackers(), (bare, *one.opponents()))
    }
    for exclusion in dict.fromkeys(one for request in requests for one in request.exclude):
        if not any(exclusion.covers(*pair) for pair in met):
            raise SpecError(
                f"{source.at('exclude')}: nothing that is run falls under "
                f"attack '{exclusion.attack}', defense '{exclusion.defense}'"
            )


class SuiteRun(NamedTuple):
    """One run of a suite: its fields and where each stands."""

    fields: dict[str, Any]
    places: dict[str, tuple[Any, ...]]


def runs_of(source: Located, kind: type[BaseModel]) -> Iterator[SuiteRun]:
    """Read the runs of a suite.

    Args:
        source: The suite.
        kind: The kind of request that each makes.

    Raises:
        SpecError: If the runs are no mappings, or name what is no field of such a request.
    """
    common = {name: value for name, value in source.data.items() if name not in _OWN}
    runs = source.data.get("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise SpecError(f"{source.at('runs')}: runs is not a list of mappings")
    for number, run in enumerate(runs):
        places = {name: (name,) for name in common}
        places |= {name: ("runs", number, name) for name in run}
        for name, place in places.items():
            check_field(kind, name, source.at(*place))
        yield SuiteRun({**common, **run}, places)


def _expanded(source: Located, run: SuiteRun, given: Mapping[str, Any]) -> Iterator[Request]:
    """Make a request for each combination of the axes."""
    fields = {**run.fields, **given}
    places = {name: place for name, place in run.places.items() if name not in given}
    listed = [name for name in _AXES if isinstance(fields.get(name), list)]
    if empty := [name for name in listed if not fields[name]]:
        raise SpecError(f"{source.at(*run.places[empty[0]])}: {empty[0]} names nothing")
    for values in itertools.product(*(fields[name] for name in listed)):
        single = {**fields, **dict(zip(listed, values, strict=True))}
        try:
            request = checked(Request, single)
        except FieldError as error:
            where = places.get(str(error.place[0]))
            if where is None:
                raise
            raise SpecError(f"{source.at(*where, *error.place[1:])}: {error}") from None
        _check_names(source, request, places)
        yield request


def _check_names(source: Located, request: Request, places: Mapping[str, Any]) -> None:
    """Look every name up, so that a mistake is told with its line."""

    def attack(text: str) -> object:
        return attack_choices(text, request)

    for field, check in (("attacks", attack), ("defenses", DefenseChoice.parse)):
        for number, text in enumerate(getattr(request, field)):
            look_up(check, text, source, places.get(field), number)
    for number, pair in enumerate(request.pairs):
        for part, check in enumerate((attack, DefenseChoice.parse)):
            look_up(check, pair[part], source, places.get("pairs"), number, part)
    look_up(DATASETS.choose, request.dataset, source, places.get("dataset"))
    if request.model:
        look_up(MODELS.choose, request.model, source, places.get("model"))
    if not (request.attacks or request.pairs):
        raise SpecError(f"{source.name} names no attack")


def look_up(
    check: Callable[[str], object], text: str, source: Located, place: Any, *more: int
) -> None:
    """Check a name that stands in a suite, so that a mistake is told with its line."""
    try:
        check(text)
    except BenchError as error:
        if place is None:
            raise
        raise type(error)(f"{source.at(*place, *more)}: {error}") from None
