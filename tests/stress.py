"""Kill two runs on one folder at random moments: its tables end as those of an undisturbed run.

python tests/stress.py            # fifty kills
python tests/stress.py 10 --seed 3

Two processes run the same small suite on one folder. Again and again one of them is killed with
all its workers (SIGKILL) and started anew. When both are done the tables are compared byte for
byte, `bench verify` has a look, and a new folder is begun until all kills are spent.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TABLES = ("cells.csv", "shards.csv", "images.parquet")
SUITE = ["--attacks", "square,nes", "--defenses", "rnd,unig", "--images", "24", "--queries", "40"]
SUITE += ["--shard", "2"]
SHARDS = 72
LATE = 2  # kills in a folder where all shards are done: a start, or the tables
BLIND = 0.2  # share of kills at a moment that does not depend on what is done
PATIENCE = 600  # seconds for one run


def bench(*args: object) -> list[str]:
    return [sys.executable, "-m", "benchmark.cli", *map(str, args)]


def start(out: Path, jobs: int) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYBENCH_")}
    command = bench("run", *SUITE, "--jobs", jobs, "--out", out)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=env, start_new_session=True, **quiet)


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


def finished(out: Path) -> int:
    return len(list(out.glob("shards/*.json")))


def wait(out: Path, longest: float, moments: random.Random) -> None:
    """Wait a while: until some more shards are done, or for a time that may end in a start."""
    more, until = finished(out) + moments.randrange(1, 16), time.monotonic() + PATIENCE
    if moments.random() < BLIND:
        more, until = SHARDS, time.monotonic() + moments.uniform(0.0, longest)
    while finished(out) < min(more, SHARDS) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(moments.uniform(0.0, 0.3))  # amid a shard, or a rebuild of the tables


def disturb(out: Path, kills: int, longest: float, moments: random.Random) -> list[int]:
    """Kill runs until they are done or the kills are spent; return what was finished at each."""
    runs, hits = [start(out, jobs) for jobs in (1, 2)], []
    try:
        while len(hits) < kills and any(run.poll() is None for run in runs):
            if hits.count(SHARDS) == LATE:  # a run that begins again finds everything done
                break
            wait(out, longest, moments)
            place = moments.randrange(2)
            if runs[place].poll() is None:
                os.killpg(runs[place].pid, signal.SIGKILL)
                runs[place].wait()
                hits.append(finished(out))
                runs[place] = start(out, place + 1)
        codes = [run.wait(PATIENCE) for run in runs]
    finally:
        for run in runs:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    if codes != [0, 0]:
        raise SystemExit(f"exit codes {codes}, not 0")
    return hits


def check(out: Path, whole: dict[str, bytes]) -> None:
    different = [name for name, data in tables(out).items() if data != whole[name]]
    if different:
        raise SystemExit(f"differ from those of an undisturbed run: {', '.join(different)}")
    said = subprocess.run(bench("verify", out), check=False, capture_output=True, text=True)
    if said.returncode:
        raise SystemExit(f"bench verify: {said.stdout}{said.stderr}")


def main(kills: int, seed: int) -> None:
    """Spend the kills."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        began = time.monotonic()
        if start(folder / "whole", jobs=1).wait(PATIENCE):
            raise SystemExit("the undisturbed run failed")
        took, whole = time.monotonic() - began, tables(folder / "whole")
        assert finished(folder / "whole") == SHARDS
        print(f"undisturbed: {SHARDS} shards in {took:.0f} s", flush=True)
        spent, turn = 0, 0
        while spent < kills:
            turn += 1
            out = folder / str(turn)
            hits = disturb(out, kills - spent, took, moments)
            spent += len(hits)
            check(out, whole)
            print(f"folder {turn}: killed with {hits} shards done; tables equal", flush=True)
    print(f"{spent} kills, {turn} folders, every table equal to the byte")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    main(asked.kills, asked.seed)
