"""Runs of attacks on toys, with every question written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmark.contract.toy import Toy
from benchmark.drive import play
from benchmark.entry import Choice
from benchmark.facts import AttackFacts
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.types import Aim, Norm, Probes, Problem, Queries, Replies

Answer = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Log(Oracle):
    """An oracle that also writes down each row's queries."""

    asked: dict[int, list[Tensor]] = field(default_factory=dict)

    def __init__(self, problem: Problem, answer: Answer, terms: Terms) -> None:
        super().__init__(problem, answer, None, terms)
        self.asked = {}

    def ask(self, queries: Queries) -> Replies:
        """Answer a round, and keep copies of its questions."""
        for image, row in zip(queries.images, queries.rows.tolist(), strict=True):
            self.asked.setdefault(row, []).append(image.clone())
        return super().ask(queries)


def run(
    choice: Choice[Any],
    problem: Problem,
    answer: Answer,
    ids: Sequence[int],
    seed: int = 0,
    **more: Any,
) -> Log:
    """Let an attack loose; `more` is for `Terms`."""
    facts: AttackFacts = choice.entry.facts
    region = facts.region(problem.probes)
    terms = Terms(choice.entry.name, facts.access, region, goal=facts.goal, **more)
    oracle = Log(problem, answer, terms)
    rng = RowRng([seed_from("contract", seed, image) for image in ids])
    play(choice, problem, rng, oracle)
    return oracle


def pose(
    choice: Choice[Any],
    world: Toy,
    norm: Norm,
    budget: int,
    probes: Probes = Probes.BOX,
    rows: Sequence[int] = (),
) -> Problem:
    """Pose a problem with the first aim that the attack declares."""
    problem = world.problem(norm, budget, probes, rows)
    untargeted = choice.entry.facts.aims[0] is Aim.UNTARGETED
    return problem if untargeted else world.targeted(problem)


def changed(choice: Choice[Any], **values: Any) -> Choice[Any]:
    """Change parameters, as far as the attack has them."""
    known = {name: value for name, value in values.items() if name in choice.values}
    return replace(choice, values={**choice.values, **known})


def never(problem: Problem) -> Answer:
    """A victim that is never fooled, with scores that differ between images."""
    size = problem.images[0].numel()
    slope = torch.linspace(-1.0, 1.0, size, dtype=torch.float64)

    def answer(images: Tensor, rows: Tensor) -> Tensor:
        logits = torch.zeros((len(images), problem.num_classes), dtype=torch.float64)
        for place, image in enumerate(images):
            logits[place, problem.labels[rows[place]]] = 50.0 + slope @ image.flatten()
        return logits

    return answer


def norms(choice: Choice[Any]) -> tuple[Norm, ...]:
    """Norms that the attack supports."""
    norms: tuple[Norm, ...] = choice.entry.facts.norms
    return norms


def trail(log: Log, row: int) -> Tensor:
    """All questions about a row, in order."""
    return torch.stack(log.asked.get(row, [torch.zeros(1)]))
