"""Ranks of defenses: what a leaderboard says, before it is laid out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmark.errors import StoreError
from benchmark.families import KEEPS_LABEL, families, lacking
from benchmark.measured import WORST_CASE
from benchmark.pooling import pooled
from benchmark.reference import Reference
from benchmark.stack import undefended
from benchmark.statistics import SIGNIFICANT

_SETTING = ["dataset", "model", "norm", "eps", "aim", "images", "protocol", "budgets"]
_ONE = ["seed", "budget"]  # what tells the rows of a cell from those of its repetitions
Row = Any  # of a table


@dataclass(frozen=True)
class Standing:
    """One defense of one board.

    Attributes:
        defense: Its name.
        points: Rows of `cells.csv` of each attack, by budget, over all its seeds (`pooled`).
        worst: The same of the worst case; empty if attacks are missing.
        lacks: Attacks that it was not run against, though others were.
        rank: One plus the number of defenses that are significantly better; None if unknown.
    """

    defense: str
    points: dict[str, list[Row]]
    worst: list[Row]
    lacks: list[str]
    rank: int | None

    @property
    def last(self) -> Row:
        """A row at the last budget; of the worst case, if it is known."""
        return (self.worst or next(iter(self.points.values())))[-1]


@dataclass(frozen=True)
class Board:
    """Defenses that are compared with each other, the best first.

    Attributes:
        drop: Points of clean accuracy they were set to cost; None for strengths as written.
        attacks: Names of all attacks, without the worst case.
        standings: One for each defense.
    """

    drop: str | None
    attacks: list[str]
    standings: list[Standing]


@dataclass(frozen=True)
class Setting:
    """All boards of one data set, victim, threat and protocol.

    Attributes:
        about: Columns of `cells.csv` that all rows share, and `seeds`, joined by '+'.
        budgets: Checkpoints, ascending; the last is the budget.
        boards: One for each matched drop.
    """

    about: dict[str, Any]
    budgets: list[int]
    boards: list[Board]


def standings(reference: Reference) -> list[Setting]:
    """Rank the defenses of every setting of a reference folder, in a stable order.

    Raises:
        StoreError: If the tables contradict each other.
    """
    groups = reference.cells.groupby(_SETTING, dropna=False)
    return [
        _setting(dict(zip(_SETTING, key, strict=True)), cells, reference) for key, cells in groups
    ]


def _setting(about: dict[str, Any], cells: pd.DataFrame, reference: Reference) -> Setting:
    about["seeds"] = "+".join(map(str, sorted(set(cells["seed"]))))
    points = _points(cells, reference)
    drops = {name: _drops(some, reference) for name, some in points.items()}
    free = {str(undefended()), *(name for name in points if _keeps_label(name, about, reference))}
    boards = [
        _board(drop, {name: points[name] for name in some}, reference)
        for drop, some in families(drops, free).items()
    ]
    return Setting(about, [int(mark) for mark in about["budgets"].split("+")], boards)


def _points(cells: pd.DataFrame, reference: Reference) -> dict[str, dict[str, list[Row]]]:
    """Rows by defense and attack, in the order of budgets."""
    found: dict[str, dict[str, list[Row]]] = {}
    for (defense, attack), some in cells.groupby(["defense", "attack"]):
        rows = some.sort_values("run_to_budget")
        if attack == WORST_CASE:  # over all attacks, not over those that some seed was run against
            rows = rows[rows["members"] == max(rows["members"], key=lambda text: text.count("+"))]
        if rows.duplicated([*_ONE, "run_to_budget"]).any():
            raise StoreError(
                f"cells.csv of reference '{reference.name}' has several cells of {defense} x "
                f"{attack} in one setting: keep them in folders of their own"
            )
        # Run at eps and to the budget, the same images break.
        merged = pooled(rows.drop_duplicates(_ONE, keep="last"), ["budget"]).sort_values("budget")
        found.setdefault(str(defense), {})[str(attack)] = list(merged.itertuples(index=False))
    return found


def _drops(points: dict[str, list[Row]], reference: Reference) -> list[str]:
    """Points of clean accuracy that a defense was set to cost, as `calibrations.csv` says."""
    row = next(iter(points.values()))[0]
    if reference.calibrations is not None:
        all_ = reference.calibrations
        mine = all_[all_["matched"] == row.defense]
        mine = mine[(mine["dataset"] == row.dataset) & (mine["model"] == row.model)]
        return sorted({f"{target:g}" for target in mine["target"]})
    return [] if pd.isna(row.matched_drop) else str(row.matched_drop).split("+")


def _keeps_label(name: str, about: dict[str, Any], reference: Reference) -> bool:
    traits = about_defense(name, about, reference).get("traits", "")
    return KEEPS_LABEL in str(traits).split(", ")


def about_defense(name: str, about: dict[str, Any], reference: Reference) -> dict[str, Any]:
    """The row of `defenses.csv` with the most images and the first seed; empty if there is none."""
    if reference.defenses is None:
        return {}
    rows = reference.defenses
    for column in ("dataset", "model"):
        rows = rows[rows[column] == about[column]]
    rows = rows[rows["defense"] == name].sort_values(["seed", "look"], ascending=False)
    rows = rows.sort_values("images", kind="stable")
    return {str(key): value for key, value in rows.iloc[-1].items()} if len(rows) else {}


def _board(
    drop: str | None, points: dict[str, dict[str, list[Row]]], reference: Reference
) -> Board:
    attacked = {name: [a for a in some if a != WORST_CASE] for name, some in points.items()}
    every = sorted({attack for some in attacked.values() for attack in some}, key=_natural)
    lacks = {name: lacking(some, every) for name, some in attacked.items()}
    worst = {
        name: some.get(WORST_CASE) or some[attacked[name][0]]
        for name, some in points.items()
        if not lacks[name]
    }
    ranks = _ranks(worst, drop, WORST_CASE if len(every) > 1 else every[0], reference)
    found = [
        Standing(
            name,
            {attack: points[name][attack] for attack in attacked[name]},
            worst.get(name, []),
            lacks[name],
            ranks.get(name),
        )
        for name in points
    ]
    return Board(drop, every, sorted(found, key=_order))


def _order(one: Standing) -> tuple[Any, ...]:
    share = one.worst[-1].robust_accuracy if one.worst else -1.0
    return one.rank is None, one.rank or 0, -share, one.defense


def _natural(name: str) -> list[Any]:
    """Sort key under which eot=5 comes before eot=10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _ranks(
    worst: dict[str, list[Row]], drop: str | None, attack: str, reference: Reference
) -> dict[str, int]:
    """One plus the number of defenses significantly better; empty without comparisons."""
    seeds_ = [set(some[-1].seeds.split("+")) for some in worst.values()]
    if reference.comparisons is None or (seeds_ and not set.intersection(*seeds_)):
        return {}
    rows = reference.comparisons
    rows = rows[(rows["attack"] == attack) & (rows["matched_drop"].fillna("") == (drop or ""))]
    pairs = {
        keys: row
        for row in rows.itertuples()
        for keys in zip(str(row.cell_a).split("+"), str(row.cell_b).split("+"), strict=True)
    }
    ranks = dict.fromkeys(worst, 1)
    for loser in _losers({name: some[-1].cell for name, some in worst.items()}, pairs, reference):
        ranks[loser] += 1
    return ranks


def _losers(
    cells: dict[str, str], pairs: dict[tuple[str, str], Row], reference: Reference
) -> Iterator[str]:
    """Name a defense once for each that is significantly better."""
    ordered = sorted(cells)
    for place, one in enumerate(ordered):
        for other in ordered[place + 1 :]:
            keys = itertools.product(cells[one].split("+"), cells[other].split("+"))
            row = next((pairs[both] for both in keys if both in pairs), None)
            if row is None:
                raise StoreError(
                    f"comparisons.csv of reference '{reference.name}' does not compare {one} "
                    f"with {other}: it is not of the same run as cells.csv"
                )
            if row.p_holm < SIGNIFICANT and row.only_a != row.only_b:
                yield one if row.only_a < row.only_b else other


def seeds(setting: Setting) -> str:
    """Seeds in words."""
    some = setting.about["seeds"]
    return f"{'seeds' if '+' in some else 'seed'} {some.replace('+', ', ')}"


def threat(setting: Setting) -> str:
    """Norm, radius, aim and budget in words."""
    about, pixels = setting.about, 255 * setting.about["eps"]
    whole = about["norm"] == "linf" and abs(pixels - round(pixels)) < 1e-6
    eps = f"{round(pixels)}/255" if whole else f"{about['eps']:.4g}"
    return f"{about['norm']} {eps}, {about['aim']}, {setting.budgets[-1]} queries"


def flags_of(
    names: Collection[str], setting: Setting, reference: Reference
) -> dict[str, list[tuple[str, str]]]:
    """Flags of defenses that are about this setting or about no attack, with their details."""
    if reference.flags is None:
        return {}
    about, rows = setting.about, reference.flags
    rows = rows[(rows["dataset"] == about["dataset"]) & (rows["model"] == about["model"])]
    end = f", {about['norm']} {about['eps']:.4g}, {setting.budgets[-1]} queries"
    found: dict[str, list[tuple[str, str]]] = {}
    for row in rows.itertuples():
        where = "" if pd.isna(row.setting) else str(row.setting)
        if row.defense in names and (not where or where.endswith(end)):
            detail = f"{where.removesuffix(end)}: {row.detail}" if where else str(row.detail)
            found.setdefault(str(row.defense), []).append((str(row.flag), detail))
    return found
