"""Speed of the parts: `pytest tests/bench --benchmark-enable -n0`; a plain run only tries them.

No time is asserted: machines differ. What was measured stands in docs/performance.md.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmark.catalogue import ATTACKS
from benchmark.drive import play
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.types import Aim, Goal, Norm, Probes, Problem, Threat

ROWS, QUERIES = 128, 200


def shard() -> Problem:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((ROWS, 3, 32, 32), generator=generator)
    threat = Threat(Norm.LINF, 8 / 255, QUERIES)
    return Problem(images, torch.zeros(ROWS, dtype=torch.int64), threat, 10)


def nearly_free(images, rows):
    """A victim of one small matrix product that is never fooled."""
    logits = torch.zeros((len(images), 10))
    logits[:, 0] = 100.0 + images[:, :, ::4, ::4].sum((1, 2, 3))
    return logits


def fooled_far_away(images, rows):
    """As cheap, and fooled by some noise images, as attacks that look for the nearest need."""
    logits = torch.zeros((len(images), 10))
    logits[:, 0] = images[:, :, ::4, ::4].sum((1, 2, 3)) - 94
    return logits


def whole_attack(name: str) -> int:
    problem, choice = shard(), ATTACKS.choose(name)
    facts = choice.entry.facts
    nearest = facts.goal is Goal.NEAREST
    if nearest:
        problem = replace(problem, threat=replace(problem.threat, norm=facts.norms[0]))
    terms = Terms(name, region=facts.region(Probes.BOX), goal=facts.goal, run_to_budget=nearest)
    oracle = Oracle(problem, fooled_far_away if nearest else nearly_free, None, terms)
    play(choice, problem, RowRng([seed_from(row) for row in range(ROWS)]), oracle)
    return int(oracle.used.sum())


OURS = [entry for entry in ATTACKS if not entry.facts.members]
UNTARGETED = [entry.name for entry in OURS if Aim.UNTARGETED in entry.facts.aims]


@pytest.mark.parametrize("name", UNTARGETED)
def test_an_attack_on_a_nearly_free_victim(benchmark, name):
    queries = benchmark(whole_attack, name)
    assert queries > 0.95 * ROWS * QUERIES
    if benchmark.enabled:
        benchmark.extra_info["queries_per_second"] = queries / benchmark.stats.stats.median


def test_normals_of_a_batch_of_images(benchmark):
    rng, rows = RowRng(range(64)), torch.arange(64)
    assert benchmark(rng.normal, rows, (3, 32, 32)).shape == (64, 3, 32, 32)


def test_integers_of_a_batch_of_images(benchmark):
    rng, rows = RowRng(range(64)), torch.arange(64)
    assert benchmark(rng.integers, rows, 7, (4,)).shape == (64, 4)
