"""Peak memory of an attack at 1,000 and at 10,000 queries: it must not grow with the budget.

    python tests/bench/memory.py
    python tests/bench/memory.py --attacks square,nes

Each run is a process of its own: 16 images of 3x32x32 on a victim that costs next to nothing and
is never fooled. What counts is the difference of the two, in MiB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch
from tabulate import tabulate
from torch import Tensor

from benchmark.catalogue import ATTACKS
from benchmark.drive import play
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng
from benchmark.types import Aim, Norm, Probes, Problem, Threat

IMAGES = 16


def peak(name: str, queries: int) -> float:
    """Run one attack; peak memory of this process, MiB."""
    choice = ATTACKS.choose(name)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((IMAGES, 3, 32, 32), generator=generator)
    threat = Threat(Norm.LINF, 8 / 255, queries)
    problem = Problem(images, torch.zeros(IMAGES, dtype=torch.int64), threat, 10)

    def answer(shown: Tensor, rows: Tensor) -> Tensor:
        logits = torch.zeros((len(rows), 10))
        logits[:, 0] = 100.0 + shown[:, :, ::4, ::4].sum((1, 2, 3))
        return logits

    terms = Terms(name, choice.entry.facts.access, choice.entry.facts.region(Probes.BOX))
    play(choice, problem, RowRng(range(IMAGES)), Oracle(problem, answer, None, terms))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours = [entry for entry in ATTACKS if not entry.facts.members]
    untargeted = [entry.name for entry in ours if Aim.UNTARGETED in entry.facts.aims]
    parser.add_argument("--attacks", default=",".join(untargeted))
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(peak(given.attacks, given.only))
        return
    rows = []
    for name in given.attacks.split(","):
        command = [sys.executable, __file__, "--attacks", name, "--only"]
        few, many = (
            float(subprocess.run([*command, str(n)], check=True, capture_output=True).stdout)
            for n in (1000, 10_000)
        )
        rows.append([name, few, many, many - few])
    print(tabulate(rows, ["attack", "1,000 queries", "10,000", "difference"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
