"""What a run comes to, and how long it takes at most, before anything runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate

from benchmark.backends import Workers
from benchmark.data import Split
from benchmark.loading import forget, load_dataset, load_victim
from benchmark.machine import settle, threads_kept
from benchmark.plan import Plan, draft, plan
from benchmark.preparation import needed
from benchmark.pricing import most_line
from benchmark.request import Request
from benchmark.spec import Cell, Look, Shard, together
from benchmark.spending import Bill, Bills, bill_lines, counted
from benchmark.stack import undefended
from benchmark.store import LOOKS, SHARDS, Store
from benchmark.surroundings import Surroundings
from benchmark.victim import Remote, Victim
from benchmark.work import Costs, Work, costs_known, effort

_SECONDS = 0.3  # of timing a victim

Names = tuple[str, str]  # of data set and victim, as users write them


@dataclass(frozen=True)
class Share:
    """What is to be done to one victim.

    Attributes:
        shards: Shards, those that cannot be named yet with them.
        work: Shards and looks that are to be done.
        costs: What a query costs behind each defense, as far as it was measured.
    """

    shards: tuple[Shard, ...]
    work: tuple[Work, ...]
    costs: Costs

    @property
    def todo(self) -> list[Shard]:
        """Shards to be done."""
        return [shard for one in self.work if isinstance(one, tuple) for shard in one]

    @property
    def queries(self) -> int:
        """Counted queries of what is to be done, at most."""
        return int(sum(effort(one, {}) for one in self.work if isinstance(one, tuple)))

    @property
    def forwards(self) -> float:
        """Forward passes of one image of what is to be done, at most, verification aside."""
        return sum(effort(one, self.costs) for one in self.work)


@dataclass(frozen=True)
class Forecast:
    """What a run comes to.

    Attributes:
        shares: What is to be done to each victim.
        first: What is trained and calibrated before, as pairs of what is done and to what.
        left_out: Combinations that make no sense, a line each.
        waiting: Shards whose defense is not trained or whose strength is not known.
        unknown: Defenses whose cost was not measured.
        asked: What endpoints were asked to plan this, to prepare defenses.
    """

    shares: Mapping[Names, Share]
    first: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]
    waiting: int
    unknown: tuple[str, ...]
    asked: Bills


def forecast(requests: Sequence[Request], surroundings: Surroundings, out: Path) -> Forecast:
    """Tell what requests come to; nothing is trained, calibrated, attacked or written.

    Args:
        requests: What is wanted.
        surroundings: Where.
        out: Folder of results; what it holds counts as done, whole or damaged.

    Raises:
        BenchError: For anything that cannot run.
    """
    forget()  # files may have changed since an earlier run in this process
    with counted() as asked:
        drafts = [draft(request, surroundings) for request in requests]
        first = [pair for one in drafts for pair in needed(one.roster, surroundings)]
        plans = [plan(one, surroundings) for one in drafts]
    store = Store(out, writable=False)
    there = {*store.saved(SHARDS), *store.saved(LOOKS)}
    shares = _shares(plans, store, there)
    bare = undefended().spelled()
    unknown = {
        shard.cell.defense.record["name"]
        for share in shares.values()
        for shard in share.todo
        if shard.cell.defense.text not in {bare, *share.costs}
    }
    return Forecast(
        shares,
        tuple(dict.fromkeys(first)),
        tuple(dict.fromkeys(line for one in plans for line in one.left_out)),
        sum(len(one.waiting) for one in plans),
        tuple(sorted(unknown)),
        asked,
    )


def _shares(plans: Sequence[Plan], store: Store, there: set[str]) -> dict[Names, Share]:
    shards: dict[Names, dict[str, Shard]] = {}
    looks: dict[Names, dict[str, Look]] = {}
    for one in plans:
        for shard in (*one.shards, *one.waiting):
            shards.setdefault(_names(shard.cell), {})[shard.key] = shard
        for look in one.looks:
            looks.setdefault(_names(look), {})[look.key] = look
    shares = {}
    for victim, mine in shards.items():
        seen = looks.get(victim, {})
        todo = [shard for key, shard in mine.items() if key not in there]
        unseen = [look for key, look in seen.items() if key not in there]
        costs = costs_known(list(seen.values()), store)
        shares[victim] = Share(tuple(mine.values()), (*unseen, *together(todo)), costs)
    return shares


def _names(one: Look | Cell) -> Names:
    return one.dataset.text, one.model.text


def page(found: Forecast, workers: Workers, surroundings: Surroundings) -> str:
    """Write a forecast as `bench plan` prints it; victims are timed for a moment.

    Args:
        found: The forecast.
        workers: Who would do the work.
        surroundings: Where.
    """
    lines = [f"left out: {line}" for line in found.left_out]
    for what in dict.fromkeys(what for what, _ in found.first):
        names = ", ".join(title for kind, title in found.first if kind == what)
        lines.append(f"first: {what}: {names}")
    if found.waiting:
        lines.append(
            f"{found.waiting} shards wait for these: their keys are not known yet, so they count "
            "as to do"
        )
    rows = [{"victim": _name(victim), **_row(share)} for victim, share in found.shares.items()]
    lines += [
        "",
        tabulate(rows, headers="keys", intfmt=","),
        "",
        _times(found, workers, surroundings),
        *_prices(found, workers, surroundings),
        "",
    ]
    lines.append(
        "At most: attacks that stop early ask fewer. Of the time, answers that verify hits on "
        "randomised defenses, and those of S3 and S4, come on top."
    )
    if found.unknown:
        lines.append(
            f"Cost not measured yet, counted as one forward pass: {', '.join(found.unknown)}"
        )
    return "\n".join(lines).strip()


def _row(share: Share) -> dict[str, object]:
    cells = {id(shard.cell): shard.cell for shard in share.shards}.values()
    todo = share.todo
    return {
        "attacks": len({cell.attack.name for cell in cells}),
        "defenses": len({cell.defense.name for cell in cells}),
        "cells": len(cells),
        "shards": len(share.shards),
        "done": len(share.shards) - len(todo),
        "to do": len(todo),
        "images": sum(shard.count for shard in todo),
        "queries at most": share.queries,
    }


def _times(found: Forecast, workers: Workers, surroundings: Surroundings) -> str:
    """One line for each victim and device, more for all devices and for all victims together."""
    named = workers.devices or (surroundings.device,) * workers.at_a_time(surroundings.device)
    rows: list[list[str]] = []
    total = 0.0
    with threads_kept():
        settle()
        for victim, share in found.shares.items():
            if remote := _victim(victim, surroundings).remote:
                rows.append([_name(victim), "elsewhere", "", *_paced(remote, share.forwards)])
                total += share.forwards / (remote.rate or math.inf)
                continue
            rate = 0.0  # queries a second of all devices
            for device in dict.fromkeys(named):
                seconds = _seconds(victim, replace(surroundings, device=device))
                jobs = min(named.count(device), max(1, len(share.work)))
                rate += jobs / seconds
                alone = _duration(share.forwards * seconds / jobs)
                rows.append([_name(victim), device, str(jobs), f"{1000 * seconds:.3g}", alone])
            total += share.forwards / rate
            if len({*named}) > 1:
                together_ = _duration(share.forwards / rate)
                rows.append([_name(victim), "all", str(len(named)), "", together_])
    if len(found.shares) > 1:
        rows.append(["all", "all", str(len(named)), "", _duration(total)])
    headers = ["victim", "device", "jobs", "ms a query", "time at most"]
    return tabulate(rows, headers, disable_numparse=True, stralign="right")


def _paced(remote: Remote, forwards: float) -> tuple[str, str]:
    """Milliseconds a query and the time at most, for an endpoint with a limit; it is not asked."""
    if remote.rate is None:
        return "?", "as it answers"
    return f"{1000 / remote.rate:.3g}", _duration(forwards / remote.rate)


def _prices(found: Forecast, workers: Workers, surroundings: Surroundings) -> list[str]:
    """A line for each victim that runs elsewhere: the most it is asked, and what that costs."""
    lines = []
    for victim, share in found.shares.items():
        if remote := _victim(victim, surroundings).remote:
            # Each process prepares each defense once, for looks at strength zero too.
            times = 1 + 2 * workers.at_a_time(surroundings.device) if share.work else 0
            more = times * found.asked.get(remote.name, Bill()).images
            lines.append(most_line(share.work, share.costs, remote, more))
    lines += [f"asked by this plan: {line}" for line in bill_lines(found.asked)]
    return ["", *lines] if lines else []


def _victim(one: Names, surroundings: Surroundings) -> Victim:
    dataset, model = one
    return load_victim(model, dataset, surroundings.config, surroundings.device)


@torch.no_grad()
def _seconds(one: Names, surroundings: Surroundings) -> float:
    """Time a query of the bare victim for a moment, in the batches of a run."""
    data = load_dataset(one[0], surroundings.config)
    victim = _victim(one, surroundings)
    image = data.take(Split.EVAL, 1).images.to(surroundings.device)
    images = image.repeat(surroundings.batch_for(image[0].numel()), 1, 1, 1)
    spent: list[float] = []
    while sum(spent) < _SECONDS:
        began = time.perf_counter()
        victim(images).sum().item()  # waits for a GPU
        spent.append(time.perf_counter() - began)
    return median(spent[1:] or spent) / len(images)  # the first is slower


def _name(victim: Names) -> str:
    dataset, model = victim
    return f"{model} on {dataset}"


def _duration(seconds: float) -> str:
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // smaller:.0f} {name}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
