"""Kill a run again and again; the tables must come out as if nothing had happened.

python tests/bench/kill_resume.py --kills 20

Each run is started by the same command in a process group of its own; at a random moment the
whole group gets SIGKILL. After the last kill the run may finish. Its tables are compared byte
for byte with those of a run that nothing interrupted.
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
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(sys.executable).with_name("bench")
TABLES = ("cells.csv", "shards.csv", "images.parquet")
EARLIEST, LATEST = 3.0, 10.0  # seconds after the start; the first seconds only import


@dataclass(frozen=True)
class Workload:
    """The command that is killed, without its folder.

    Attributes:
        images: Images of each of the four cells.
        shard: Images in a shard.
        jobs: Processes.
    """

    images: int
    shard: int
    jobs: int

    @property
    def shards(self) -> int:
        """Shards of the whole run: two attacks, without and with a defense."""
        return 4 * -(-self.images // self.shard)

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Start a run that goes on where the folder stands."""
        options = ["--attacks", "square,nes", "--defenses", "unig", "--queries", "100"]
        options += ["--images", str(self.images), "--shard", str(self.shard)]
        command = [BENCH, "run", *options, "--jobs", str(self.jobs), "--out", out]
        env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYBENCH_")}
        return subprocess.Popen(command, start_new_session=True, env=env, stdout=subprocess.DEVNULL)


def done(out: Path) -> int:
    """Count the finished shards."""
    return len(list((out / "shards").glob("*.json")))


def interrupt(work: Workload, out: Path, moment: float) -> bool:
    """Start the run and kill its process group at a moment; tell if it was still running."""
    process = work.start(out)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def kill_often(work: Workload, out: Path, kills: int, seed: int) -> int:
    """Kill the run at random moments; return how many kills met a run in progress."""
    moments, hits = random.Random(seed), 0
    for number in range(1, kills + 1):
        moment = moments.uniform(EARLIEST, LATEST)
        met = interrupt(work, out, moment)
        hits += met
        said = "killed" if met else "had finished before"
        print(f"{number:3} {said} at {moment:5.2f} s, {done(out):4}/{work.shards} shards done")
    return hits


def finish(work: Workload, out: Path) -> float:
    """Let the run finish; return the seconds it took."""
    began = time.monotonic()
    code = work.start(out).wait()
    if code:
        raise SystemExit(f"the run ended with exit code {code}")
    return time.monotonic() - began


def main() -> int:
    """Do it all; 0 if every kill met a run in progress and all tables are equal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--shard", type=int, default=4)
    given = parser.parse_args()
    work = Workload(given.images, given.shard, given.jobs)
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder, "killed"), Path(folder, "whole")
        hits = kill_often(work, killed, given.kills, given.seed)
        left = len(list(killed.rglob("*.tmp")))
        print(f"{hits} of {given.kills} kills met a run in progress, {left} temporary files left")
        print(f"finished after the kills in {finish(work, killed):.0f} s")
        print(f"uninterrupted run: {finish(work, whole):.0f} s")
        equal = {n: (killed / n).read_bytes() == (whole / n).read_bytes() for n in TABLES}
        for name, same in equal.items():
            print(f"{name}: {'identical' if same else 'DIFFERENT'}")
    return 0 if all(equal.values()) and hits == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
