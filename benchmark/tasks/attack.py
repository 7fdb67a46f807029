"""The task `attack`: robust accuracy of one cell, a shard at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmark import audit
from benchmark.catalogue import ATTACKS
from benchmark.data import Dataset
from benchmark.defended import Defended
from benchmark.drive import play
from benchmark.errors import DataError
from benchmark.facts import AttackFacts
from benchmark.fitting import attach_part
from benchmark.loading import load_for
from benchmark.oracle import Oracle, Terms
from benchmark.packing import Pack
from benchmark.protocol import Protocol
from benchmark.rng import RowRng
from benchmark.spec import Cell, Part, Shard
from benchmark.streams import attack_streams, defense_streams
from benchmark.surroundings import Surroundings
from benchmark.tally import Tally
from benchmark.targets import draw_targets, starts
from benchmark.tasks.columns import Seen, columns_of, spent_by_image
from benchmark.types import Aim, Problem
from benchmark.victim import Victim


@dataclass(frozen=True)
class ShardResult:
    """What a finished shard leaves.

    Attributes:
        shard: What was run.
        images: Columns of `ImageRow` except the key, one list each.
        costs: Queries counted, for verification and for audits; images in a forward pass.
        seconds: Wall time; of images that were run as one its share by their number.
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
    """Attack the images of shards and audit the outcome.

    Args:
        shards: One shard, or several that are run as one: they differ in the radius
            (`spec.together`), in the images (`packing.packed`), or in both, each radius with the
            same images.
        surroundings: Where.

    Raises:
        BenchError: If attack, defense or victim break a rule.
    """
    began = time.perf_counter()
    surroundings.load_plugins()
    cell, config, device = shards[0].cell, surroundings.config, torch.device(surroundings.device)
    dataset, bare = load_for(cell, config, surroundings.device)
    defense, victim = attach_part(cell.defense, bare, dataset, config.cache_folder)
    pack = Pack.of(shards)
    samples = pack.take(dataset)
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
    oracle, judges = _attack(pack.radii, problem, ids, streams, desk, counted)
    seen = Seen(samples, right, draws, attacked, oracle)
    results = []
    for shard, tally, judge in zip(pack.radii, oracle.tallies, judges, strict=True):
        submitted = _submitted(problem, tally, cell.protocol, desk(), streams, ids)
        columns = columns_of(seen, tally, submitted)
        spent = spent_by_image(seen, judge, submitted)
        more = {"flagged_queries": counted.defense.flagged_queries, "batch": batch}
        for one, mine in pack.members(shard):
            costs = {name: sum(values[mine]) for name, values in spent.items()}
            part = {name: values[mine] for name, values in columns.items()}
            seconds = (time.perf_counter() - began) * one.count / len(right)
            results.append(ShardResult(one, part, {**costs, **more}, seconds))
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
        return audit.Submitted(broken, draws * broken, torch.zeros_like(tally.broken_at))
    rng = streams.defense("expected", ids)
    return audit.submit(defended, tally.memory, problem, budgets, draws, rng)
