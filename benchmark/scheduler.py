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
from benchmark.spec import Shard, together
from benchmark.store import Store
from benchmark.tasks.attack import run_shards


@dataclass(frozen=True)
class Report:
    """How the run of one or more shards ended.

    Attributes:
        shards: Shards that were run together.
        queries: Queries it asked, counted or not.
        error: Why it failed, one line; empty if it did not.
        fault: "" if it did not fail, "input" for a mistake in the input, "bug" for ours.
    """

    shards: tuple[Shard, ...]
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
    groups = together(shards)
    processes = min(jobs or usual, len(groups))
    runner = joblib.Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
    calls = [joblib.delayed(_run)(group, surroundings, store) for group in groups]
    failed: list[Report] = []
    with _threads(torch.get_num_threads()):
        try:
            for report in runner(calls):
                progress.advance(sum(s.count for s in report.shards), report.queries)
                if report.fault:
                    failed.append(report)
        except TerminatedWorkerError:
            raise StoreError(
                "a worker process was killed, perhaps for memory. What was finished is kept: "
                "the same command goes on, with fewer --jobs if it happens again."
            ) from None
    return failed


def _run(shards: tuple[Shard, ...], surroundings: Surroundings, store: Store) -> Report:
    settle()
    started = datetime.datetime.now(datetime.UTC)
    try:
        results = run_shards(shards, surroundings)
    except Exception as error:  # noqa: BLE001 - a hole with its traceback; the run goes on
        for shard in shards:
            store.fail(shard.label, traceback.format_exc())
        if isinstance(error, BenchError):
            return Report(shards, error=str(error), fault="input")
        return Report(shards, error=f"{type(error).__name__}: {error}", fault="bug")
    for result in results:
        store.write(result.shard.key, content(result, surroundings.device, started))
        store.forgive(result.shard.label)
    costs = results[0].costs
    return Report(shards, sum(n for k, n in costs.items() if k.endswith("_queries")))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give the caller's thread count back when the run was in this process."""
    try:
        yield
    finally:
        torch.set_num_threads(count)
