"""Runs the work that has no result yet, longest first, on the workers that were asked for."""

from __future__ import annotations

import datetime
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import joblib

from benchmark.backends import Pool, Workers
from benchmark.devices import FreeDevices
from benchmark.errors import BenchError, StoreError
from benchmark.machine import settle, threads_kept
from benchmark.outcome import content, look_content
from benchmark.packing import rows_of, smaller
from benchmark.room import halvings, peak_memory, within_memory
from benchmark.spec import Look, Shard
from benchmark.spending import charge, counted
from benchmark.store import LOOKS, Store
from benchmark.surroundings import Surroundings
from benchmark.tasks.attack import ShardResult, run_shards
from benchmark.tasks.look import run_look
from benchmark.work import Costs, Ended, Report, Step, Told, Work, effort, missing, name_of

_RESTARTS = 3  # times in a row that workers are killed before anything is finished


def execute(
    work: Sequence[Work],
    surroundings: Surroundings,
    store: Store,
    workers: Workers,
    told: Told,
    costs: Costs | None = None,
) -> Ended:
    """Run work; each piece is stored by the worker that ran it, as soon as it is finished.

    Args:
        work: What to run. What fails is run once more at the end, shard by shard.
        surroundings: Where.
        store: Where results go.
        workers: Who runs it.
        told: Called with everything that has ended, good or bad.
        costs: What queries cost behind the defenses that were looked at already.

    Raises:
        StoreError: If results cannot be written, or workers are killed again and again.
    """
    if not work:
        return Ended()
    ordered = sorted(work, key=lambda one: -effort(one, costs or {}))
    # Workers may have started in another folder: processes outlive a run, and clusters came before.
    surroundings, store = surroundings.absolute(), Store(store.folder.absolute())
    with (
        threads_kept(),
        tempfile.TemporaryDirectory(prefix="querybench-") as folder,
        workers.pool(surroundings.device, len(work)) as pool,
    ):
        devices = FreeDevices(workers.devices, Path(folder)) if workers.devices else None
        once = _Round(pool, surroundings, store, devices, told)
        first = once.finish(ordered)
        # What failed as one is run again apart, so that a hole is no larger than its cause.
        pieces = [(place, part) for place in first for part in _apart(ordered[place])]
        again = once.finish([part for _, part in pieces])
    lost = {pieces[turn][0] for turn in again}
    repaired = [report for place, report in first.items() if place not in lost]
    return Ended(tuple(again.values()), tuple(repaired))


def _apart(one: Work) -> Sequence[Work]:
    return smaller(one, rows_of(one).bit_length()) if isinstance(one, tuple) else [one]


@dataclass(frozen=True)
class _Round:
    """Runs every piece of work to an end, good or bad; restarts workers that were killed."""

    pool: Pool
    surroundings: Surroundings
    store: Store
    devices: FreeDevices | None
    told: Told

    def finish(self, work: Sequence[Work]) -> dict[int, Report]:
        """Run work; return the reports of what failed, by its place."""
        failed: dict[int, Report] = {}
        left, restarts = list(range(len(work))), 0

        def ended(place: int, report: Report) -> None:
            left.remove(place)
            charge(report.bills)
            self.told(work[place], report)
            if report.fault:
                failed[place] = report

        while left:
            before = len(left)
            try:
                self._once(work, left, ended)
            except self.pool.lost:
                left[:] = [place for place in left if not _stored(work[place], self.store)]
                restarts = restarts + 1 if len(left) == before else 0
                if restarts == _RESTARTS:
                    raise StoreError(
                        "worker processes are killed again and again, perhaps for memory. What "
                        "was finished is kept: the same command goes on, with fewer --jobs if it "
                        "happens again."
                    ) from None
                # What was in flight comes last: if one piece kills workers, the others are done.
                left[:] = left[max(1, self.pool.jobs) :] + left[: max(1, self.pool.jobs)]
        return dict(sorted(failed.items()))

    def _once(
        self, work: Sequence[Work], left: Sequence[int], ended: Callable[[int, Report], None]
    ) -> None:
        given = self.surroundings, self.store, self.devices
        calls = [joblib.delayed(_run)(place, work[place], *given) for place in left]
        for place, report in self.pool.run(calls):
            ended(place, report)


def _stored(one: Work, store: Store) -> bool:
    if not isinstance(one, Look | tuple):
        return False  # done again, it finds what it made in the cache
    shards, looks = ((), [one]) if isinstance(one, Look) else (one, ())
    todo = missing(shards, looks, store)
    return not todo[0] and not todo[1]


def _run(
    place: int, one: Work, surroundings: Surroundings, store: Store, devices: FreeDevices | None
) -> tuple[int, Report]:
    settle()
    with devices.taken() if devices else nullcontext(surroundings.device) as device:
        here = replace(surroundings, device=device)
        with counted() as bills:
            report = _done(one, here, store)
        memory, times = peak_memory(device), halvings(here)
        return place, replace(report, bills=bills, memory=memory, halvings=times)


def _done(one: Work, surroundings: Surroundings, store: Store) -> Report:
    if isinstance(one, Look):
        return _look(one, surroundings, store)
    if isinstance(one, tuple):
        return _attack(one, surroundings, store)
    return _prepare(one, surroundings, store)


def _attack(shards: tuple[Shard, ...], surroundings: Surroundings, store: Store) -> Report:
    started = datetime.datetime.now(datetime.UTC)
    report = Report(tuple(name_of(shard) for shard in shards), shards=len(shards))
    try:
        results = within_memory(partial(_run_pack, shards), surroundings)
    except Exception as error:  # noqa: BLE001 - a hole with its traceback; the run goes on
        return _failed(report, [shard.label for shard in shards], store, error)
    for result in results:
        store.write(result.shard.key, content(result, surroundings.device, started))
        store.forgive(result.shard.label)
    mine = [one.costs for one in results if one.shard.cell == shards[0].cell]  # of one radius
    asked = sum(n for costs in mine for k, n in costs.items() if k.endswith("_queries"))
    return replace(report, images=sum(shard.count for shard in shards), queries=asked)


def _run_pack(shards: tuple[Shard, ...], surroundings: Surroundings) -> list[ShardResult]:
    """Run shards as one; where memory ran out before, fewer of them."""
    parts = smaller(shards, surroundings.halvings)
    return [result for part in parts for result in run_shards(part, surroundings)]


def _look(look: Look, surroundings: Surroundings, store: Store) -> Report:
    report = Report((f"look at {look.defense.name}",), looks=1)
    try:
        result = within_memory(partial(run_look, look), surroundings)
    except Exception as error:  # noqa: BLE001 - as for shards
        return _failed(report, [look.label], store, error)
    store.write(look.key, look_content(look, result, surroundings.device), LOOKS)
    store.forgive(look.label)
    return report


def _prepare(step: Step, surroundings: Surroundings, store: Store) -> Report:
    report = Report((step.name,), steps=1)
    try:
        found = step.run(surroundings)
    except StoreError:  # no room for what it made: that ends the run, as it does for shards
        raise
    except Exception as error:  # noqa: BLE001 - as for shards
        return _failed(report, [step.label], store, error)
    store.forgive(step.label)
    return replace(report, found=found)


def _failed(report: Report, labels: Sequence[str], store: Store, error: Exception) -> Report:
    for label in labels:
        store.fail(label, traceback.format_exc())
    if isinstance(error, BenchError):
        return replace(report, error=str(error), fault="input")
    return replace(report, error=f"{type(error).__name__}: {error}", fault="bug")
