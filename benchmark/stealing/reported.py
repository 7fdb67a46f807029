"""What a paper reports of stealing, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError
from tabulate import tabulate

from benchmark.catalogue import STEALERS
from benchmark.errors import SpecError, StoreError, suggestion
from benchmark.params import reason
from benchmark.reported import CLEAN, Reported, papers, reported
from benchmark.reported_table import FIELD
from benchmark.stack import DefenseChoice
from benchmark.stealing.spec import Method
from benchmark.stealing.tables import NAME, read_steals
from benchmark.suites import STEAL, load_suite

_ENSEMBLE = "+"  # in the seeds of clones that are attacked together


class StealTable(BaseModel):
    """A table of a paper, as a suite names it.

    Attributes:
        paper: Key of the paper.
        table: Table, for example "Table 4".
        dataset: Data set as the paper's rows name it.
        attacks: Our stealing attack for each of theirs.
        defenses: Our defense for each of theirs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: str
    table: str
    dataset: str
    attacks: Mapping[str, str]
    defenses: Mapping[str, str]

    def rows(self) -> list[Reported]:
        """The numbers of the table."""
        return [
            row
            for row in reported(self.paper)
            if (row.table, row.dataset) == (self.table, self.dataset)
        ]


def read_steal_table(suite: str) -> StealTable:
    """Read which table a suite names.

    Raises:
        SpecError: If it names none, or a number of it has no counterpart.
    """
    source = load_suite(suite, STEAL)
    if FIELD not in source.data:
        raise SpecError(f"suite '{suite}' has no field '{FIELD}': nothing to compare with")
    try:
        table = StealTable.model_validate(source.data[FIELD])
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(f"{source.at(FIELD, *first['loc'])}: {reason(first)}") from None
    for row in table.rows():
        for kind, name in (("attacks", row.attack), ("defenses", row.defense)):
            known = getattr(table, kind)
            if name not in known and not (kind == "attacks" and row.metric == CLEAN):
                raise SpecError(f"{source.at(FIELD, kind)}: no '{name}'. {suggestion(name, known)}")
    if not table.rows():
        raise SpecError(f"{source.at(FIELD)}: '{table.paper}' reports no such table")
    return table


def steals_side_by_side(suite: str, folder: Path) -> str:
    """Lay out the numbers of a table beside what a folder of results measured.

    Measured is the share that stays right on images made by PGD on one clone, at the largest
    budget, the mean over seeds; of one victim, the suite's if it was measured.

    Raises:
        SpecError: If the suite names no table, or names it wrongly.
        StoreError: If the folder is not there, or its table cannot be read.
    """
    table = read_steal_table(suite)
    if not folder.is_dir():
        raise StoreError(f"'{folder}' is not a folder: `bench steal {suite}` makes results/local")
    path = folder / NAME
    measured = _alike(read_steals(path), suite) if path.is_file() else None
    lines = [_line(row, table, measured) for row in table.rows()]
    paper = papers()[table.paper]
    head = f"{suite}: {table.table} of {paper.title}. {paper.url}\n{table.dataset}; in %"
    notes = sorted({f"- {row.note}" for row in table.rows() if row.note})
    text = tabulate(lines, headers="keys", disable_numparse=True, stralign="right")
    return "\n\n".join([head, text, "\n".join(notes)])


def _line(row: Reported, table: StealTable, measured: pd.DataFrame | None) -> dict[str, Any]:
    defense = str(DefenseChoice.parse(table.defenses[row.defense]))
    attack = ""
    if row.metric != CLEAN:
        attack = str(STEALERS.choose(table.attacks[row.attack]))
    line: dict[str, Any] = {
        "victim": row.model,
        "defense": defense,
        "attack": attack or "clean",
        "queries": row.queries or "",
        "reported": f"{row.value:g}",
        "measured": "not measured",
        "of": "",
        "with": "",
    }
    mine = pd.DataFrame() if measured is None else _measured(measured, defense, attack)
    if len(mine):
        share = "robust_accuracy" if attack else "clean_accuracy"
        line |= {"measured": f"{100 * mine[share].mean():.1f}", "of": mine["model"].iloc[0]}
        line["with"] = int(mine["budget"].iloc[0]) if attack else ""
    return line


def _alike(rows: pd.DataFrame, suite: str) -> pd.DataFrame:
    """Rows of the suite's data set and of one victim, its own if there are any."""
    fields = load_suite(suite, STEAL).data
    rows = rows[rows["dataset"] == fields.get("dataset")]
    victims = sorted(rows["model"].unique(), key=lambda name: name != fields.get("model"))
    found: pd.DataFrame = rows[rows["model"].isin(victims[:1])]
    return found


def _measured(rows: pd.DataFrame, defense: str, attack: str) -> pd.DataFrame:
    mine = rows[rows["defense"] == defense]
    if attack:
        single = ~mine["seeds"].str.contains(_ENSEMBLE, regex=False)
        mine = mine[single & (mine["attack"] == attack) & (mine["method"] == Method.PGD)]
    found: pd.DataFrame = mine[mine["budget"] == mine["budget"].max()]
    return found
