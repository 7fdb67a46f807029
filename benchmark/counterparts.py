"""Which cell of a suite each number of a paper's table is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmark.catalogue import ATTACKS, DATASETS
from benchmark.choices import attack_choices
from benchmark.errors import SpecError
from benchmark.located import Located
from benchmark.reported import CLEAN, COMPARED, Paper, Reported, papers, written
from benchmark.reported_table import FIELD, Table, read_table
from benchmark.request import Request
from benchmark.stack import DefenseChoice, undefended
from benchmark.suites import load_suite, make_requests
from benchmark.types import Aim

_STRUCTURAL = ("targeted", "eot")  # parameters that are no part of an attack's name


@dataclass(frozen=True)
class Cell:
    """A cell of a suite, named as tables name it.

    Attributes:
        dataset: Registered name of the data set.
        model: Victim; None for any.
        defense: Defense; with a drop, as it is asked for.
        drop: Points of clean accuracy that its strength is set for; None for it as written.
        attack: Attack; empty for clean accuracy, which is the same for all.
        request: The run of the suite that measures it.
        eps: Radius.
        budget: Queries.
    """

    dataset: str
    model: str | None
    defense: str
    drop: float | None
    attack: str
    request: Request
    eps: float
    budget: int

    @property
    def aim(self) -> Aim:
        """Untargeted or targeted."""
        return Aim.TARGETED if self.request.targeted else Aim.UNTARGETED


class Counterparts(NamedTuple):
    """A table: each number with its cell, and those that are left out, with reasons."""

    paper: Paper
    table: Table
    pairs: tuple[tuple[Reported, Cell], ...]
    left_out: tuple[tuple[Reported, str], ...]


def counterparts(suite: str) -> Counterparts | None:
    """Find the cell of each number of the table that a suite names; None if it names none.

    Raises:
        SpecError: If a number is neither named nor left out, or a name is of nothing; with file
            and line.
    """
    source = load_suite(suite)
    if FIELD not in source.data:
        return None
    return _Finder(source, make_requests(suite)).found()


class _Finder:
    """Finds cells, and keeps book of the names that were of use."""

    def __init__(self, source: Located, requests: Sequence[Request]) -> None:
        self._source, self._requests = source, requests
        self._table = read_table(source)
        self._used: set[tuple[str, str | int]] = set()

    def found(self) -> Counterparts:
        rows = [(row, self._reason(row)) for row in self._table.rows()]
        kept = [row for row, why in rows if not why]
        pairs = tuple((row, self._cell(row, kept)) for row in kept)
        left = tuple((row, why) for row, why in rows if why)
        self._check_used()
        return Counterparts(papers()[self._table.paper], self._table, pairs, left)

    def _at(self, *place: str | int) -> str:
        return self._source.at(FIELD, *place)

    def _reason(self, row: Reported) -> str:
        for number, one in enumerate(self._table.left_out):
            if one.covers(row):
                self._used.add(("left_out", number))
                return one.reason
        return ""

    def _cell(self, row: Reported, rows: Sequence[Reported]) -> Cell:
        if row.metric not in COMPARED:
            raise SpecError(f"{self._at()}: nothing measured is like '{row}': leave it out")
        attacks: Sequence[str] = [""]
        if row.metric != CLEAN:
            others = [_params(one) for one in rows if one.attack == row.attack]
            attacks = self._ours("attacks", row.attack, _params(row), others)
        others = [one.defense_params for one in rows if one.defense == row.defense]
        defenses = self._ours("defenses", row.defense, row.defense_params, others)
        models: Sequence[str | None] = [None]
        if self._table.victims:
            models = self._ours("victims", row.model, {}, [])
        every = itertools.product(self._requests, models, attacks, defenses)
        for request, model, attack, defense in every:
            if cell := next(_fitting(row, request, model, attack, defense), None):
                return cell
        raise SpecError(f"{self._at()}: no run of the suite is of '{row}' alone")

    def _ours(
        self, field: str, name: str, given: dict[str, str], others: Sequence[dict[str, str]]
    ) -> Sequence[str]:
        """Our names for a reported part; its name alone will do where one such part is left."""
        known: dict[str, Sequence[str]] = getattr(self._table, field)
        full = written(name, given)
        several = any(one != given and written(name, one) not in known for one in others)
        key = full if full in known or several else name
        if key not in known:
            raise SpecError(f"{self._at(field)}: '{key}' is neither named nor left out")
        self._used.add((field, key))
        return known[key]

    def _check_used(self) -> None:
        for field in ("victims", "attacks", "defenses"):
            for name in getattr(self._table, field):
                if (field, name) not in self._used:
                    raise SpecError(f"{self._at(field, name)}: no number is of '{name}'")
        for number, one in enumerate(self._table.left_out):
            if ("left_out", number) not in self._used:
                raise SpecError(f"{self._at('left_out', number)}: no number is left: {one.reason}")


def _params(row: Reported) -> dict[str, str]:
    return {key: text for key, text in row.attack_params.items() if key not in _STRUCTURAL}


def _fitting(
    row: Reported, request: Request, model: str | None, attack: str, defense: str
) -> Iterator[Cell]:
    """The cell of a run that a number is of, if the run has it."""
    budget = row.queries or request.queries
    radii = [eps for eps in _radii(request) if row.eps is None or np.isclose(eps, row.eps, 1e-4)]
    right = row.metric == CLEAN or (
        row.norm in {None, request.norm}
        and (row.attack_params.get("targeted") == "true") == request.targeted
        and budget in request.checkpoints()
    )
    if row.metric == CLEAN:
        radii = radii[:1]  # it is the same at any
    if not right or len(radii) != 1 or model not in {None, request.model}:
        return
    dataset = DATASETS.choose(request.dataset).entry.name
    drops = _drops(row, request, DefenseChoice.parse(defense))
    for name, asked in _meeting(row, request, attack, defense):
        for drop in drops:
            yield Cell(dataset, model, asked, drop, name, request, radii[0], budget)


def _radii(request: Request) -> Sequence[float]:
    usual = DATASETS.choose(request.dataset).entry.facts.eps.get(request.norm)
    return request.eps or ([usual] if usual else [])


def _drops(row: Reported, request: Request, defense: DefenseChoice) -> Sequence[float | None]:
    """The drop that fits, none if several do; a fixed strength has no drop."""
    if not request.match_drop or defense.fixed or not defense.knob:
        return [None]
    fitting = [drop for drop in request.match_drop if row.matched_drop in {None, drop}]
    return fitting if len(fitting) == 1 else []


def _meeting(
    row: Reported, request: Request, attack: str, defense: str
) -> Iterator[tuple[str, str]]:
    """Attack and defense as tables name them, if they meet; any attack if none is given."""
    bare, wanted = str(undefended()), str(DefenseChoice.parse(defense))
    for text, other in itertools.product(request.attackers(), {bare, *request.opponents()}):
        meet = other == bare or request.meets(text, other)
        if not meet or request.excluded(text, other) or wanted != str(DefenseChoice.parse(other)):
            continue
        if not attack:
            yield "", wanted
        elif str(ATTACKS.choose(text)) == str(ATTACKS.choose(attack)):
            for one in attack_choices(text, request):
                if str(one.values["eot"]) == row.attack_params.get("eot", str(one.values["eot"])):
                    yield str(one), wanted
