"""Runs the shards that have no result yet, on as many processes as asked."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from benchmark.display import Progress
from benchmark.errors import BenchError, StoreError
from benchmark.machine import settle
from benchmark.outcome import content
from benchmark.plan import Surroundings
from benchmark.spec import Shard
from benchmark.store import Store
from benchmark.tasks.attack import run_shard


@dataclass(frozen=True)
class Report:
    """How the run of one shard ended.

    Attributes:
        shard: The shard.
        queries: Queries it asked, counted or not.
        error: Why it failed, one line; empty if it did not.
        fault: "" if it did not fail, "input" for a mistake in the input, "bug" for ours.
    """

    shard: Shard
    queries: int = 0
    error: str = ""
    fault: str = ""


def missing(shards: Sequence[Shard], store: Store) -> tuple[list[Shard], list[str]]:
    """Tell which shards have to run, and what is wrong with damaged files among them."""
    todo: list[Shard] = []
    damage: list[str] = []
    for shard in shards:
        try:
            found = store.read(shard.key)
        except StoreError as error:
            damage.append(f"{error}; it is run again")
            found = None
        if found is None:
            todo.append(shard)
    return todo, damage


def execute(
    shards: Sequence[Shard],
    surroundings: Surroundings,
    store: Store,
    jobs: int | None,
    progress: Progress,
) -> list[Report]:
    """Run shards; each is stored by the process that ran it, as soon as it is finished.

    Args:
        shards: What to run.
        surroundings: Where.
        store: Where results go.
        jobs: Processes of one thread; None means one a core, and one on a GPU.
        progress: Told of every finished shard.

    Returns:
        The reports of the shards that failed.

    Raises:
        StoreError: If results cannot be written.
    """
    if not shards:
        return []
    usual = joblib.cpu_count() if torch.device(surroundings.device).type == "cpu" else 1
    processes = min(jobs or usual, len(shards))
    runner = joblib.Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
    calls = [joblib.delayed(_run)(shard, surroundings, store) for shard in shards]
    failed: list[Report] = []
    with _threads(torch.get_num_threads()):
        try:
            for report in runner(calls):
                progress.advance(report.shard.count, report.queries)
                if report.fault:
                    failed.append(report)
        except TerminatedWorkerError:
            raise StoreError(
                "a worker process was killed, perhaps for memory. What was finished is kept: "
                "the same command goes on, with fewer --jobs if it happens again."
            ) from None
    return failed


def _run(shard: Shard, surroundings: Surroundings, store: Store) -> Report:
    settle()
    started = datetime.datetime.now(datetime.UTC)
    try:
        result = run_shard(shard, surroundings)
    except BenchError as error:
        store.fail(shard.label, traceback.format_exc())
        return Report(shard, error=str(error), fault="input")
    except Exception as error:  # noqa: BLE001 - a hole with its traceback; the run goes on
        store.fail(shard.label, traceback.format_exc())
        return Report(shard, error=f"{type(error).__name__}: {error}", fault="bug")
    store.write(shard.key, content(result, surroundings.device, started))
    store.forgive(shard.label)
    return Report(shard, sum(n for k, n in result.costs.items() if k.endswith("_queries")))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give the caller's thread count back when the run was in this process."""
    try:
        yield
    finally:
        torch.set_num_threads(count)
