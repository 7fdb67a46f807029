"""Plant regressions in a copy of the code: `bench regress` must catch each, and nothing else.

python tests/planted.py                  # the three, and twenty unchanged reruns of smoke
python tests/planted.py 5 --elsewhere    # as if on another processor: tests instead of equality

The reference is that of the checkout; on a processor of another kind than it was made on both
ways are the same. Reruns take about a minute each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Other instructions, so other last digits: those of a processor that has no AVX-512, and in torch
# itself no AVX at all.
ELSEWHERE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}
MOVED = 3  # exit code


@dataclass(frozen=True)
class Plant:
    """A regression: one replacement of text that is there exactly once."""

    file: str
    old: str
    new: str


PLANTS = {
    "Square's p halved": Plant(
        "registry/attacks/square.py", "area = p or (0.05 if", "area = p or (0.025 if"
    ),
    "RND's noise shared by a batch": Plant(
        "registry/defenses/rnd.py",
        "noisy = context.rng.normal(context.rows, images.shape[1:]).to(images)",
        "noisy = context.rng.normal(context.rows, images.shape[1:]).to(images)[:1]\n"
        "        noisy = noisy.repeat(len(images), 1, 1, 1)",
    ),
    "an off-by-one in the count": Plant(
        "benchmark/oracle.py", "+ self._lock.rank + 1", "+ self._lock.rank"
    ),
}


def copy(folder: Path, plant: Plant | None = None) -> Path:
    """Copy the code, and change it."""
    for name in ("benchmark", "registry"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if plant:
        path = folder / plant.file
        text = path.read_text(encoding="utf-8")
        assert text.count(plant.old) == 1, plant
        path.write_text(text.replace(plant.old, plant.new), encoding="utf-8")
    return folder


def regress(code: Path, suite: str, more: list[str], elsewhere: bool) -> tuple[int, str]:
    """Rerun a suite with a copy of the code; exit code, and what was said."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYBENCH_")}
    env |= {"PYTHONPATH": str(code), **(ELSEWHERE if elsewhere else {})}
    command = [sys.executable, "-m", "benchmark.cli", "regress", suite, *more]
    reference = ["--reference", str(ROOT / "results" / "reference")]
    done = subprocess.run(
        [*command, *reference], env=env, cwd=code, check=False, capture_output=True, text=True
    )
    return done.returncode, done.stdout + ("" if done.returncode in {0, MOVED} else done.stderr)


def main(reruns: int, suite: str, jobs: int | None, elsewhere: bool) -> int:
    """Plant each regression, and rerun the unchanged code; how many went wrong."""
    more = [] if jobs is None else ["--jobs", str(jobs)]
    asked = [(name, plant, MOVED) for name, plant in PLANTS.items()]
    asked += [(f"unchanged {turn + 1} of {reruns}", None, 0) for turn in range(reruns)]
    wrong = 0
    for name, plant, wanted in asked:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="querybench-") as folder:
            code, said = regress(copy(Path(folder), plant), suite, more, elsewhere)
        wrong += code != wanted
        verdict = "as it must be" if code == wanted else f"WRONG, not {wanted}"
        print(f"\n{name}: exit code {code}, {verdict}; {time.monotonic() - began:.0f} s")
        print("\n".join(f"    {line}" for line in said.splitlines()), flush=True)
    print(f"\n{len(asked) - wrong} of {len(asked)} as they must be")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reruns", type=int, nargs="?", default=20)
    parser.add_argument("--suite", default="smoke")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--elsewhere", action="store_true")
    given = parser.parse_args()
    sys.exit(min(1, main(given.reruns, given.suite, given.jobs, given.elsewhere)))
