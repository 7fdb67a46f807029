"""What every attack must keep, checked on a linear classifier in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmark.catalogue import Choice
from benchmark.config import Config
from benchmark.contract.toy import Toy, demand, global_randomness_watched, toy
from benchmark.drive import play
from benchmark.errors import AccessError
from benchmark.facts import AttackFacts
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.scores import Scores
from benchmark.types import Access, Aim, Goal, Norm, Probes, Problem, Queries, Replies

_BUDGETS = (1, 2, 3, 7, 100)
_SHAPES = ((3, 8, 7), (1, 18, 24))

Answer = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Log(Oracle):
    """An oracle that also writes down each row's queries."""

    asked: dict[int, list[Tensor]] = field(default_factory=dict)

    def __init__(self, problem: Problem, answer: Answer, terms: Terms) -> None:
        super().__init__(problem, answer, None, terms)
        self.asked = {}

    def ask(self, queries: Queries) -> Replies:
        for image, row in zip(queries.images, queries.rows.tolist(), strict=True):
            self.asked.setdefault(row, []).append(image.clone())
        return super().ask(queries)


def _run(
    choice: Choice[Any],
    problem: Problem,
    answer: Answer,
    ids: Sequence[int],
    seed: int = 0,
    scores: str = "log-probabilities",
) -> _Log:
    facts: AttackFacts = choice.entry.facts
    region = facts.region(problem.probes)
    terms = Terms(choice.entry.name, facts.access, region, Scores.parse(scores))
    oracle = _Log(problem, answer, terms)
    rng = RowRng([seed_from("contract", seed, image) for image in ids])
    play(choice, problem, rng, oracle)
    return oracle


def _pose(
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


def _with(choice: Choice[Any], **changed: Any) -> Choice[Any]:
    """Change parameters, as far as the attack has them."""
    known = {name: value for name, value in changed.items() if name in choice.values}
    return replace(choice, values={**choice.values, **known})


def _never(problem: Problem) -> Answer:
    """A victim that is never fooled, with scores that differ between images."""
    size = problem.images[0].numel()
    slope = torch.linspace(-1.0, 1.0, size, dtype=torch.float64)

    def answer(images: Tensor, rows: Tensor) -> Tensor:
        logits = torch.zeros((len(images), problem.num_classes), dtype=torch.float64)
        for place, image in enumerate(images):
            logits[place, problem.labels[rows[place]]] = 50.0 + slope @ image.flatten()
        return logits

    return answer


def _norms(choice: Choice[Any]) -> tuple[Norm, ...]:
    norms: tuple[Norm, ...] = choice.entry.facts.norms
    return norms


def _trail(log: _Log, row: int) -> Tensor:
    return torch.stack(log.asked.get(row, [torch.zeros(1)]))


def check_budgets(choice: Choice[Any], _config: Config) -> None:
    """It stays in ball, box and budget, on any image shape and norm."""
    for norm in _norms(choice):
        for shape in _SHAPES:
            for budget in _BUDGETS:
                problem = _pose(choice, toy(shape), norm, budget)
                log = _run(choice, problem, _never(problem), range(6))
                most, least = int(log.used.max()), int(log.used.min())
                demand(most <= budget, f"an image was charged {most} at budget {budget}")
                demand(least > 0 or budget < 100, "an image was never asked about at budget 100")


def check_islands(choice: Choice[Any], _config: Config) -> None:
    """An image does not feel its neighbours: alone, reordered or in company."""
    world = toy()
    for norm in _norms(choice):
        whole = _run(choice, _pose(choice, world, norm, 60), world.answer, range(6))
        for rows in ([0], [4], [1, 2], [5, 3, 0], [3, 4, 5], [5, 4, 3, 2, 1, 0]):
            part = _run(choice, _pose(choice, world, norm, 60, rows=rows), world.answer, rows)
            for place, row in enumerate(rows):
                mine, theirs = _trail(part, place), _trail(whole, row)
                asked = int(part.used[place])
                same = asked == int(whole.used[row])
                demand(
                    same and torch.equal(mine[:asked], theirs[:asked]),
                    f"image {row} asked other questions among images {rows} than among all",
                )


def check_randomised(choice: Choice[Any], _config: Config) -> None:
    """It is random exactly as declared: same seed, same questions."""
    world = toy()
    problem = _pose(choice, world, _norms(choice)[0], 100)
    first, again, other = (
        torch.cat(
            [_trail(_run(choice, problem, _never(problem), range(6), s), r) for r in range(6)]
        )
        for s in (1, 1, 2)
    )
    demand(torch.equal(first, again), "the same seed gave other questions")
    differs = first.shape != other.shape or not torch.equal(first, other)
    declared = choice.entry.facts.randomised
    demand(differs == declared, f"randomised is declared {declared}, but is {differs}")


def check_global_random_state(choice: Choice[Any], _config: Config) -> None:
    """It draws from its own streams only."""
    world = toy()
    problem = _pose(choice, world, _norms(choice)[0], 30)
    with global_randomness_watched():
        _run(choice, problem, world.answer, range(6))


def check_problem_untouched(choice: Choice[Any], _config: Config) -> None:
    """It leaves the images and labels it was given as they are."""
    world = toy()
    for norm in _norms(choice):
        problem = _pose(choice, world, norm, 30)
        _run(choice, problem, world.answer, range(6))
        demand(torch.equal(problem.images, world.images), "it changed the clean images")
        demand(torch.equal(problem.labels, world.labels), "it changed the labels")


def check_access(choice: Choice[Any], _config: Config) -> None:
    """It needs exactly the access it declares."""
    world = toy()
    problem = _pose(choice, world, _norms(choice)[0], 30)
    oracle = Oracle(
        problem, _never(problem), None, Terms(choice.entry.name, Access.LABEL, Probes.FREE)
    )
    rng = RowRng([seed_from("contract", image) for image in range(6)])
    reads = False
    try:
        play(choice, problem, rng, oracle)
    except AccessError:
        reads = True
    declared = choice.entry.facts.access
    demand(reads == (declared is not Access.LABEL), f"access is declared '{declared}': wrong")


def check_shown(choice: Choice[Any], _config: Config) -> None:
    """It needs no more of the scores than log-probabilities show."""
    world = toy()
    problem = _pose(choice, world, _norms(choice)[0], 40)
    usual, raw = (
        _run(choice, problem, world.answer, range(6), scores=shown)
        for shown in ("log-probabilities", "logits")
    )
    for row in range(6):
        mine, theirs = _trail(raw, row), _trail(usual, row)
        same = mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-6, rtol=0)
        demand(same, f"row {row}: logits gave other questions than log-probabilities")


def check_aims(choice: Choice[Any], _config: Config) -> None:
    """Aimed at the other of two classes it asks what it asks untargeted."""
    world = toy(classes=2)
    aims = choice.entry.facts.aims
    demand(aims, "it declares no aim")
    for norm in _norms(choice):
        problem = world.problem(norm, 40)
        posed = {Aim.UNTARGETED: problem, Aim.TARGETED: world.targeted(problem)}
        # Of the losses only the margin is the same number from both sides.
        alike = _with(choice, loss="margin")
        logs = [_run(alike, posed[aim], world.answer, range(6)) for aim in aims]
        for row in range(6):
            trails = [_trail(log, row) for log in logs]
            same = all(torch.equal(trails[0], trail) for trail in trails)
            demand(same, f"{norm}: row {row} asked otherwise when aimed at the other class")


def check_repeats(choice: Choice[Any], _config: Config) -> None:
    """Under EOT it spends whole questions within the budget."""
    world = toy()
    for norm in _norms(choice):
        for times in (3, 7):
            problem = _pose(choice, world, norm, 100)
            log = _run(_with(choice, eot=times), problem, _never(problem), range(6))
            most, least = int(log.used.max()), int(log.used.min())
            demand(least > 0 and most <= 100, f"charged {least} to {most} of 100 at eot {times}")
            demand(not bool((log.used % times).any()), f"a question cost other than {times}")


def check_probes(choice: Choice[Any], _config: Config) -> None:
    """It asks outside the ball exactly if it declares probes."""
    facts = choice.entry.facts
    if facts.goal is Goal.NEAREST or not facts.probes:
        return  # the oracle refuses every question outside the ball in all other checks
    world = toy()
    outside = False
    for norm in _norms(choice):
        problem = _pose(choice, world, norm, 100, Probes.FREE)
        log = _run(choice, problem, _never(problem), range(6))
        for row, images in log.asked.items():
            rows = torch.full((len(images),), row)
            outside |= bool((log.beyond(torch.stack(images), rows) > 0).any())
        inside = _run(
            choice, _pose(choice, world, norm, 100, Probes.BALL), _never(problem), range(6)
        )
        demand(int(inside.used.max()) > 0, "it asks nothing when probes must stay in the ball")
    demand(outside, "probes are declared, but it never leaves the ball")


def check_odd_victims(choice: Choice[Any], _config: Config) -> None:
    """It survives a constant victim and one that answers at random."""
    world = toy()
    for norm in _norms(choice):
        problem = _pose(choice, world, norm, 50)
        zeros = torch.zeros_like(problem.labels)
        flat = replace(problem, labels=zeros)
        _run(choice, flat, _constant, range(6))
        source = torch.Generator().manual_seed(1)

        def at_random(images: Tensor, _rows: Tensor, source: torch.Generator = source) -> Tensor:
            return torch.randn((len(images), 4), generator=source, dtype=torch.float64)

        _run(choice, problem, at_random, range(6))


def _constant(images: Tensor, _rows: Tensor) -> Tensor:
    return torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64).repeat(len(images), 1)


def check_strength(choice: Choice[Any], _config: Config) -> None:
    """It breaks the linear victim more often than random corners of the ball do."""
    world = toy((3, 8, 8), count=40)
    for norm in _norms(choice):
        problem = _pose(choice, world, norm, 300)
        broken = int((_run(choice, problem, world.answer, range(40)).broken_at > 0).sum())
        chance = _random_corners(world, problem)
        demand(broken > chance, f"{norm}: broke {broken} of 40 images, random corners {chance}")


def _random_corners(world: Toy, problem: Problem) -> int:
    source = torch.Generator().manual_seed(2)
    fooled = torch.zeros(len(problem.images), dtype=torch.bool)
    size, eps = problem.images[0].numel(), problem.threat.eps
    scale = eps if problem.threat.norm is Norm.LINF else eps / size**0.5
    for _ in range(problem.threat.budget):
        signs = torch.randint(0, 2, problem.images.shape, generator=source) * 2 - 1
        images = (problem.images + scale * signs).clamp(0, 1)
        fooled |= problem.adversarial(world.answer(images, problem.rows).argmax(1), problem.rows)
    return int(fooled.sum())
