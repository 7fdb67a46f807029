"""Numbers that papers report, read from the CSV files of `registry.reported` and checked."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter

from benchmark.errors import RegistryError, suggestion
from benchmark.types import Norm

_FOLDER = "registry.reported"
CLEAN = "clean_accuracy"
FAILURES = "attack_failure_rate"
COMPARED = (CLEAN, "robust_accuracy", FAILURES)  # metrics that have a measured counterpart


def _split(text: object) -> object:
    parts = str(text or "").split(";")
    return {key: value for key, _, value in (part.partition("=") for part in parts if part)}


class Paper(BaseModel):
    """Where numbers come from.

    Attributes:
        title: Authors and title.
        url: Where it can be read.
        measure: Column of `cells.csv` that its robust accuracy is counted like.
        images: Images evaluated, in words, by data set.
        note: What else sets its numbers apart from ours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    url: str
    measure: str = "robust_accuracy"
    images: dict[str, str] = {}
    note: str = ""


class Reported(BaseModel):
    """One number; `registry.reported` says what each column means.

    Attributes:
        defense_params: Parameters by name, as text.
        attack_params: Likewise.
        value: As printed: percentages are 0 to 100.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: str
    table: str
    dataset: str
    model: str
    defense: str
    defense_params: Annotated[dict[str, str], BeforeValidator(_split)]
    matched_drop: float | None
    attack: str
    attack_params: Annotated[dict[str, str], BeforeValidator(_split)]
    norm: Norm | None
    eps: float | None
    queries: int | None
    metric: str
    radius: float | None
    value: float
    unit: str
    note: str

    def __str__(self) -> str:
        """Name the row in a message."""
        shown = [self.dataset, self.model, written(self.defense, self.defense_params)]
        shown += [written(self.attack, self.attack_params), self.metric]
        shown += [f"{self.queries} queries"] if self.queries else []
        return ", ".join(filter(None, shown))


def written(name: str, parameters: dict[str, str]) -> str:
    """Write a reported attack or defense with its parameters: `square[square_size=0.1]`."""
    inner = ";".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}[{inner}]" if inner else name


@cache
def papers() -> dict[str, Paper]:
    """Every paper whose numbers are known, by key."""
    text = resources.files(_FOLDER).joinpath("papers.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Paper]).validate_python(yaml.safe_load(text))


@cache
def reported(paper: str) -> tuple[Reported, ...]:
    """Every number of a paper, in the order of its tables.

    Raises:
        RegistryError: If there is no such paper.
    """
    if paper not in papers():
        raise RegistryError(f"no numbers of paper '{paper}'. {suggestion(paper, papers())}")
    text = resources.files(_FOLDER).joinpath(f"{paper}.csv").read_text(encoding="utf-8")
    lines = [_row(line) for line in csv.DictReader(text.splitlines())]
    return tuple(TypeAdapter(list[Reported]).validate_python(lines))


def _row(line: dict[str, str]) -> dict[str, Any]:
    empty = {"matched_drop", "norm", "eps", "queries", "radius"}
    return {name: None if name in empty and not text else text for name, text in line.items()}
