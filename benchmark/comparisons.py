"""Defenses against each other on the same images: the rows of `comparisons.csv`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmark.about import About
from benchmark.families import families, lacking
from benchmark.measured import WORST_CASE, Measured, worst_case
from benchmark.stack import undefended
from benchmark.statistics import Ints, holm, sign_flips

_ABOUT = ("dataset", "model", "norm", "eps", "aim", "protocol", "images")
_SETTING = (*_ABOUT, "budgets")

Row = dict[str, Any]
Attacked = Mapping[str, Measured]  # what was measured of one defense with one seed, by attack
Seeds = Mapping[int, Measured]  # what was measured of one defense under one attack, by seed


def compare(defenses: Iterable[Attacked], about: About) -> list[Row]:
    """Compare all pairs of defenses that were measured in the same way.

    Args:
        defenses: What was measured of each defense in each setting and with each seed, by attack.
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
            mine = [one[attack] for one in family if attack in one]
            yield from _pairs(_by_seed(mine), attack, drop)
        if len(every) > 1:
            whole = [worst(one) for one in family if not lacking(one, every)]
            yield from _pairs(_by_seed(whole), WORST_CASE, drop)


def _by_seed(cells: Iterable[Measured]) -> list[Seeds]:
    """Put the seeds of a defense together; only seeds that all defenses have."""
    found: dict[tuple[str, str], dict[int, Measured]] = {}
    for one in sorted(cells, key=lambda one: (*_defense(one.cell), one.cell["seed"])):
        found.setdefault(_defense(one.cell), {})[one.cell["seed"]] = one
    common = set.intersection(*map(set, found.values())) if found else set()
    return [{s: one for s, one in seeds.items() if s in common} for seeds in found.values()]


def _defense(cell: Mapping[str, Any]) -> tuple[str, str]:
    """Name and settings: a name alone does not tell in whose company its images were."""
    record = json.loads(cell["parameters"]).get("defense")
    return cell["defense"], json.dumps(record, sort_keys=True)


def worst(one: Attacked) -> Measured:
    """The worst case over the attacks on one defense; the attack itself if there is only one."""
    return worst_case(list(one.values())) if len(one) > 1 else next(iter(one.values()))


def _pairs(defenses: Sequence[Seeds], attack: str, drop: str | None) -> Iterator[Row]:
    """Compare all pairs of defenses under one attack: one family of tests."""
    if len(defenses) < 2 or not defenses[0]:
        return
    kept = [_kept(seeds) for seeds in defenses]
    pairs = list(itertools.combinations(range(len(defenses)), 2))
    differences = [kept[a] - kept[b] for a, b in pairs]
    p = np.array([sign_flips(one) for one in differences])
    corrected = holm(p)
    for place, (a, b) in enumerate(pairs):
        one, other = (next(iter(defenses[which].values())).cell for which in (a, b))
        yield {
            **{name: one[name] for name in _ABOUT},
            "seeds": "+".join(map(str, defenses[a])),
            "budget": _budget(one),
            "matched_drop": drop,
            "attack": attack,
            "defense_a": one["defense"],
            "defense_b": other["defense"],
            "only_a": int(differences[place].clip(min=0).sum()),
            "only_b": int((-differences[place]).clip(min=0).sum()),
            "p": _short(p[place]),
            "p_holm": _short(corrected[place]),
            "cell_a": _keys(defenses[a]),
            "cell_b": _keys(defenses[b]),
        }


def _kept(seeds: Seeds) -> Ints:
    """With how many seeds each image stays right, (n,)."""
    right = [one.attacked & (one.broken_at > _budget(one.cell)) for one in seeds.values()]
    return np.asarray(np.stack(right).sum(0), dtype=np.int64)


def _budget(cell: Mapping[str, Any]) -> int:
    return int(cell["budgets"].split("+")[-1])


def _keys(seeds: Seeds) -> str:
    return "+".join(one.cell["cell"] for one in seeds.values())


def _short(p: float) -> float:
    return float(f"{p:.4g}")
