"""The rows of the tables that are about defenses rather than attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class DefenseRow:
    """`defenses.csv`: one row for each defense at one strength: what it does to clean images."""

    dataset: Annotated[str, "data set"]
    dataset_fingerprint: Annotated[str, "hash of its content"]
    model: Annotated[str, "victim"]
    model_fingerprint: Annotated[str, "hash of its weights"]
    defense: Annotated[str, "defense with the parameters that differ from the default"]
    matched_drop: Annotated[str | None, "as in cells.csv"]
    seed: Annotated[int, "seed of every random stream"]
    images: Annotated[int, "images looked at, the first of split eval"]
    draws: Annotated[int, "answers to each"]
    clean_accuracy: Annotated[float, "mean share of right answers"]
    drop: Annotated[
        float,
        "clean accuracy lost against strength zero (the bare victim; of a trained defense or a "
        "stack what it is without noise)",
    ]
    drop_error: Annotated[float | None, "its standard error over images, which are paired"]
    label_kept: Annotated[float, "share of answers with the bare victim's label"]
    logit_difference: Annotated[
        float | None,
        "mean l2 distance of one answer's logits to the bare ones; empty for log-probabilities",
    ]
    logit_difference_relative: Annotated[
        float, "the same over the norm of the bare logits, both without their mean over classes"
    ]
    confidence_difference: Annotated[float, "mean change of the largest probability"]
    probability_difference: Annotated[float, "mean l1 distance of the probabilities, 0 to 2"]
    calibration_error: Annotated[float, "expected calibration error, 15 bins"]
    calibration_error_undefended: Annotated[float, "the bare victim's"]
    parameters: Annotated[int, "numbers to store: weights of the victim and of added networks"]
    forward_equivalents: Annotated[
        float,
        "floating point operations of a query over the bare victim's, backward passes too; of a "
        "victim that runs elsewhere the images it is shown for a query",
    ]
    repeat_difference: Annotated[
        float, "largest change of an answer with other noise, relative to its largest logit"
    ]
    company_difference: Annotated[float, "the same, asked alone instead of in company"]
    flat: Annotated[
        float, "share of images whose probabilities do not move at all when all pixels do by 1/255"
    ]
    traits: Annotated[
        str,
        "what it declares: randomised, coupled, stateful, keeps_label; after `victim` what a "
        "victim that runs elsewhere says of itself",
    ]
    settings: Annotated[str, "every parameter and version of data, victim and defense, JSON"]
    device: Annotated[str, "device: cpu, or the name of the GPU"]
    commit: Annotated[str | None, "revision of querybench, if run from a git checkout"]
    dirty: Annotated[bool | None, "the checkout had uncommitted changes"]
    versions: Annotated[
        str, "versions of Python and of the packages that compute, and the kind of processor"
    ]
    look: Annotated[str, "key: hash of everything that can change the numbers"]


@dataclass(frozen=True)
class CalibrationRow:
    """`calibrations.csv`: one row for each defense and drop that was to be matched."""

    dataset: Annotated[str, "data set"]
    model: Annotated[str, "victim"]
    defense: Annotated[str, "defense as it was asked for"]
    target: Annotated[float, "points of clean accuracy it was to cost"]
    knob: Annotated[str, "parameter that was turned"]
    strength: Annotated[float, "value found"]
    matched: Annotated[str, "the defense at that strength, as the other tables name it"]
    saturated: Annotated[bool, "no strength costs as much; this one costs the most"]
    drop: Annotated[float, "drop on the images of the search, fraction"]
    drop_error: Annotated[float, "its standard error over images"]
    bend: Annotated[
        float, "standard errors by which the curve leaves the nearest monotone one, at most"
    ]
    split: Annotated[str, "split searched on: eval where the victim was trained on calibrate"]
    images: Annotated[int, "images searched on"]
    draws: Annotated[int, "answers of a randomised defense to each"]


@dataclass(frozen=True)
class FlagRow:
    """`flags.csv`: what does not fit together; docs/protocol.md says what to do about each."""

    dataset: Annotated[str, "data set"]
    model: Annotated[str, "victim"]
    defense: Annotated[str, "defense with the parameters that differ from the default"]
    setting: Annotated[str, "attack, norm, radius and budget, where it is about them"]
    flag: Annotated[str, "what was found, a name of docs/protocol.md"]
    detail: Annotated[str, "the numbers"]


@dataclass(frozen=True)
class DefenseTimingRow:
    """`defense_timings.csv`: time of a query; like `timings.csv` it differs between equal runs."""

    look: Annotated[
        str, "key of the row of defenses.csv; a victim that runs elsewhere is not timed"
    ]
    milliseconds_1: Annotated[float, "wall time of a query asked alone"]
    times_bare_1: Annotated[float, "the same over the bare victim's, timed right after"]
    milliseconds_64: Annotated[float, "wall time of a query, 64 asked together"]
    times_bare_64: Annotated[float, "the same over the bare victim's"]


@dataclass(frozen=True)
class ComparisonRow:
    """`comparisons.csv`: one row for each two defenses against one attack, image by image (S2)."""

    dataset: Annotated[str, "data set"]
    model: Annotated[str, "victim"]
    norm: Annotated[str, "norm of the threat"]
    eps: Annotated[float, "radius in pixel units of the [0, 1] range"]
    aim: Annotated[str, "untargeted, or targeted: one label, drawn for each image"]
    protocol: Annotated[str, "as in shards.csv"]
    images: Annotated[int, "images compared: all of the two cells, those misread when clean too"]
    seeds: Annotated[str, "seeds of every random stream that both were run with, joined by '+'"]
    budget: Annotated[int, "queries allowed for each image"]
    matched_drop: Annotated[
        str | None,
        "points of clean accuracy that both were set to cost (`none`, and what keeps every label, "
        "stand in for any); empty for strengths as written",
    ]
    attack: Annotated[str, "attack; worst-case: over all attacks of the setting, as in cells.csv"]
    defense_a: Annotated[str, "one defense"]
    defense_b: Annotated[str, "the other"]
    only_a: Annotated[int, "images that stay right behind the first only, times seeds"]
    only_b: Annotated[int, "the same behind the second"]
    p: Annotated[
        float,
        "exact two-sided paired permutation test of the number of seeds with which each image "
        "stays right, four digits; with one seed it is McNemar's",
    ]
    p_holm: Annotated[
        float,
        "the same after Holm's correction for all pairs of this setting, drop and attack",
    ]
    cell_a: Annotated[str, "key of the first's cell; of several seeds joined by '+'"]
    cell_b: Annotated[str, "key of the second's"]
