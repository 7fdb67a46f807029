"""Findings that do not fit together; what to do about each stands in docs/protocol.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.catalogue import ATTACKS
from benchmark.errors import BenchError
from benchmark.measured import Bools, Measured
from benchmark.statistics import stats
from benchmark.types import Access

UNDECLARED_NOISE = "undeclared-noise"
LABEL_CHANGED = "label-changed"
BATCH_DEPENDENCE = "batch-dependence"
FLAT_SCORES = "flat-scores"
LABELS_BEAT_SCORES = "labels-beat-scores"
UNCONFIRMED_HITS = "unconfirmed-hits"

OF_VICTIM = "victim "  # before what a victim that runs elsewhere says of itself, among traits
LABELS_ALONE = OF_VICTIM + "shows label"

_UNSTEADY = {"randomised", "coupled", "stateful"}
_APART = 1e-3  # relative difference of answers that rounding does not explain
_FLAT = 0.5  # share of images whose scores do not move
_CHANCE = 0.01  # that a label attack is ahead of every score attack by luck
_HITS, _UNCONFIRMED = 10, 0.9

Flag = dict[str, Any]


def flags_of_look(look: Mapping[str, Any]) -> list[Flag]:
    """Compare what a defense declares with what its answers to clean images show.

    Args:
        look: Columns of `DefenseRow`.
    """
    declared = look["traits"].split(", ")
    if {OF_VICTIM + name for name in _UNSTEADY} & set(declared):
        return []  # whose doing a difference is cannot be told
    steady = not _UNSTEADY & set(declared)
    found = {
        UNDECLARED_NOISE: steady and look["repeat_difference"] > _APART,
        LABEL_CHANGED: "keeps_label" in declared and look["label_kept"] < 1.0,
        BATCH_DEPENDENCE: not {"coupled", "stateful"} & set(declared)
        and look["company_difference"] > _APART,
        FLAT_SCORES: not {"randomised", LABELS_ALONE} & set(declared) and look["flat"] >= _FLAT,
    }
    details = {
        UNDECLARED_NOISE: f"answers differ by {look['repeat_difference']:.2g} of their size",
        LABEL_CHANGED: f"label kept on {100 * look['label_kept']:.2f} % of clean images",
        BATCH_DEPENDENCE: f"asked alone, they differ by {look['company_difference']:.2g} of that",
        FLAT_SCORES: f"{100 * look['flat']:.0f} % of images have scores that a step of 1/255 "
        "in every pixel does not move",
    }
    return [_flag(look, "", name, details[name]) for name, holds in found.items() if holds]


def flags_of_attacks(cells: Sequence[Measured]) -> list[Flag]:
    """Compare the attacks of one setting.

    Args:
        cells: Cells that differ in their attack only.
    """
    last = max(int(mark) for mark in cells[0].cell["budgets"].split("+"))
    flags = []
    for one in cells:
        hit = one.attacked & (one.first_hit <= last)
        open_ = hit & ~(one.broken_at <= last)
        if hit.sum() >= _HITS and open_.sum() >= _UNCONFIRMED * hit.sum():
            detail = f"{open_.sum()} of {hit.sum()} images with a hit have none that was verified"
            flags.append(_flag(one.cell, _setting(one, last), UNCONFIRMED_HITS, detail))
    return flags + _labels_ahead(cells, last)


def _labels_ahead(cells: Sequence[Measured], budget: int) -> list[Flag]:
    """A label attack that breaks more than every score attack, image by image."""
    labels = [one for one in cells if _access(one) is Access.LABEL]
    scores = [one for one in cells if _access(one) in {Access.SCORES, Access.TOPK}]
    if not labels or not scores:
        return []
    best_label, best_score = (
        max(some, key=lambda one: int(_broken(one, budget).sum())) for some in (labels, scores)
    )
    first, second = _broken(best_label, budget), _broken(best_score, budget)
    ahead, behind = int((first & ~second).sum()), int((second & ~first).sum())
    if ahead <= behind or stats.binomtest(ahead, ahead + behind).pvalue >= _CHANCE:
        return []
    detail = (
        f"broken: {best_label.cell['attack']} {int(first.sum())}, {best_score.cell['attack']} "
        f"{int(second.sum())} of {len(first)} images"
    )
    return [_flag(best_label.cell, _setting(best_label, budget), LABELS_BEAT_SCORES, detail)]


def _broken(one: Measured, budget: int) -> Bools:
    broken: Bools = one.attacked & (one.broken_at <= budget)
    return broken


def _access(one: Measured) -> Access | None:
    """What the attack has to see; None of one that is not registered here."""
    try:
        return ATTACKS.facts(str(one.cell["attack"])).access
    except BenchError:
        return None


def _setting(one: Measured, budget: int) -> str:
    cell = one.cell
    return f"{cell['attack']}, {cell['norm']} {cell['eps']:.4g}, {budget} queries"


def _flag(about: Mapping[str, Any], setting: str, name: str, detail: str) -> Flag:
    names = {key: about[key] for key in ("dataset", "model", "defense")}
    return {**names, "setting": setting, "flag": name, "detail": detail}
