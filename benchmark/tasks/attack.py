"""The task `attack`: robust accuracy of one cell, a shard at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmark import audit
from benchmark.catalogue import ATTACKS
from benchmark.data import Dataset, Samples, Split
from benchmark.defended import Defended
from benchmark.drive import play
from benchmark.errors import DataError
from benchmark.facts import AttackFacts
from benchmark.fitting import attach_part
from benchmark.loading import load_for
from benchmark.oracle import Oracle, Terms
from benchmark.protocol import Protocol
from benchmark.rng import RowRng
from benchmark.spec import Cell, Part, Shard
from benchmark.streams import attack_streams, defense_streams
from benchmark.surroundings import Surroundings
from benchmark.tally import Tally
from benchmark.targets import draw_targets, starts
from benchmark.types import Aim, Problem
from benchmark.victim import Victim


@dataclass(frozen=True)
class ShardResult:
    """What a finished shard leaves.

    Attributes:
        shard: What was run.
        images: Columns of `ImageRow` except the key, one list each.
        costs: Queries counted, for verification and for audits; images in a forward pass.
        seconds: Wall time.
    """

    shard: Shard
    images: dict[str, list[Any]]
    costs: dict[str, int]
    seconds: float


class _Streams:
    """Makes the random streams of a shard, each named by its purpose."""

    def __init__(self, shard: Shard, device: torch.device) -> None:
        self._cell, self._device = shard.cell, device

    def attack(self, ids: list[int]) -> RowRng:
        return attack_streams(self._cell.attack, self._cell.seed, ids, self._device)

    def defense(self, purpose: str, ids: list[int]) -> RowRng:
        name = self._cell.defense.record["name"]
        return defense_streams(purpose, name, self._cell.seed, ids, self._device)


def run_shards(shards: Sequence[Shard], surroundings: Surroundings) -> list[ShardResult]:
    """Attack the images of a shard and audit the outcome.

    Args:
        shards: One shard, or several that differ in the radius alone (`spec.together`): then
            one attack serves all of them.
        surroundings: Where.

    Raises:
        BenchError: If attack, defense or victim break a rule.
    """
    began = time.perf_counter()
    surroundings.load_plugins()
    cell, config, device = shards[0].cell, surroundings.config, torch.device(surroundings.device)
    dataset, bare = load_for(cell, config, surroundings.device)
    defense, victim = attach_part(cell.defense, bare, dataset, config.cache_folder)
    samples = dataset.take(Split.EVAL, shards[0].count, shards[0].first)
    batch = surroundings.batch_for(samples.images[0].numel())

    # Looking must not touch what the attack meets, so every purpose gets an instance of its own.
    desk = Defended(victim, defense, batch).fresh
    images, labels = samples.images.to(device), samples.labels.to(device)
    streams = _Streams(shards[0], device)
    clean = desk()
    draws = 1 if clean.steady else cell.protocol.votes
    ids = samples.ids.tolist()
    right = audit.clean_hits(clean, images, labels, draws, streams.defense("clean", ids))
    attacked = 2 * right > draws
    ids = [image for image, chosen in zip(ids, attacked.tolist(), strict=True) if chosen]
    problem = _problem(cell, images[attacked], labels[attacked], ids, dataset, bare)
    counted = desk()
    oracle, judges = _attack(shards, problem, ids, streams, desk, counted)
    seen = _Seen(samples, right, draws, attacked, oracle)
    results = []
    for shard, tally, judge in zip(shards, oracle.tallies, judges, strict=True):
        looking = desk()
        submitted = _submitted(problem, tally, cell.protocol, looking, streams, ids)
        costs = {
            "counted_queries": int(oracle.used.sum()),
            "verification_queries": judge.forwards if judge else 0,
            "audit_queries": clean.forwards + looking.forwards,
            "flagged_queries": counted.defense.flagged_queries,
            "batch": batch,
        }
        columns = _columns(seen, tally, submitted)
        results.append(ShardResult(shard, columns, costs, time.perf_counter() - began))
    return results


def _problem(
    cell: Cell, images: Tensor, labels: Tensor, ids: list[int], dataset: Dataset, victim: Victim
) -> Problem:
    """Pose the attacked images, with targets and starting images where they are needed."""
    facts: AttackFacts = ATTACKS.choose(cell.attack.text).entry.facts
    problem = Problem(images, labels, cell.threat, dataset.num_classes, cell.protocol.probes)
    if cell.threat.aim is Aim.UNTARGETED:
        return problem
    targets = draw_targets(labels, ids, dataset.num_classes, cell.seed)
    found = starts(targets, ids, dataset, victim, cell.seed) if facts.starts else None
    return replace(problem, targets=targets, starts=found)


def _attack(
    shards: Sequence[Shard],
    problem: Problem,
    ids: list[int],
    streams: _Streams,
    desk: Callable[[], Defended],
    counted: Defended,
) -> tuple[Oracle, list[audit.Judge | None]]:
    cell = shards[0].cell
    choice = ATTACKS.choose(cell.attack.text)
    _same_packages(choice.entry.packages, cell.attack)
    facts = choice.entry.facts
    noise = streams.defense("counted", ids)
    judges: list[audit.Judge | None] = [None] * len(shards)
    if not counted.steady:
        votes = cell.protocol.votes
        judges = [
            audit.Judge(desk(), problem, votes, streams.defense("verify", ids)) for _ in shards
        ]
    terms = Terms(
        choice.entry.name,
        facts.access,
        facts.region(cell.protocol.probes),
        cell.protocol.scores,
        cell.protocol.budgets,
        facts.goal,
        cell.protocol.run_to_budget,
    )

    def answer(images: Tensor, rows: Tensor) -> Tensor:
        return counted.answer(images, rows, noise)

    oracle = Oracle(problem, answer, judges[0], terms)
    for shard, judge in zip(shards[1:], judges[1:], strict=True):
        oracle.count_at(shard.cell.threat.eps, judge)
    if ids:
        play(choice, problem, streams.attack(ids), oracle)
    return oracle, judges


def _same_packages(here: Mapping[str, str], attack: Part) -> None:
    """Refuse to run an attack of another library in another version than its key says."""
    planned = attack.record.get("packages", {})
    if dict(here) != planned:
        raise DataError(
            f"attack '{attack.name}' was planned with {planned}, this worker has {here}"
        )


def _submitted(
    problem: Problem,
    tally: Tally,
    protocol: Protocol,
    defended: Defended,
    streams: _Streams,
    ids: list[int],
) -> audit.Submitted:
    """What answers to the best image say at each budget; S3 and S4."""
    budgets, draws = protocol.budgets, protocol.draws
    if tally.memory is None:  # every answer is the mean answer
        at = tally.broken_at[:, None]
        broken = (at > 0) & (at <= torch.tensor(budgets, device=at.device))
        return audit.Submitted(broken, draws * broken)
    rng = streams.defense("expected", ids)
    return audit.submit(defended, tally.memory, problem, budgets, draws, rng)


class _Seen(NamedTuple):
    """What is the same at every radius."""

    samples: Samples
    right: Tensor
    draws: int
    attacked: Tensor
    oracle: Oracle


def _columns(seen: _Seen, tally: Tally, submitted: audit.Submitted) -> dict[str, list[Any]]:
    """Rows of all images of the shard; those not attacked have no hit and spent nothing."""
    samples, oracle = seen.samples, seen.oracle

    def spread(values: list[Any], default: Any) -> list[Any]:
        found = iter(values)
        return [next(found, default) if chosen else default for chosen in seen.attacked.tolist()]

    targets = oracle.problem.targets
    numbers, distances = oracle.trace.lists() if oracle.trace else ([], [])
    budgets = submitted.wrong.shape[1]
    return {
        "image": samples.ids.tolist(),
        "label": samples.labels.tolist(),
        "target": spread([] if targets is None else targets.tolist(), None),
        "clean_draws": [seen.draws] * len(seen.right),
        "clean_correct": seen.right.tolist(),
        "attacked": seen.attacked.tolist(),
        "queries": spread(oracle.used.tolist(), 0),
        "first_hit": spread([n or None for n in tally.first_hit.tolist()], None),
        "broken_at": spread([n or None for n in tally.broken_at.tolist()], None),
        "distance": spread([None if math.isnan(d) else d for d in tally.reach.tolist()], None),
        "expected_broken": spread(submitted.expected_broken.tolist(), [True] * budgets),
        "wrong_answers": spread(submitted.wrong.tolist(), None),
        "trace_queries": spread(numbers, None),
        "trace_distances": spread(distances, None),
    }
