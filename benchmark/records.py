"""The rows of every table; `python -m benchmark.records` documents their columns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from benchmark.defense_records import (
    CalibrationRow,
    ComparisonRow,
    DefenseRow,
    DefenseTimingRow,
    FlagRow,
)
from benchmark.stealing.rows import StealRow


@dataclass(frozen=True)
class ImageRow:
    """`images.parquet`: one row for each image of each shard."""

    shard: Annotated[str, "key of the shard, as in shards.csv"]
    image: Annotated[int, "position of the image in the data set"]
    label: Annotated[int, "true label"]
    target: Annotated[int | None, "label aimed at, empty if untargeted or not attacked"]
    clean_draws: Annotated[int, "clean answers asked for, uncounted"]
    clean_correct: Annotated[int, "clean answers that were right"]
    attacked: Annotated[bool, "a majority of the clean answers was right, so it was attacked"]
    queries: Annotated[int, "counted queries spent"]
    first_hit: Annotated[int | None, "number of the first query that was a hit (S1)"]
    broken_at: Annotated[int | None, "number of the query whose hit was verified (S2)"]
    distance: Annotated[float | None, "distance of the image that broke it, pixel units"]
    expected_broken: Annotated[list[bool], "for each budget: the mean answer is wrong (S3)"]
    wrong_answers: Annotated[
        list[int] | None,
        "for each budget: how many of the answers that S3 averages were adversarial; empty if not "
        "attacked",
    ]
    trace_queries: Annotated[
        list[int] | None,
        "number of each query whose hit was nearer than all before, at any distance; empty "
        "unless the attack looks for the nearest",
    ]
    trace_distances: Annotated[list[float] | None, "their distances, pixel units"]


@dataclass(frozen=True)
class ShardRow:
    """`shards.csv`: one row for each shard, with what is needed to run it again."""

    shard: Annotated[str, "key: hash of everything that can change the result"]
    cell: Annotated[str, "key of the cell it belongs to"]
    dataset: Annotated[str, "data set"]
    dataset_fingerprint: Annotated[str, "hash of its content"]
    model: Annotated[str, "victim"]
    model_fingerprint: Annotated[str, "hash of its weights"]
    defense: Annotated[str, "defense with the parameters that differ from the default"]
    attack: Annotated[str, "attack with the parameters that differ from the default"]
    norm: Annotated[str, "norm of the threat"]
    eps: Annotated[float, "radius in pixel units of the [0, 1] range"]
    aim: Annotated[str, "untargeted, or targeted: one label, drawn for each image"]
    budgets: Annotated[str, "checkpoints, joined by '+'; the last is the budget"]
    protocol: Annotated[str, "scores, probes, votes and draws, and whether a CPU or a GPU computed"]
    parameters: Annotated[str, "every parameter and version of all four entries, JSON"]
    seed: Annotated[int, "seed of every random stream"]
    images: Annotated[int, "images of the cell"]
    first: Annotated[int, "position of the shard's first image in split eval"]
    count: Annotated[int, "images of the shard"]
    run_to_budget: Annotated[
        bool, "broken images were attacked on; such shards that differ in eps alone share a run"
    ]
    counted_queries: Annotated[
        int, "queries charged to the attack; of the whole run if radii share it"
    ]
    verification_queries: Annotated[int, "uncounted answers asked to verify hits"]
    audit_queries: Annotated[int, "uncounted answers asked for clean accuracy, S3 and S4"]
    flagged_queries: Annotated[int, "counted queries that the defense took for an attack's"]
    batch: Annotated[int, "images in one forward pass, unless the defense is coupled"]
    device: Annotated[str, "device: cpu, or the name of the GPU"]
    commit: Annotated[str | None, "revision of querybench, if run from a git checkout"]
    dirty: Annotated[bool | None, "the checkout had uncommitted changes"]
    versions: Annotated[
        str, "versions of Python and of the packages that compute, and the kind of processor"
    ]


@dataclass(frozen=True)
class CellRow:
    """`cells.csv`: one row for each complete cell and budget."""

    dataset: Annotated[str, "data set"]
    model: Annotated[str, "victim"]
    defense: Annotated[str, "defense with the parameters that differ from the default"]
    attack: Annotated[
        str,
        "attack with the parameters that differ from the default; worst-case: an image is broken "
        "as soon as any of the attacks of this setting breaks it",
    ]
    norm: Annotated[str, "norm of the threat"]
    eps: Annotated[float, "radius in pixel units of the [0, 1] range"]
    aim: Annotated[str, "untargeted, or targeted: one label, drawn for each image"]
    protocol: Annotated[str, "as in shards.csv"]
    budgets: Annotated[str, "checkpoints, joined by '+'; the last is the budget"]
    seed: Annotated[int, "seed of every random stream"]
    budget: Annotated[int, "queries allowed for each image"]
    images: Annotated[int, "images evaluated: the denominator of every fraction below"]
    clean_accuracy: Annotated[float, "mean share of right answers on clean images, defended"]
    clean_accuracy_low: Annotated[float, "95 % Wilson interval over images, lower end"]
    clean_accuracy_high: Annotated[float, "upper end"]
    robust_accuracy: Annotated[
        float,
        "headline, S2: right on a majority of clean answers, and no "
        "hit verified by a majority of fresh answers (targeted: no answer is the target)",
    ]
    robust_accuracy_low: Annotated[float, "95 % Wilson interval over images, lower end"]
    robust_accuracy_high: Annotated[float, "upper end"]
    robust_accuracy_first_hit: Annotated[float, "S1: as above, but a first hit breaks an image"]
    robust_accuracy_first_hit_low: Annotated[float, "95 % Wilson interval, lower end"]
    robust_accuracy_first_hit_high: Annotated[float, "upper end"]
    robust_accuracy_expected: Annotated[
        float,
        "S3: as above, but an image is broken if the mean of "
        "fresh answers on the best image found is wrong",
    ]
    robust_accuracy_expected_low: Annotated[float, "95 % Wilson interval, lower end"]
    robust_accuracy_expected_high: Annotated[float, "upper end"]
    robust_accuracy_persistent_1: Annotated[
        float | None,
        "S4: as S3, but each image counts as much as fresh answers on it are right; empty with "
        "fewer than 10 draws",
    ]
    robust_accuracy_persistent_10: Annotated[
        float | None, "S4: the same where it is submitted ten times and all answers must be right"
    ]
    undecided: Annotated[
        float | None,
        "share of images whose fresh answers do not tell whether most are wrong: the 95 % Wilson "
        "interval holds one half; empty with fewer than 10 draws",
    ]
    queries_mean: Annotated[float | None, "mean queries to the verified hit, over broken images"]
    queries_median: Annotated[float | None, "median of the same; empty if none was broken"]
    queries_median_censored: Annotated[
        float | None,
        "median over all attacked images, unbroken ones as infinite; empty if infinite",
    ]
    distance_median: Annotated[
        float | None,
        "median over attacked images of the distance of the nearest hit so far (S1), pixel units; "
        "empty if infinite, or if the attack does not look for the nearest",
    ]
    run_to_budget: Annotated[
        bool, "broken images were attacked on; if not, their distance is that of the break"
    ]
    queries_used: Annotated[int, "queries charged in the whole cell up to its last budget"]
    verification_queries: Annotated[int, "uncounted answers that verified hits, whole cell"]
    flagged_queries: Annotated[int, "queries that the defense took for an attack's, whole cell"]
    members: Annotated[str | None, "attacks that worst-case is over, joined by '+'"]
    drop: Annotated[
        float | None,
        "clean accuracy lost against strength zero, as in defenses.csv",
    ]
    drop_error: Annotated[float | None, "its standard error over images"]
    matched_drop: Annotated[
        str | None,
        "points of clean accuracy its strength was set for; 'saturated': no strength costs as much",
    ]
    cell: Annotated[str, "key of the cell; of worst-case the hash of the keys of its members"]


@dataclass(frozen=True)
class TimingRow:
    """`timings.csv`: when and how fast; the one table that differs between equal runs."""

    shard: Annotated[str, "key of the shard"]
    started: Annotated[str, "start, UTC"]
    seconds: Annotated[float, "wall time"]
    queries_per_second: Annotated[float, "counted and uncounted queries by wall time"]


@dataclass(frozen=True)
class AcceptedRow:
    """`reference/accepted.csv`: one row for each time numbers were accepted, the newest last."""

    date: Annotated[str, "day, UTC"]
    reference: Annotated[str, "folder below results/reference"]
    commit: Annotated[str | None, "revisions that made the numbers, joined by '+'"]
    dirty: Annotated[bool | None, "a checkout had uncommitted changes"]
    same: Annotated[int, "cells whose numbers stayed"]
    moved: Annotated[int, "cells whose numbers moved"]
    added: Annotated[int, "cells that are new"]
    removed: Annotated[int, "cells that are gone"]
    why: Annotated[str, "reason"]


TABLES = {
    "cells.csv": CellRow,
    "shards.csv": ShardRow,
    "images.parquet": ImageRow,
    "timings.csv": TimingRow,
    "defenses.csv": DefenseRow,
    "calibrations.csv": CalibrationRow,
    "comparisons.csv": ComparisonRow,
    "flags.csv": FlagRow,
    "defense_timings.csv": DefenseTimingRow,
    "steals.csv": StealRow,
}


def names(row: type[Any]) -> list[str]:
    """Names of a table's columns, in order."""
    return [column.name for column in fields(row)]


def kinds(row: type[Any]) -> dict[str, str]:
    """Type of each column, for example "int" or "float, may be empty"."""
    return {name: _kind(hint.__origin__) for name, hint in _hints(row).items()}


def document() -> str:
    """Describe every table and column in Markdown."""
    lines = [_HEAD]
    for row in (*TABLES.values(), AcceptedRow):
        lines += [f"\n## {row.__doc__}\n", "| column | type | meaning |", "|---|---|---|"]
        types = kinds(row)
        lines += [
            f"| `{name}` | {types[name]} | {hint.__metadata__[0]} |"
            for name, hint in _hints(row).items()
        ]
    return "\n".join(lines) + "\n"


def _hints(row: type[Any]) -> dict[str, Any]:
    return get_type_hints(row, include_extras=True)


def _kind(hint: Any) -> str:
    options = [part for part in get_args(hint) if part is not type(None)]
    kind = options[0] if options and get_origin(hint) is not list else hint
    of = get_args(kind) if get_origin(kind) is list else ()
    name = f"list of {of[0].__name__}" if of else str(kind.__name__)
    return f"{name}, may be empty" if kind is not hint else name


_HEAD = """<!-- Generated by `python -m benchmark.records`; do not edit. -->
# Results

`reference/` holds committed tables that leaderboards and `bench regress` read.
Everything else here is a user's own run and is ignored by git: `bench run` writes to `local/`
unless `--out` says otherwise. A folder of results holds `shards/`, `looks/` and `calibrations/`
(one JSON file for each finished piece of work, the only source of the tables), `failures/`
(tracebacks of what failed) and the tables below, which are rebuilt from these files after every
run. Rows are sorted, fractions are rounded to six digits, and an empty field means that there is no
such number."""


if __name__ == "__main__":
    Path("results/README.md").write_text(document(), encoding="utf-8")
