"""Longest work first, one retry, and workers that are killed."""

from __future__ import annotations

from pathlib import Path

import command
import pandas as pd
import pytest
from command import attack, refused, tables, world
from support import refusal

from benchmark import scheduler
from benchmark.backends import Pool
from benchmark.config import Config
from benchmark.errors import StoreError
from benchmark.protocol import Protocol
from benchmark.scheduler import execute
from benchmark.spec import Cell, Look, Part, Shard
from benchmark.store import Store
from benchmark.surroundings import Surroundings
from benchmark.types import Norm, Threat
from benchmark.work import Report, effort

bench = command.bench


def part(name):
    return Part(name, name, {"name": name, "fingerprint": "f"})


def shards(count, budget=10, defense="none"):
    threat = Threat(Norm.LINF, 0.1, budget)
    names = map(part, ("data", "model", defense, "attack"))
    cell = Cell(*names, threat, Protocol((budget,)), 2 * count, 0)
    return [(Shard(cell, 2 * place, 2),) for place in range(count)]


def test_effort_is_images_times_budget_times_what_a_query_costs():
    (short,), (long,) = shards(1), shards(1, budget=30)
    assert (effort(short, {}), effort(long, {})) == (20, 60)
    assert effort(shards(1, defense="rnd")[0], {"rnd": 2.5}) == 50
    look = Look(*map(part, ("data", "model", "rnd")), images=4, draws=9, seed=0)
    assert (effort(look, {}), effort(look, {"rnd": 2.0})) == (36, 72)


class LostError(Exception):
    """A worker was killed."""


class Scripted:
    """Workers that make calls in order and die before some of them."""

    devices = ()

    def __init__(self, monkeypatch, deaths=(), jobs=1):
        self.calls, self.done, self.deaths = [], [], list(deaths)
        self._pool = Pool(jobs, (LostError,))
        monkeypatch.setattr(Pool, "run", self._run)
        monkeypatch.setattr(scheduler, "_run", lambda place, one, *_: (place, self.one(one)))

    def pool(self, _device, _most):
        return self

    def __enter__(self):
        return self._pool

    def __exit__(self, *_):
        pass

    def one(self, work):
        """What ends the work; tests replace it."""
        return Report(("it",), shards=1)

    def _run(self, calls):
        for _, (place, work, *_), _ in calls:
            self.calls.append(work)
            if self.deaths and work in self.deaths:
                self.deaths.remove(work)
                raise LostError
            yield scheduler._run(place, work)
            self.done.append(work)


@pytest.fixture
def go(tmp_path, surroundings):
    def run(work, workers, costs=None, told=None):
        told = told or (lambda _work, _report: None)
        return execute(work, surroundings, Store(tmp_path), workers, told, costs)

    return run


@pytest.fixture
def surroundings():
    return Surroundings(Config())


def test_longest_work_comes_first_and_equals_keep_their_order(go, monkeypatch):
    workers = Scripted(monkeypatch)
    (short,), (long,), first, second = shards(1), shards(1, 30), *shards(2, 20, "rnd")
    assert go([short, first, long, second], workers, {"rnd": 3.0}).failed == ()
    assert workers.done == [first, second, long, short]


def test_work_in_flight_when_a_worker_dies_comes_last(go, monkeypatch):
    a, b, c, d = shards(4)
    workers = Scripted(monkeypatch, deaths=[b], jobs=2)
    assert go([a, b, c, d], workers).failed == ()
    assert workers.calls == [a, b, d, b, c]  # b and c were with the two workers


def test_what_a_dead_worker_had_stored_is_not_run_again(go, monkeypatch, tmp_path):
    a, b, c = shards(3)
    Store(tmp_path).write(b[0].key, {})
    workers = Scripted(monkeypatch, deaths=[a])
    go([a, b, c], workers)
    assert workers.calls == [a, c, a]


def test_work_that_kills_its_worker_ends_the_run_once_all_else_is_done(go, monkeypatch):
    a, b, c = shards(3)
    workers = Scripted(monkeypatch, deaths=[a] * 99)
    assert "killed again and again" in refusal(StoreError, lambda: go([a, b, c], workers))
    assert workers.done == [b, c]
    assert workers.calls.count(a) == 5  # the last three in a row with nothing finished in between


def test_deaths_with_progress_in_between_are_never_too_many(go, monkeypatch):
    a, b, c, d, e, f = work = shards(6)
    workers = Scripted(monkeypatch, deaths=[b, d, f, b])
    assert go(work, workers).failed == ()
    assert workers.done == [a, c, e, d, f, b]


def test_what_fails_is_run_once_more(go, monkeypatch):
    a, b, c = shards(3)
    workers, faults = Scripted(monkeypatch), [b, c, c]

    def one(work):
        if work not in faults:
            return Report()
        faults.remove(work)
        return Report(fault="bug", error=str(work[0].first))

    workers.one = one
    ended = go([a, b, c], workers)
    assert workers.done == [a, b, c, b, c]
    assert [report.error for report in ended.failed] == ["4"]
    assert [report.error for report in ended.repaired] == ["2"]


ONCE = "from pathlib import Path; seen = Path({path!r}); first = not seen.exists(); seen.touch(); "


def test_a_failure_that_does_not_come_back_is_said_and_leaves_no_hole(bench):
    once = ONCE.format(path=str(Path("seen").resolve()))
    path = attack("flaky", once + "assert not first, 'a bit flipped'")
    outcome = world(bench, "--attacks", "square,flaky", "--plugin", path)
    assert outcome.code == 0
    (warning,) = (line for line in outcome.err.splitlines() if "once failed" in line)
    assert warning.startswith("warning: flaky against none, images 0-1: once failed: ")
    assert "a bit flipped" in warning
    assert set(pd.read_csv("out/cells.csv")["attack"]) == {"square", "flaky", "worst-case"}
    assert list(Path("out/failures").iterdir()) == []


def test_a_failure_names_the_work_without_a_result(bench):
    path = attack("buggy", "raise RuntimeError('always')")
    error = refused(world(bench, "--attacks", "square,buggy", "--plugin", path), code=1)
    missing = "buggy against none, images 0-1; buggy against none, images 2-3"
    assert error.endswith(f"Tracebacks: out/failures. No result: {missing}.\n")


def test_a_killed_process_is_replaced_and_loses_no_finished_work(bench):
    seen = Path("seen").resolve()
    kill = "import os, signal; first and os.kill(os.getpid(), signal.SIGKILL)"
    args = "--plugin", attack("killer", ONCE.format(path=str(seen)) + kill)
    seen.touch()
    assert world(bench, "--attacks", "square,killer", *args).code == 0
    whole = tables(Path("out"))
    Path("out").rename("whole")
    seen.unlink()
    outcome = world(bench, "--attacks", "square,killer", *args, "--jobs", "2")
    assert outcome.code == 0, outcome.err
    assert seen.exists()
    assert tables(Path("out")) == whole
