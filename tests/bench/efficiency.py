"""Harness efficiency: queries per second of an attack over the bare victim's images per second.

    python tests/bench/efficiency.py                  # the embedded digits' victim
    python tests/bench/efficiency.py --model resnet20 # needs QUERYBENCH_DATA and QUERYBENCH_WEIGHTS

Bare and attacked rates are measured in turn in one process with one thread, so that a machine
whose speed drifts changes both; the median of the ratios is what counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor

from benchmark.catalogue import ATTACKS, DATASETS
from benchmark.config import load_config
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import Defense
from benchmark.drive import drive
from benchmark.loading import load_dataset, load_victim
from benchmark.machine import settle
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.tasks.attack import usual_batch
from benchmark.types import Norm, Probes, Problem, Threat
from benchmark.victim import Victim

SIZES = (4, 8, 16, 32, 64, 128)


def rate(work: Callable[[], int], seconds: float) -> float:
    """Images per second of repeated work."""
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        done += work()
    return done / spent


def bare(
    victim: Victim, images: Tensor, sizes: tuple[int, ...], seconds: float
) -> dict[int, float]:
    """Images per second of the bare victim at several batch sizes."""

    def forward(batch: int) -> Callable[[], int]:
        @torch.no_grad()
        def work() -> int:
            for part in images.split(batch):
                victim(part)
            return len(images)

        return work

    return {batch: rate(forward(batch), seconds) for batch in sizes}


def attacked(name: str, problem: Problem, answer: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Counted queries per second of one attack on one shard."""
    choice = ATTACKS.choose(name)
    facts = choice.entry.facts
    region = problem.probes if facts.probes else Probes.BALL
    oracle = Oracle(problem, answer, None, Terms(name, facts.access, region))
    start = time.perf_counter()
    rng = RowRng([seed_from("bench", name, row) for row in range(len(problem.images))])
    drive(choice.entry.build(problem, rng, **choice.values), oracle)
    return int(oracle.used.sum()) / (time.perf_counter() - start)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist-cnn")
    parser.add_argument("--attacks", default="square,nes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500)
    given = parser.parse_args()
    settle()
    data_name = next(e.name for e in DATASETS if e.facts.model == given.model)
    eps = DATASETS.get(data_name).facts.eps[Norm.LINF]
    config = load_config()
    data = load_dataset(data_name, config)
    victim = load_victim(given.model, data_name, config, "cpu")
    samples = data.take(Split.EVAL, 128)
    with torch.no_grad():
        right = victim(samples.images).argmax(1) == samples.labels
    images, labels = samples.images[right], samples.labels[right]
    batch = usual_batch(torch.device("cpu"), images[0].numel())
    defended = Defended(victim, Defense(), batch)
    rng = RowRng([0] * len(images))

    def answer(shown: Tensor, rows: Tensor) -> Tensor:
        return defended.answer(shown, rows, rng)

    cases = {"never broken, 64 images": (64, 1e-6), "real run, 100 images": (100, eps)}
    ratios: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(given.repeats):
        for name in given.attacks.split(","):
            for case, (count, radius) in cases.items():
                threat = Threat(Norm.LINF, radius, given.queries)
                problem = Problem(images[:count], labels[:count], threat, data.num_classes)
                before = max(bare(victim, images, SIZES, 0.5).values())
                queries = attacked(name, problem, answer)
                after = max(bare(victim, images, SIZES, 0.5).values())
                ratios.setdefault((name, case), []).append((queries, (before + after) / 2))
    rows = []
    for (name, case), pairs in ratios.items():
        shares = [queries / forward for queries, forward in pairs]
        rows.append(
            [
                name,
                case,
                statistics.median(q for q, _ in pairs),
                statistics.median(f for _, f in pairs),
                statistics.median(shares),
                min(shares),
                max(shares),
            ]
        )
    headers = ["attack", "case", "queries/s", "bare images/s", "efficiency", "min", "max"]
    print(tabulate(rows, headers, floatfmt=("", "", ".0f", ".0f", ".3f", ".3f", ".3f")))
    speeds = bare(victim, images, SIZES, 1.0)
    print("bare images/s by batch: " + ", ".join(f"{b}: {v:.0f}" for b, v in speeds.items()))
    print(f"batch of the harness: {batch}")


if __name__ == "__main__":
    main()
