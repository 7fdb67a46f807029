"""Field `reported` of a suite: a table of a paper, and our name for each of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from benchmark.catalogue import ATTACKS, MODELS
from benchmark.errors import SpecError, suggestion
from benchmark.located import Located
from benchmark.params import reason
from benchmark.reported import Reported, papers, reported, written
from benchmark.stack import DefenseChoice
from benchmark.suites import look_up

FIELD = "reported"


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Names = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]


class LeftOut(BaseModel):
    """Numbers of a table that a suite does not measure: all that have these properties."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    defense: str | None = None
    attack: str | None = None
    metric: str | None = None
    reason: Annotated[str, Field(min_length=1)]

    def covers(self, row: Reported) -> bool:
        """Tell whether a number is left out; names may stand with or without parameters."""
        return all(
            mine is None or mine in texts
            for mine, texts in (
                (self.model, {row.model}),
                (self.defense, {row.defense, written(row.defense, row.defense_params)}),
                (self.attack, {row.attack, written(row.attack, row.attack_params)}),
                (self.metric, {row.metric}),
            )
        )


class Table(BaseModel):
    """A table, and our name for each of its parts.

    Attributes:
        paper: Key of the paper.
        table: Table, as its file names it.
        dataset: The half of the table that the suite is of.
        victims: Our victim for a reported one; without any, every reported one is compared with
            every measured one.
        attacks: Our attack for a reported one, by name, or as `name[key=value;...]` where the
            table has several; two where runs of different norms have different ones. Whether
            it is targeted or repeated (eot) is no part of the name.
        defenses: Our defense for a reported one, likewise; a drop is no part of the name.
        left_out: What of the table is not measured, with reasons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: str
    table: str
    dataset: str
    victims: dict[str, _Names] = {}
    attacks: dict[str, _Names] = {}
    defenses: dict[str, _Names]
    left_out: tuple[LeftOut, ...] = ()

    def rows(self) -> list[Reported]:
        """Every number of the table's half."""
        mine = (self.table, self.dataset)
        return [row for row in reported(self.paper) if (row.table, row.dataset) == mine]


def read_table(source: Located) -> Table:
    """Check the field of a suite that has it.

    Raises:
        SpecError: If the field is wrong, with file and line.
        RegistryError: If it names an unknown attack, defense or victim, likewise.
    """
    try:
        table = Table.model_validate(source.data[FIELD])
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, (FIELD, *first["loc"])))
        place = source.at(FIELD, *first["loc"])
        raise SpecError(f"{place}: {name} is not allowed: {reason(first)}") from None
    if table.paper not in papers():
        place, known = source.at(FIELD, "paper"), suggestion(table.paper, papers())
        raise SpecError(f"{place}: unknown paper '{table.paper}'. {known}")
    if not table.rows():
        tables = suggestion(table.table, {row.table for row in reported(table.paper)})
        what = f"'{table.paper}' reports nothing of {table.dataset} in '{table.table}'"
        raise SpecError(f"{source.at(FIELD, 'table')}: {what}. {tables}")
    checks: tuple[tuple[str, Callable[[str], object]], ...] = (
        ("victims", MODELS.choose),
        ("attacks", ATTACKS.choose),
        ("defenses", DefenseChoice.parse),
    )
    for field, check in checks:
        for name, texts in getattr(table, field).items():
            for text in texts:
                look_up(check, text, source, (FIELD, field, name))
    return table
