"""Defenses against each other on the same images: the rows of `comparisons.csv`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.about import About
from benchmark.families import families, lacking
from benchmark.measured import WORST_CASE, Measured, worst_case
from benchmark.stack import undefended
from benchmark.statistics import holm, mcnemar

_ABOUT = ("dataset", "model", "norm", "eps", "aim", "protocol", "seed", "images")
_SETTING = (*_ABOUT, "budgets")

Row = dict[str, Any]
Attacked = Mapping[str, Measured]  # what was measured of one defense, by attack


def compare(defenses: Iterable[Attacked], about: About) -> list[Row]:
    """Compare all pairs of defenses that were measured in the same way.

    Args:
        defenses: What was measured of each defense in each setting, by attack.
        about: What is known of the defenses.

    Returns:
        Rows of `comparisons.csv`.
    """
    settings: dict[tuple[Any, ...], list[Attacked]] = {}
    for one in defenses:
        settings.setdefault(_setting(_cell(one)), []).append(one)
    return [row for some in settings.values() for row in _compare(some, about)]


def _setting(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    entries = {
        kind: record
        for kind, record in json.loads(cell["parameters"]).items()
        if kind not in {"attack", "defense"}
    }
    return *(cell[name] for name in _SETTING), json.dumps(entries, sort_keys=True)


def _cell(one: Attacked) -> Mapping[str, Any]:
    return next(iter(one.values())).cell


def _compare(defenses: Sequence[Attacked], about: About) -> Iterator[Row]:
    """Compare the defenses of one setting, drop by drop and attack by attack."""
    cells = {str(_cell(one)["defense"]): _cell(one) for one in defenses}
    drops = {name: about.drops(cell) for name, cell in cells.items()}
    free = {str(undefended()), *(name for name, cell in cells.items() if about.keeps_label(cell))}
    for drop, names in families(drops, free).items():
        family = [one for one in defenses if _cell(one)["defense"] in names]
        every = {attack for one in family for attack in one}
        for attack in sorted(every):
            yield from _pairs([one[attack] for one in family if attack in one], attack, drop)
        if len(every) > 1:
            whole = [one for one in family if not lacking(one, every)]
            yield from _pairs([worst(one) for one in whole], WORST_CASE, drop)


def worst(one: Attacked) -> Measured:
    """The worst case over the attacks on one defense; the attack itself if there is only one."""
    return worst_case(list(one.values())) if len(one) > 1 else next(iter(one.values()))


def _pairs(cells: Sequence[Measured], attack: str, drop: str | None) -> Iterator[Row]:
    """Compare all pairs of cells that differ in their defense only: one family of tests."""
    if len(cells) < 2:
        return
    cells = sorted(cells, key=lambda one: (one.cell["defense"], one.cell["cell"]))
    budget = int(cells[0].cell["budgets"].split("+")[-1])
    first, second = np.triu_indices(len(cells), 1)
    ahead = _ahead(np.stack([one.attacked & (one.broken_at > budget) for one in cells]))
    only_a, only_b = ahead[first, second], ahead[second, first]
    p = mcnemar(only_a, only_b)
    corrected = holm(p)
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        one, other = cells[a].cell, cells[b].cell
        yield {
            **{name: one[name] for name in _ABOUT},
            "budget": budget,
            "matched_drop": drop,
            "attack": attack,
            "defense_a": one["defense"],
            "defense_b": other["defense"],
            "only_a": int(only_a[place]),
            "only_b": int(only_b[place]),
            "p": _short(p[place]),
            "p_holm": _short(corrected[place]),
            "cell_a": one["cell"],
            "cell_b": other["cell"],
        }


def _ahead(right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Count for each two rows of (m, n) the columns that hold in the first only, (m, m)."""
    held = right.astype(np.float64)
    return held @ (1.0 - held).T


def _short(p: float) -> float:
    return float(f"{p:.4g}")
