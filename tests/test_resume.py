"""Jobs, kills and neighbours change nothing: the tables are the same to the byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark import api

BENCH = Path(sys.executable).with_name("bench")
TABLES = ("cells.csv", "shards.csv", "images.parquet")
SHARDS = 36
REQUEST = dict(attacks="square,nes", defenses="rnd,unig", images=24, queries=40, shard=4)
OPTIONS = [part for name, value in REQUEST.items() for part in (f"--{name}", str(value))]
PATIENCE = 60  # seconds


def start(out, jobs):
    """Start a run in a process group of its own."""
    command = [BENCH, "run", *OPTIONS, "--jobs", str(jobs), "--out", out]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYBENCH_")}
    return subprocess.Popen(command, start_new_session=True, env=env, **quiet)


def ended(process):
    """Wait for a run; return its exit code and what it complained about."""
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors.decode()


def kill(process):
    """End the whole process group without notice."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    return process.returncode


def finished(out):
    return sorted((out / "shards").glob("*.json")) if out.exists() else []


def wait_for(out, count):
    """Wait until some shards are finished."""
    limit = time.monotonic() + PATIENCE
    while len(finished(out)) < count:
        assert time.monotonic() < limit, "no shard was finished in time"
        time.sleep(0.02)


def tables(out):
    return {name: (out / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Tables of a run in one process that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    api.run(**REQUEST, jobs=1, out=out)
    assert len(finished(out)) == SHARDS
    return tables(out)


def test_two_jobs_give_the_tables_of_one(whole, tmp_path):
    assert ended(start(tmp_path, jobs=2))[0] == 0
    assert tables(tmp_path) == whole


def test_a_run_killed_at_random_moments_ends_in_the_same_tables(whole, tmp_path):
    moments = random.Random(7)
    done = []
    for jobs in (1, 2):
        process = start(tmp_path, jobs)
        # Counted from the first shard on, so that a slow machine is hit in its work too.
        wait_for(tmp_path, len(finished(tmp_path)) + 1 + moments.randrange(SHARDS // 3))
        time.sleep(moments.uniform(0.0, 0.1))
        assert kill(process) == -signal.SIGKILL
        done.append(len(finished(tmp_path)))
    assert 0 < done[0] < done[1] < SHARDS
    before = {path: path.stat().st_mtime_ns for path in finished(tmp_path)}
    api.run(**REQUEST, jobs=1, out=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert tables(tmp_path) == whole


def test_two_runs_at_once_on_one_folder_do_no_harm(whole, tmp_path):
    processes = [start(tmp_path, jobs=1) for _ in range(2)]
    assert [ended(process)[0] for process in processes] == [0, 0]
    assert tables(tmp_path) == whole
    assert len(finished(tmp_path)) == SHARDS
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_same_command_again_runs_nothing(whole, tmp_path, capsys):
    api.run(**REQUEST, jobs=1, out=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in finished(tmp_path)}
    capsys.readouterr()
    api.run(**REQUEST, jobs=1, out=tmp_path)
    assert f"{SHARDS} of {SHARDS} shards are done already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished(tmp_path)} == before
    assert tables(tmp_path) == whole
