"""Runs the work that has no result yet, longest first, on the workers that were asked for."""

from __future__ import annotations

import datetime
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import joblib

from benchmark.backends import Pool, Workers
from benchmark.devices import FreeDevices
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
Costs = Mapping[str, float]  # forward passes a query costs, by what builds the defense

_RESTARTS = 3  # times in a row that workers are killed before anything is finished


@dataclass(frozen=True)
class Report:
    """How a piece of work ended.

    Attributes:
        names: What it was, a name for each shard or look.
        shards: Shards run together.
        looks: Looks taken.
        images: Images it attacked.
        queries: Queries it asked, counted or not.
        error: Why it failed, one line; empty if it did not.
        fault: "" if it did not fail, "input" for a mistake in the input, "bug" for ours.
    """

    names: tuple[str, ...] = ()
    shards: int = 0
    looks: int = 0
    images: int = 0
    queries: int = 0
    error: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Ended:
    """What went wrong in a run.

    Attributes:
        failed: Work that failed twice and has no result.
        repaired: Work that failed once and then did not.
    """

    failed: tuple[Report, ...] = ()
    repaired: tuple[Report, ...] = ()


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


def costs_known(looks: Sequence[Look], store: Store) -> Costs:
    """Tell what a query costs behind each defense, as far as it was measured."""
    costs: dict[str, float] = {}
    for look in looks:
        try:
            found = store.read(look.key, LOOKS)
        except StoreError:  # it is run again
            continue
        if found:
            costs[look.defense.text] = found["row"]["forward_equivalents"]
    return costs


def effort(one: Work, costs: Costs) -> float:
    """Estimate what a piece of work takes, in forward passes of one image; at most, for attacks.

    Repeats of a question (EOT) are in the budget already.
    """
    if isinstance(one, Look):
        return one.images * one.draws * costs.get(one.defense.text, 1.0)
    first = one[0]
    queries = first.count * first.cell.threat.budget
    return queries * costs.get(first.cell.defense.text, 1.0)


def execute(
    work: Sequence[Work],
    surroundings: Surroundings,
    store: Store,
    workers: Workers,
    progress: Progress,
    costs: Costs | None = None,
) -> Ended:
    """Run work; each piece is stored by the worker that ran it, as soon as it is finished.

    Args:
        work: What to run. What fails is run once more at the end.
        surroundings: Where.
        store: Where results go.
        workers: Who runs it.
        progress: Told of everything finished.
        costs: What queries cost behind the defenses that were looked at already.

    Raises:
        StoreError: If results cannot be written, or workers are killed again and again.
    """
    if not work:
        return Ended()
    ordered = sorted(work, key=lambda one: -effort(one, costs or {}))
    if workers.elsewhere:
        surroundings, store = surroundings.absolute(), Store(store.folder.absolute())
    with (
        threads_kept(),
        tempfile.TemporaryDirectory(prefix="querybench-") as folder,
        workers.pool(surroundings.device, len(work)) as pool,
    ):
        devices = FreeDevices(workers.devices, Path(folder)) if workers.devices else None
        once = _Round(pool, surroundings, store, devices, progress)
        first = once.finish(ordered)
        again = once.finish([ordered[place] for place in first])
    reports = list(first.values())
    repaired = [one for turn, one in enumerate(reports) if turn not in again]
    return Ended(tuple(again.values()), tuple(repaired))


@dataclass(frozen=True)
class _Round:
    """Runs every piece of work to an end, good or bad; restarts workers that were killed."""

    pool: Pool
    surroundings: Surroundings
    store: Store
    devices: FreeDevices | None
    progress: Progress

    def finish(self, work: Sequence[Work]) -> dict[int, Report]:
        """Run work; return the reports of what failed, by its place."""
        failed: dict[int, Report] = {}
        left, restarts = list(range(len(work))), 0

        def told(place: int, report: Report) -> None:
            left.remove(place)
            self.progress.advance(report.images, report.queries)
            if report.fault:
                failed[place] = report

        while left:
            before = len(left)
            try:
                self._once(work, left, told)
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
        self, work: Sequence[Work], left: Sequence[int], told: Callable[[int, Report], None]
    ) -> None:
        given = self.surroundings, self.store, self.devices
        calls = [joblib.delayed(_run)(place, work[place], *given) for place in left]
        for place, report in self.pool.run(calls):
            told(place, report)


def _stored(one: Work, store: Store) -> bool:
    shards, looks = ((), [one]) if isinstance(one, Look) else (one, ())
    todo = missing(shards, looks, store)
    return not todo[0] and not todo[1]


def _run(
    place: int, one: Work, surroundings: Surroundings, store: Store, devices: FreeDevices | None
) -> tuple[int, Report]:
    settle()
    with devices.taken() if devices else nullcontext(surroundings.device) as device:
        here = replace(surroundings, device=device)
        if isinstance(one, Look):
            return place, _look(one, here, store)
        return place, _attack(one, here, store)


def _attack(shards: tuple[Shard, ...], surroundings: Surroundings, store: Store) -> Report:
    started = datetime.datetime.now(datetime.UTC)
    report = Report(tuple(_name(shard) for shard in shards), shards=len(shards))
    try:
        results = run_shards(shards, surroundings)
    except Exception as error:  # noqa: BLE001 - a hole with its traceback; the run goes on
        return _failed(report, [shard.label for shard in shards], store, error)
    for result in results:
        store.write(result.shard.key, content(result, surroundings.device, started))
        store.forgive(result.shard.label)
    asked = sum(n for k, n in results[0].costs.items() if k.endswith("_queries"))
    return replace(report, images=sum(shard.count for shard in shards), queries=asked)


def _look(look: Look, surroundings: Surroundings, store: Store) -> Report:
    report = Report((f"look at {look.defense.name}",), looks=1)
    try:
        result = run_look(look, surroundings)
    except Exception as error:  # noqa: BLE001 - as for shards
        return _failed(report, [look.label], store, error)
    store.write(look.key, look_content(look, result, surroundings.device), LOOKS)
    store.forgive(look.label)
    return report


def _name(shard: Shard) -> str:
    cell, last = shard.cell, shard.first + shard.count - 1
    return f"{cell.attack.name} against {cell.defense.name}, images {shard.first}-{last}"


def _failed(report: Report, labels: Sequence[str], store: Store, error: Exception) -> Report:
    for label in labels:
        store.fail(label, traceback.format_exc())
    if isinstance(error, BenchError):
        return replace(report, error=str(error), fault="input")
    return replace(report, error=f"{type(error).__name__}: {error}", fault="bug")
