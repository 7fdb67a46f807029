"""Runs the work that has no result yet, on as many processes as asked."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from benchmark.display import Progress
from benchmark.errors import BenchError, StoreError
from benchmark.machine import settle, threads_kept
from benchmark.outcome import content, look_content
from benchmark.spec import Look, Shard
from benchmark.store import LOOKS, SHARDS, Store
from benchmark.surroundings import Surroundings
from benchmark.tasks.attack import run_shards
from benchmark.tasks.look import run_look

Work = tuple[Shard, ...] | Look  # shards that are run together, or a look


@dataclass(frozen=True)
class Report:
    """How a piece of work ended.

    Attributes:
        shards: Shards run together.
        looks: Looks taken.
        images: Images it attacked.
        queries: Queries it asked, counted or not.
        error: Why it failed, one line; empty if it did not.
        fault: "" if it did not fail, "input" for a mistake in the input, "bug" for ours.
    """

    shards: int = 0
    looks: int = 0
    images: int = 0
    queries: int = 0
    error: str = ""
    fault: str = ""


def missing(
    shards: Sequence[Shard], looks: Sequence[Look], store: Store
) -> tuple[list[Shard], list[Look], list[str]]:
    """Tell which shards and looks have to be run, and which of their files are damaged."""
    damage: list[str] = []

    def absent(key: str, kind: str) -> bool:
        try:
            return store.read(key, kind) is None
        except StoreError as error:
            damage.append(f"{error}; it is run again")
            return True

    todo = [shard for shard in shards if absent(shard.key, SHARDS)]
    return todo, [look for look in looks if absent(look.key, LOOKS)], damage


def execute(
    work: Sequence[Work],
    surroundings: Surroundings,
    store: Store,
    jobs: int | None,
    progress: Progress,
) -> list[Report]:
    """Run work; each piece is stored by the process that ran it, as soon as it is finished.

    Args:
        work: What to run.
        surroundings: Where.
        store: Where results go.
        jobs: Processes of one thread; None means one a core, and one on a GPU.
        progress: Told of everything finished.

    Returns:
        The reports of what failed.

    Raises:
        StoreError: If results cannot be written.
    """
    if not work:
        return []
    usual = joblib.cpu_count() if torch.device(surroundings.device).type == "cpu" else 1
    processes = min(jobs or usual, len(work))
    runner = joblib.Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
    calls = [joblib.delayed(_run)(one, surroundings, store) for one in work]
    failed: list[Report] = []
    with threads_kept():
        try:
            for report in runner(calls):
                progress.advance(report.images, report.queries)
                if report.fault:
                    failed.append(report)
        except TerminatedWorkerError:
            raise StoreError(
                "a worker process was killed, perhaps for memory. What was finished is kept: "
                "the same command goes on, with fewer --jobs if it happens again."
            ) from None
    return failed


def _run(one: Work, surroundings: Surroundings, store: Store) -> Report:
    settle()
    if isinstance(one, Look):
        return _look(one, surroundings, store)
    return _attack(one, surroundings, store)


def _attack(shards: tuple[Shard, ...], surroundings: Surroundings, store: Store) -> Report:
    started = datetime.datetime.now(datetime.UTC)
    labels = [shard.label for shard in shards]
    try:
        results = run_shards(shards, surroundings)
    except Exception as error:  # noqa: BLE001 - a hole with its traceback; the run goes on
        return replace(_failed(labels, store, error), shards=len(shards))
    for result in results:
        store.write(result.shard.key, content(result, surroundings.device, started))
        store.forgive(result.shard.label)
    asked = sum(n for k, n in results[0].costs.items() if k.endswith("_queries"))
    images = sum(shard.count for shard in shards)
    return Report(shards=len(shards), images=images, queries=asked)


def _look(look: Look, surroundings: Surroundings, store: Store) -> Report:
    try:
        result = run_look(look, surroundings)
    except Exception as error:  # noqa: BLE001 - as for shards
        return replace(_failed([look.label], store, error), looks=1)
    store.write(look.key, look_content(look, result, surroundings.device), LOOKS)
    store.forgive(look.label)
    return Report(looks=1)


def _failed(labels: Sequence[str], store: Store, error: Exception) -> Report:
    for label in labels:
        store.fail(label, traceback.format_exc())
    if isinstance(error, BenchError):
        return Report(error=str(error), fault="input")
    return Report(error=f"{type(error).__name__}: {error}", fault="bug")
