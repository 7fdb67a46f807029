"""The same runs from Python.

from benchmark.api import run

cells = run(attacks="square,nes", defenses="unig,feature", images=100)
print(cells[["defense", "attack", "budget", "robust_accuracy"]])
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from benchmark.backends import Workers
from benchmark.config import load_config
from benchmark.data import Split
from benchmark.display import Progress
from benchmark.errors import BenchError, SpecError
from benchmark.loading import forget, load_dataset
from benchmark.matching import Calibration, borrowed
from benchmark.muster import Roster, muster, roster
from benchmark.outcome import keep
from benchmark.packing import packed
from benchmark.plan import draft, plan
from benchmark.preparation import prepare
from benchmark.request import Request
from benchmark.room import Mark
from benchmark.scheduler import execute
from benchmark.spec import Shard, together
from benchmark.spending import bill_lines, counted
from benchmark.store import Store
from benchmark.suites import make_requests
from benchmark.surroundings import Surroundings, usual_batch
from benchmark.tables import Finished, rebuild
from benchmark.work import Report, Work, costs_known, missing, name_of

RESULTS = Path("results/local")


_NAMED = 5  # pieces of work that a message names


class ShardsFailedError(BenchError):
    """Some shards failed, and failed again; the others are stored.

    Attributes:
        reports: One for each failed piece of work.
    """

    def __init__(
        self,
        reports: Sequence[Report],
        folder: Path,
        waiting: Sequence[str] = (),
        step: str = "preparation",
    ) -> None:
        self.reports = tuple(reports)
        kinds = dict.fromkeys(report.error for report in reports)
        tracebacks = "" if self.only_input else f" Tracebacks: {folder / 'failures'}."
        reasons = "; ".join(kinds).rstrip(".")
        steps, shards, looks = (
            sum(getattr(r, kind) for r in reports) for kind in ("steps", "shards", "looks")
        )
        parts = [
            _count(steps, step, ""),
            _count(shards, "shard", ""),
            _count(looks, "look", " at clean images"),
        ]
        what = " and ".join(part for part in parts if part)
        names = [*(name for report in reports for name in report.names), *waiting]
        more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        holes = f" No result: {'; '.join(names[:_NAMED])}{more}."
        super().__init__(f"{what} failed: {reasons}.{tracebacks}{holes}")

    @property
    def only_input(self) -> bool:
        """Every failure is a mistake in the input, none is a bug."""
        return all(report.fault == "input" for report in self.reports)


def _count(number: int, name: str, more: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}{more}" if number else ""


def run(
    suite: str | None = None,
    *,
    out: Path | str = RESULTS,
    jobs: int | None = None,
    surroundings: Surroundings | None = None,
    workers: Workers | None = None,
    **request: Any,
) -> pd.DataFrame:
    """Cross attacks with defenses; do what is missing, and return the cells of what was asked.

    Args:
        suite: Name of a suite, or None.
        out: Folder of results.
        jobs: Processes, each with one thread; None means one for each core (one on a GPU).
        surroundings: Device, plug-ins, where data and weights are; None means the CPU, no
            plug-ins, and what variables and the config file say.
        workers: More about who does the work, instead of `jobs`.
        **request: Fields of `benchmark.request.Request`.

    Returns:
        Rows of `cells.csv` that belong to the request, or to the suite.

    Raises:
        BenchError: For a mistake in the input, before anything runs.
        ShardsFailedError: If some shards failed; the others are stored.
    """
    where = surroundings or Surroundings(load_config())
    where.load_plugins()
    wanted = make_requests(suite, **request)
    crew = workers or Workers(jobs)
    tables = execute_requests(wanted, where, Path(out), crew, Console(file=sys.stderr))
    return pd.concat(tables, ignore_index=True)


def warn(lines: Sequence[str], console: Console) -> None:
    """Print warnings, a line each."""
    for line in lines:
        console.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)


def execute_requests(
    requests: Sequence[Request],
    surroundings: Surroundings,
    out: Path,
    workers: Workers,
    console: Console,
) -> list[pd.DataFrame]:
    """Run checked requests together; the cells of each. See `run`."""
    with billed(console):
        return _execute(requests, surroundings, out, workers, console)


@contextmanager
def billed(console: Console) -> Iterator[None]:
    """Say at the end, however it ends, what endpoints were asked."""
    with counted() as bills:
        try:
            yield
        finally:
            for line in bill_lines(bills):
                console.print(line, markup=False, highlight=False, soft_wrap=True)


def _execute(
    requests: Sequence[Request],
    surroundings: Surroundings,
    out: Path,
    workers: Workers,
    console: Console,
) -> list[pd.DataFrame]:
    if workers.devices:
        surroundings = replace(surroundings, device=workers.devices[0])
    forget()  # files may have changed since an earlier run in this process
    drafts = [draft(request, surroundings) for request in requests]
    store = Store(out)
    store.sweep()
    rosters = [one.roster for one in drafts]
    prepared = prepare(rosters, surroundings, store, workers, console)
    plans = [plan(one, surroundings, prepared.fresh) for one in drafts]
    for line in dict.fromkeys(line for one in plans for line in one.left_out):
        console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    found = zip(rosters, plans, strict=True)
    doubts = [
        line for one, planned in found for line in keep_strengths(planned.calibrations, one, store)
    ]
    warn(list(dict.fromkeys(doubts)), console)
    shards = list({shard.key: shard for one in plans for shard in one.shards}.values())
    looks = list({look.key: look for one in plans for look in one.looks}.values())
    todo, unseen, damage = missing(shards, looks, store)
    warn(damage, console)
    if len(todo) < len(shards):
        console.print(f"{len(shards) - len(todo)} of {len(shards)} shards are done already")
    try:
        most = Mark()
        with Progress(sum(shard.count for shard in todo), console) as progress:

            def told(_one: Work, report: Report) -> None:
                progress.advance(report.images, report.queries)
                most.see(report.memory, report.halvings)

            work: list[Work] = [*unseen, *_pieces(todo, surroundings)]
            costs = costs_known(looks, store)
            ended = execute(work, surroundings, store, workers, told, costs)
    finally:
        finished = rebuild(store)
    warn(once_failed([*prepared.repaired, *ended.repaired]), console)
    warn([f"{line}; it is missing in the tables" for line in store.damaged], console)
    if failed := [*prepared.failed.values(), *ended.failed]:
        holes = [name_of(shard) for one in plans for shard in one.waiting]
        raise ShardsFailedError(failed, out, holes)
    for line in most.lines(surroundings.device):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    warn(_flagged(finished, shards), console)
    return [_cells(finished, planned.shards) for planned in plans]


def _pieces(todo: Sequence[Shard], surroundings: Surroundings) -> list[tuple[Shard, ...]]:
    """Put shards together that are run as one; a GPU has room for more than one at a time."""
    groups, device = together(todo), torch.device(surroundings.device)
    if device.type == "cpu":
        return groups

    def rows(shard: Shard) -> int:
        data = load_dataset(shard.cell.dataset.text, surroundings.config)
        return usual_batch(device, data.take(Split.EVAL, 1).images.numel())

    return packed(groups, rows)


def once_failed(reports: Sequence[Report]) -> list[str]:
    """Say what failed once and then did not, a line each."""
    return [f"{'; '.join(one.names)}: once failed: {one.error}" for one in reports]


def keep_strengths(calibrations: Sequence[Calibration], called: Roster, store: Store) -> list[str]:
    """Store the strengths that were found; say what is doubtful in them, a line each."""
    for one in calibrations:
        keep(one, called.subject, store)
    return [*(line for one in calibrations for line in one.doubts()), *borrowed(calibrations)]


def _cells(finished: Finished, shards: Sequence[Shard]) -> pd.DataFrame:
    """Rows of `cells.csv` of a request, in its order."""
    wanted = {key: place for place, key in enumerate(dict.fromkeys(s.cell.key for s in shards))}
    # From these cells alone: the worst case is over the attacks that were asked for.
    mine = finished.of(wanted)
    order = mine["cell"].map(wanted).fillna(len(wanted))
    defenses = {name: place for place, name in enumerate(s.cell.defense.name for s in shards)}
    mine = mine.assign(_defense=mine["defense"].map(defenses), _place=order)
    mine = mine.sort_values(["_defense", "_place", "budget"], ignore_index=True)
    return mine.drop(columns=["_defense", "_place"])


def _flagged(finished: Finished, shards: Sequence[Shard]) -> list[str]:
    """Flags of the defenses of a run, a line each."""
    mine = {
        (cell.dataset.name, cell.model.name, cell.defense.name)
        for cell in (shard.cell for shard in shards)
    }
    lines = []
    for row in finished.flags().to_dict("records"):
        if (row["dataset"], row["model"], row["defense"]) in mine:
            where = f" ({row['setting']})" if row["setting"] else ""
            lines.append(f"{row['flag']}: {row['defense']}: {row['detail']}{where}")
    return lines


def find_strengths(
    request: Request, surroundings: Surroundings, out: Path, jobs: int | None, console: Console
) -> tuple[Calibration, ...]:
    """Find the strengths of a request's defenses and keep them; no attack is run.

    Raises:
        BenchError: For a mistake in the input.
    """
    if not request.match_drop:
        raise SpecError("no drop was named: give --match-drop 1,2")
    forget()
    with billed(console):
        return _search(request, surroundings, out, jobs, console)


def _search(
    request: Request, surroundings: Surroundings, out: Path, jobs: int | None, console: Console
) -> tuple[Calibration, ...]:
    called = roster(request, surroundings)
    store = Store(out)
    prepared = prepare([called], surroundings, store, Workers(jobs), console)
    found = muster(called, surroundings, prepared.fresh)
    warn(keep_strengths(found.calibrations, called, store), console)
    rebuild(store)
    warn(once_failed(prepared.repaired), console)
    if prepared.failed:
        raise ShardsFailedError(list(prepared.failed.values()), out)
    return found.calibrations
