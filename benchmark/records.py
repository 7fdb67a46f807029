"""The rows of every table; `python -m benchmark.records` documents their columns."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any


def _column(doc: str) -> Any:
    return field(metadata={"doc": doc})


@dataclass(frozen=True)
class ImageRow:
    """`images.parquet`: one row for each image of each shard."""

    shard: str = _column("key of the shard, as in shards.csv")
    image: int = _column("position of the image in the data set")
    label: int = _column("true label")
    clean_draws: int = _column("clean answers asked for, uncounted")
    clean_correct: int = _column("clean answers that were right")
    attacked: bool = _column("a majority of the clean answers was right, so it was attacked")
    queries: int = _column("counted queries spent")
    first_hit: int | None = _column("number of the first query that was a hit (S1)")
    broken_at: int | None = _column("number of the query whose hit was verified (S2)")
    distance: float | None = _column("distance of the image that broke it, pixel units")
    expected_broken: list[bool] = _column("for each budget: the mean answer is wrong (S3)")


@dataclass(frozen=True)
class ShardRow:
    """`shards.csv`: one row for each shard, with what is needed to run it again."""

    shard: str = _column("key: hash of everything that can change the result")
    cell: str = _column("key of the cell it belongs to")
    dataset: str = _column("data set")
    dataset_fingerprint: str = _column("hash of its content")
    model: str = _column("victim")
    model_fingerprint: str = _column("hash of its weights")
    defense: str = _column("defense with the parameters that differ from the default")
    attack: str = _column("attack with the parameters that differ from the default")
    norm: str = _column("norm of the threat")
    eps: float = _column("radius in pixel units of the [0, 1] range")
    budgets: str = _column("checkpoints, joined by '+'; the last is the budget")
    protocol: str = _column("scores, probes, votes and draws")
    parameters: str = _column("every parameter and version of all four entries, JSON")
    seed: int = _column("seed of every random stream")
    images: int = _column("images of the cell")
    first: int = _column("position of the shard's first image in split eval")
    count: int = _column("images of the shard")
    counted_queries: int = _column("queries charged to the attack")
    verification_queries: int = _column("uncounted answers asked to verify hits")
    audit_queries: int = _column("uncounted answers asked for clean accuracy and S3")
    batch: int = _column("images in one forward pass, at most")
    device: str = _column("device: cpu, or the name of the GPU")
    commit: str | None = _column("revision of querybench, if run from a git checkout")
    dirty: bool | None = _column("the checkout had uncommitted changes")
    versions: str = _column("versions of Python and of the packages that compute")


@dataclass(frozen=True)
class CellRow:
    """`cells.csv`: one row for each complete cell and budget."""

    dataset: str = _column("data set")
    model: str = _column("victim")
    defense: str = _column("defense with the parameters that differ from the default")
    attack: str = _column("attack with the parameters that differ from the default")
    norm: str = _column("norm of the threat")
    eps: float = _column("radius in pixel units of the [0, 1] range")
    seed: int = _column("seed of every random stream")
    budget: int = _column("queries allowed for each image")
    images: int = _column("images evaluated: the denominator of every fraction below")
    clean_accuracy: float = _column("mean share of right answers on clean images, defended")
    clean_accuracy_low: float = _column("95 % Wilson interval over images, lower end")
    clean_accuracy_high: float = _column("upper end")
    robust_accuracy: float = _column("headline, S2: right on a majority of clean answers, and no "
                                     "hit verified by a majority of fresh answers")
    robust_accuracy_low: float = _column("95 % Wilson interval over images, lower end")
    robust_accuracy_high: float = _column("upper end")
    robust_accuracy_first_hit: float = _column("S1: as above, but a first hit breaks an image")
    robust_accuracy_first_hit_low: float = _column("95 % Wilson interval, lower end")
    robust_accuracy_first_hit_high: float = _column("upper end")
    robust_accuracy_expected: float = _column("S3: as above, but an image is broken if the mean of "
                                              "fresh answers on the best image found is wrong")
    robust_accuracy_expected_low: float = _column("95 % Wilson interval, lower end")
    robust_accuracy_expected_high: float = _column("upper end")
    queries_mean: float | None = _column("mean queries to the verified hit, over broken images")
    queries_median: float | None = _column("median of the same; empty if none was broken")
    queries_median_censored: float | None = _column("median over all attacked images, unbroken "
                                                    "ones as infinite; empty if infinite")
    queries_used: int = _column("queries charged in the whole cell up to its last budget")
    verification_queries: int = _column("uncounted answers that verified hits, whole cell")
    cell: str = _column("key of the cell")


@dataclass(frozen=True)
class TimingRow:
    """`timings.csv`: when and how fast; the one table that differs between equal runs."""

    shard: str = _column("key of the shard")
    started: str = _column("start, UTC")
    seconds: float = _column("wall time")
    queries_per_second: float = _column("counted and uncounted queries by wall time")


TABLES = {
    "cells.csv": CellRow,
    "shards.csv": ShardRow,
    "images.parquet": ImageRow,
    "timings.csv": TimingRow,
}


def names(row: type[Any]) -> list[str]:
    """Names of a table's columns, in order."""
    return [column.name for column in fields(row)]


def document() -> str:
    """Describe every table and column in Markdown."""
    lines = [_HEAD]
    for row in TABLES.values():
        lines += [f"\n## {row.__doc__}\n", "| column | type | meaning |", "|---|---|---|"]
        lines += [_line(column) for column in fields(row)]
    return "\n".join(lines) + "\n"


def _line(column: Field[Any]) -> str:
    kind = str(column.type).replace(" | None", ", may be empty")
    return f"| `{column.name}` | {kind} | {column.metadata['doc']} |"


_HEAD = """<!-- Generated by `python -m benchmark.records`; do not edit. -->
# Results

`reference/` holds committed tables that leaderboards and the regression of reported numbers read.
Everything else here is a user's own run and is ignored by git: `bench run` writes to `local/`
unless `--out` says otherwise. A folder of results holds `shards/` (one JSON file for each finished
shard, the only source of the tables), `failures/` (tracebacks of shards that failed) and the
tables below, which are rebuilt from the shards after every run. Rows are sorted, fractions are
rounded to six digits, and an empty field means that there is no such number."""


if __name__ == "__main__":
    Path("results/README.md").write_text(document(), encoding="utf-8")
