"""Steal victims from Python.

from benchmark.stealing.api import steal

rows = steal(attacks="knockoff", defenses="rnd,unig", queries=5000)
print(rows[["defense", "attack", "seeds", "clone_accuracy", "robust_accuracy"]])
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benchmark.api import RESULTS, ShardsFailedError, billed, keep_strengths, once_failed, warn
from benchmark.backends import Workers
from benchmark.config import load_config
from benchmark.display import told_of
from benchmark.errors import StoreError
from benchmark.loading import forget
from benchmark.preparation import prepare
from benchmark.scheduler import execute
from benchmark.stealing.outcome import theft_content, transfer_content
from benchmark.stealing.plan import StealPlan, draft, plan
from benchmark.stealing.request import StealRequest
from benchmark.stealing.spec import Theft
from benchmark.stealing.suites import make_steals
from benchmark.stealing.tables import rebuild_steals
from benchmark.store import LOOKS, THEFTS, TRANSFERS, Store
from benchmark.surroundings import Surroundings
from benchmark.tables import rebuild
from benchmark.tasks.steal import TheftStep, clone_file, state_file
from benchmark.tasks.transfer import TransferStep
from benchmark.work import Report, Work


def steal(
    suite: str | None = None,
    *,
    out: Path | str = RESULTS,
    jobs: int | None = None,
    surroundings: Surroundings | None = None,
    **request: Any,
) -> pd.DataFrame:
    """Cross stealing attacks with defenses; do what is missing, and return what was asked for.

    Args:
        suite: Name of a suite, or None.
        out: Folder of results.
        jobs: Processes, each with one thread; None means one for each core (one on a GPU).
        surroundings: Device, plug-ins, where data and weights are; None means the CPU, no
            plug-ins, and what variables and the config file say.
        **request: Fields of `benchmark.stealing.request.StealRequest`.

    Returns:
        Rows of `steals.csv` that belong to the request, or to the suite.

    Raises:
        BenchError: For a mistake in the input, before anything runs.
        ShardsFailedError: If some thefts or transfers failed; the others are stored.
    """
    where = surroundings or Surroundings(load_config())
    where.load_plugins()
    wanted = make_steals(suite, **request)
    tables = execute_steals(wanted, where, Path(out), Workers(jobs), Console(file=sys.stderr))
    return pd.concat(tables, ignore_index=True)


def execute_steals(
    requests: Sequence[StealRequest],
    surroundings: Surroundings,
    out: Path,
    workers: Workers,
    console: Console,
) -> list[pd.DataFrame]:
    """Run checked requests together; the rows of each. See `steal`."""
    with billed(console):
        return _execute(requests, surroundings, out, workers, console)


def _execute(
    requests: Sequence[StealRequest],
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
    for one, called in zip(plans, rosters, strict=True):
        warn(keep_strengths(one.calibrations, called, store), console)
    team = _Team(surroundings, store, workers, console)
    try:
        failed = team.do(plans)
    finally:
        rebuild(store)
        table = rebuild_steals(store)
    warn(once_failed([*prepared.repaired, *team.repaired]), console)
    warn([f"{line}; it is missing in the table" for line in store.damaged], console)
    if lost := [*prepared.failed.values(), *failed]:
        waiting = [name for one in plans for name in one.waiting]
        raise ShardsFailedError(lost, out, waiting, "theft or transfer")
    return [_rows(table, planned) for planned in plans]


def _rows(table: pd.DataFrame, planned: StealPlan) -> pd.DataFrame:
    """Rows of `steals.csv` of a request, in its order."""
    places = {one.key: place for place, one in enumerate(planned.transfers)}
    mine = table[table["transfer"].isin(places)]
    order = mine["transfer"].map(places)
    return mine.iloc[order.argsort(kind="stable")].reset_index(drop=True)


class _Team:
    """Does thefts, then transfers, and stores what comes of them.

    Attributes:
        repaired: What failed once and then did not.
    """

    def __init__(
        self, surroundings: Surroundings, store: Store, workers: Workers, console: Console
    ) -> None:
        self._given = surroundings, store, workers
        self._store, self._console, self._device = store, console, surroundings.device
        self.repaired: list[Report] = []

    def do(self, plans: Sequence[StealPlan]) -> list[Report]:
        """Do what is missing of all plans; return what failed twice."""
        folder = self._store.folder.absolute()
        thefts = {one.key: one for planned in plans for one in planned.thefts}
        looks = {one.key: one for planned in plans for one in planned.looks}
        todo = [TheftStep(one, folder) for one in thefts.values() if not self._stolen(one, folder)]
        unseen = [one for key, one in looks.items() if not self._there(key, LOOKS)]
        failed = self._all([*unseen, *todo])
        transfers = {one.key: one for planned in plans for one in planned.transfers}
        there = [one for one in transfers.values() if self._possible(one.thefts)]
        steps = [TransferStep(one, folder) for one in there if not self._there(one.key, TRANSFERS)]
        return [*failed, *self._all(steps)]

    def _stolen(self, theft: Theft, folder: Path) -> bool:
        """It is stored, and so are the weights of its clones."""
        files = (clone_file(folder, theft.key, budget) for budget in theft.budgets)
        return self._there(theft.key, THEFTS) and all(file.is_file() for file in files)

    def _possible(self, thefts: Sequence[str]) -> bool:
        return all(self._there(key, THEFTS) for key in thefts)

    def _there(self, key: str, kind: str) -> bool:
        """It is stored; of a damaged file it is told that its work is done again."""
        try:
            return self._store.read(key, kind) is not None
        except StoreError as error:
            warn([f"{error}; it is done again"], self._console)
            return False

    def _all(self, work: Sequence[Work]) -> list[Report]:
        """Do pieces of work that do not depend on each other, and store what comes of them."""
        total = sum(isinstance(one, TheftStep | TransferStep) for one in work)
        say = told_of(self._console, "done:")
        count = 0

        def told(one: Work, report: Report) -> None:
            nonlocal count
            if report.fault or not isinstance(one, TheftStep | TransferStep):
                return
            self._keep(one, report.found)
            count += 1
            kind = "thefts" if isinstance(one, TheftStep) else "transfers"
            say(kind, count / total)

        ended = execute(work, *self._given, told)
        self.repaired += ended.repaired
        return list(ended.failed)

    def _keep(self, one: TheftStep | TransferStep, found: Any) -> None:
        if isinstance(one, TheftStep):
            content = theft_content(one.theft, found, self._device)
            self._store.write(one.theft.key, content, THEFTS)
            cache = self._given[0].config.cache_folder
            state_file(cache, one.theft.key).unlink(missing_ok=True)
        else:
            content = transfer_content(one.transfer, found, self._device)
            self._store.write(one.transfer.key, content, TRANSFERS)
