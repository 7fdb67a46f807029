"""Suites of stealing: YAML files whose task is `steal`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.catalogue import DATASETS, MODELS, STEALERS
from benchmark.errors import SpecError
from benchmark.fields import FieldError, checked
from benchmark.located import Located
from benchmark.stack import DefenseChoice
from benchmark.stealing.request import StealRequest, make_steal
from benchmark.suites import STEAL, SuiteRun, load_suite, look_up, runs_of


def make_steals(suite: str | None = None, **given: Any) -> list[StealRequest]:
    """Check what is wanted: one request for each run of a suite.

    Args:
        suite: Name of a built-in suite or path of a YAML file, or None.
        **given: Fields of `StealRequest`; they win over the suite, None counts as not given.

    Raises:
        SpecError: For an unknown field, or a value that is not allowed; with file and line.
        RegistryError: For an unknown suite, attack, defense, data set or victim.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    if suite is None:
        return [make_steal(**fields)]
    source = load_suite(suite, STEAL)
    return [_made(source, run, fields) for run in runs_of(source, StealRequest)]


def _made(source: Located, run: SuiteRun, given: Mapping[str, Any]) -> StealRequest:
    """Make the request of one run; mistakes are told with their lines."""
    if not {**run.fields, **given}.get("attacks"):
        raise SpecError(f"{source.name} names no stealing attack")
    places = {name: place for name, place in run.places.items() if name not in given}
    try:
        request = checked(StealRequest, {**run.fields, **given})
    except FieldError as error:
        where = places.get(str(error.place[0]))
        if where is None:
            raise SpecError(f"{source.name}: {error}") from None
        raise SpecError(f"{source.at(*where, *error.place[1:])}: {error}") from None
    for field, check in (("attacks", STEALERS.choose), ("defenses", DefenseChoice.parse)):
        for number, text in enumerate(getattr(request, field)):
            look_up(check, text, source, places.get(field), number)
    for field, find in (("dataset", DATASETS), ("pool", DATASETS), ("model", MODELS)):
        if text := getattr(request, field):
            look_up(find.choose, text, source, places.get(field))
    return request
