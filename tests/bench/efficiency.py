"""Harness efficiency: queries per second of an attack over the bare victim's images per second.

    python tests/bench/efficiency.py                  # the embedded digits' victim
    python tests/bench/efficiency.py --model resnet20 # needs QUERYBENCH_DATA and QUERYBENCH_WEIGHTS

The attack is stopped every half second to time the bare victim for a fifth, at one of its three
best batch sizes in turn, in one process with one thread: a machine whose speed drifts changes all
rates alike. The best of the three is what the attack is compared with. `inside` is the share of the
attack's time that the victim took: steadier, but blind to batches that are smaller than the best.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch
from tabulate import tabulate
from torch import Tensor

from benchmark.catalogue import ATTACKS, DATASETS
from benchmark.config import load_config
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import Defense
from benchmark.drive import play
from benchmark.loading import load_dataset, load_victim
from benchmark.machine import settle
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.surroundings import usual_batch
from benchmark.types import Norm, Problem, Threat
from benchmark.victim import Victim

SIZES = (4, 8, 16, 32, 64, 128)
ATTACK_SECONDS, BARE_SECONDS = 0.5, 0.2


class Bare:
    """Times the bare victim on whole passes over the images."""

    def __init__(self, victim: Victim, images: Tensor) -> None:
        self._victim, self._images = victim, images
        self.best = sorted(SIZES, key=lambda size: -self.rate(size, 1.0))[:3]

    @torch.no_grad()
    def spend(self, batch: int, seconds: float) -> tuple[int, float]:
        """Images and seconds of at least that long."""
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            for part in self._images.split(batch):
                self._victim(part)
            done += len(self._images)
        return done, spent

    def rate(self, batch: int, seconds: float) -> float:
        """Images per second."""
        done, spent = self.spend(batch, seconds)
        return done / spent


class Paused:
    """Answers an attack's queries, and times the bare victim in between."""

    def __init__(self, defended: Defended, bare: Bare, rows: int) -> None:
        self._defended, self._bare, self._rng = defended, bare, RowRng([0] * rows)
        self._spent = {size: [0, 0.0] for size in bare.best}
        self._turns = itertools.cycle(bare.best)
        self._last = time.perf_counter()
        self.inside = 0.0

    @property
    def seconds(self) -> float:
        """Length of all pauses."""
        return sum(seconds for _, seconds in self._spent.values())

    @property
    def rate(self) -> float:
        """Bare images per second at the best batch size."""
        return max(images / seconds for images, seconds in self._spent.values())

    def __call__(self, shown: Tensor, rows: Tensor) -> Tensor:
        """Answer; every half second, pause."""
        if time.perf_counter() - self._last > ATTACK_SECONDS:
            size = next(self._turns)
            for place, value in enumerate(self._bare.spend(size, BARE_SECONDS)):
                self._spent[size][place] += value
            self._last = time.perf_counter()
        began = time.perf_counter()
        logits = self._defended.answer(shown, rows, self._rng)
        self.inside += time.perf_counter() - began
        return logits


def attacked(name: str, problem: Problem, answer: Paused) -> tuple[float, float, float]:
    """Counted queries per second of one attack, the bare rate meanwhile, the share inside."""
    choice = ATTACKS.choose(name)
    facts = choice.entry.facts
    terms = Terms(name, facts.access, facts.region(problem.probes), goal=facts.goal)
    oracle = Oracle(problem, answer, None, terms)
    start = time.perf_counter()
    rng = RowRng([seed_from("bench", name, row) for row in range(len(problem.images))])
    play(choice, problem, rng, oracle)
    spent = time.perf_counter() - start - answer.seconds
    return int(oracle.used.sum()) / spent, answer.rate, answer.inside / spent


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist-cnn")
    parser.add_argument("--attacks", default="square,nes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--images", type=int, default=64, help="of which none is broken")
    given = parser.parse_args()
    settle()
    data_name = next(e.name for e in DATASETS if e.facts.model == given.model)
    usual = DATASETS.get(data_name).facts.eps
    config = load_config()
    data = load_dataset(data_name, config)
    victim = load_victim(given.model, data_name, config, "cpu")
    samples = data.take(Split.EVAL, 150)
    with torch.no_grad():
        right = victim(samples.images).argmax(1) == samples.labels
    images, labels = samples.images[right], samples.labels[right]
    batch = usual_batch(torch.device("cpu"), images[0].numel())
    defended = Defended(victim, Defense(), batch)
    bare = Bare(victim, images)
    cases = {f"never broken, {given.images} images": given.images, "real run, 100 images": 100}
    ratios: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for _ in range(given.repeats):
        for name in given.attacks.split(","):
            norms = ATTACKS.choose(name).entry.facts.norms
            norm = Norm.LINF if Norm.LINF in norms else Norm.L2
            for case, count in cases.items():
                eps = 1e-6 if case.startswith("never") else usual[norm]
                threat = Threat(norm, eps, given.queries)
                problem = Problem(images[:count], labels[:count], threat, data.num_classes)
                answer = Paused(defended, bare, count)
                ratios.setdefault((name, case), []).append(attacked(name, problem, answer))
    rows = []
    for (name, case), found in ratios.items():
        shares = [queries / forward for queries, forward, _ in found]
        rows.append(
            [
                name,
                case,
                statistics.median(q for q, _, _ in found),
                statistics.median(f for _, f, _ in found),
                statistics.median(shares),
                min(shares),
                max(shares),
                statistics.median(i for _, _, i in found),
            ]
        )
    headers = ["attack", "case", "queries/s", "bare images/s", "efficiency", "min", "max", "inside"]
    print(tabulate(rows, headers, floatfmt=("", "", ".0f", ".0f", ".3f", ".3f", ".3f", ".3f")))
    speeds = {size: bare.rate(size, 1.0) for size in SIZES}
    print("bare images/s by batch: " + ", ".join(f"{b}: {v:.0f}" for b, v in speeds.items()))
    print(f"batches of the bare victim: {bare.best}")
    print(f"batch of the harness: {batch}")


if __name__ == "__main__":
    main()
