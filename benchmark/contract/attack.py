"""What every attack must keep, checked on a linear classifier in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmark.config import Config
from benchmark.contract.playing import changed, never, norms, pose, run, trail
from benchmark.contract.toy import demand, global_randomness_watched, toy
from benchmark.drive import play
from benchmark.entry import Choice
from benchmark.errors import AccessError
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.scores import Scores
from benchmark.types import Access, Aim, Goal, Probes

_BUDGETS = (1, 2, 3, 7, 100)
_SHAPES = ((3, 8, 7), (1, 18, 24))


def check_budgets(choice: Choice[Any], _config: Config) -> None:
    """It stays in ball, box and budget, on any image shape and norm."""
    for norm in norms(choice):
        for shape in _SHAPES:
            for budget in _BUDGETS:
                problem = pose(choice, toy(shape), norm, budget)
                log = run(choice, problem, never(problem), range(6))
                most, least = int(log.used.max()), int(log.used.min())
                demand(most <= budget, f"an image was charged {most} at budget {budget}")
                demand(least > 0 or budget < 100, "an image was never asked about at budget 100")


def check_nearest(choice: Choice[Any], _config: Config) -> None:
    """Looking for the nearest adversarial image, it asks the same whatever the ball."""
    if choice.entry.facts.goal is not Goal.NEAREST:
        return
    for norm in norms(choice):
        for shape in _SHAPES:
            world = toy(shape)
            for budget in (7, 200):
                problem = pose(choice, world, norm, budget)
                tiny = replace(problem, threat=replace(problem.threat, eps=1e-9))
                logs = [
                    run(choice, posed, world.answer, range(6), run_to_budget=True)
                    for posed in (problem, tiny)
                ]
                most = int(logs[0].used.max())
                demand(most <= budget, f"an image was charged {most} at budget {budget}")
                for row in range(6):
                    same = torch.equal(*(trail(log, row) for log in logs))
                    demand(same, f"{norm}: row {row} asked otherwise with another radius")


def check_islands(choice: Choice[Any], _config: Config) -> None:
    """An image does not feel its neighbours: alone, reordered or in company."""
    world = toy()
    for norm in norms(choice):
        whole = run(choice, pose(choice, world, norm, 60), world.answer, range(6))
        for rows in ([0], [4], [1, 2], [5, 3, 0], [3, 4, 5], [5, 4, 3, 2, 1, 0]):
            part = run(choice, pose(choice, world, norm, 60, rows=rows), world.answer, rows)
            for place, row in enumerate(rows):
                mine, theirs = trail(part, place), trail(whole, row)
                asked = int(part.used[place])
                same = asked == int(whole.used[row])
                demand(
                    same and torch.equal(mine[:asked], theirs[:asked]),
                    f"image {row} asked other questions among images {rows} than among all",
                )


def check_randomised(choice: Choice[Any], _config: Config) -> None:
    """It is random exactly as declared: same seed, same questions."""
    world = toy()
    problem = pose(choice, world, norms(choice)[0], 100)
    nearest = choice.entry.facts.goal is Goal.NEAREST  # asks noise only until it is fooled
    answer = world.answer if nearest else never(problem)
    logs = [run(choice, problem, answer, range(6), seed, run_to_budget=True) for seed in (1, 1, 2)]
    first, again, other = (torch.cat([trail(log, row) for row in range(6)]) for log in logs)
    demand(torch.equal(first, again), "the same seed gave other questions")
    differs = first.shape != other.shape or not torch.equal(first, other)
    declared = choice.entry.facts.randomised
    demand(differs == declared, f"randomised is declared {declared}, but is {differs}")


def check_global_random_state(choice: Choice[Any], _config: Config) -> None:
    """It draws from its own streams only."""
    world = toy()
    problem = pose(choice, world, norms(choice)[0], 30)
    with global_randomness_watched():
        run(choice, problem, world.answer, range(6))


def check_problem_untouched(choice: Choice[Any], _config: Config) -> None:
    """It leaves the images and labels it was given as they are."""
    world = toy()
    for norm in norms(choice):
        problem = pose(choice, world, norm, 30)
        run(choice, problem, world.answer, range(6))
        demand(torch.equal(problem.images, world.images), "it changed the clean images")
        demand(torch.equal(problem.labels, world.labels), "it changed the labels")


def check_access(choice: Choice[Any], _config: Config) -> None:
    """It needs exactly the access it declares."""
    world = toy()
    problem = pose(choice, world, norms(choice)[0], 30)
    oracle = Oracle(
        problem, never(problem), None, Terms(choice.entry.name, Access.LABEL, Probes.FREE)
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
    problem = pose(choice, world, norms(choice)[0], 40)
    usual, raw = (
        run(choice, problem, world.answer, range(6), scores=Scores.parse(shown))
        for shown in ("log-probabilities", "logits")
    )
    for row in range(6):
        mine, theirs = trail(raw, row), trail(usual, row)
        same = mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-6, rtol=0)
        demand(same, f"row {row}: logits gave other questions than log-probabilities")


def check_aims(choice: Choice[Any], _config: Config) -> None:
    """Aimed at the other of two classes it asks what it asks untargeted."""
    world = toy(classes=2)
    aims = choice.entry.facts.aims
    demand(aims, "it declares no aim")
    for norm in norms(choice):
        problem = world.problem(norm, 40)
        targeted = world.targeted(problem)
        if choice.entry.facts.starts:  # both begin where only a targeted attack is told to
            problem = replace(problem, starts=targeted.starts)
        posed = {Aim.UNTARGETED: problem, Aim.TARGETED: targeted}
        # Of the losses only the margin is the same number from both sides.
        alike = changed(choice, loss="margin")
        logs = [run(alike, posed[aim], world.answer, range(6)) for aim in aims]
        for row in range(6):
            trails = [trail(log, row) for log in logs]
            same = all(torch.equal(trails[0], trail) for trail in trails)
            demand(same, f"{norm}: row {row} asked otherwise when aimed at the other class")


def check_repeats(choice: Choice[Any], _config: Config) -> None:
    """Under EOT it spends whole questions within the budget."""
    world = toy()
    for norm in norms(choice):
        for times in (3, 7):
            problem = pose(choice, world, norm, 100)
            log = run(changed(choice, eot=times), problem, never(problem), range(6))
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
    for norm in norms(choice):
        problem = pose(choice, world, norm, 100, Probes.FREE)
        log = run(choice, problem, never(problem), range(6))
        for row, images in log.asked.items():
            rows = torch.full((len(images),), row)
            outside |= bool((log.beyond(torch.stack(images), rows) > 0).any())
        inside = run(choice, pose(choice, world, norm, 100, Probes.BALL), never(problem), range(6))
        demand(int(inside.used.max()) > 0, "it asks nothing when probes must stay in the ball")
    demand(outside, "probes are declared, but it never leaves the ball")


def check_odd_victims(choice: Choice[Any], _config: Config) -> None:
    """It survives a constant victim and one that answers at random."""
    world = toy()
    for norm in norms(choice):
        problem = pose(choice, world, norm, 50)
        zeros = torch.zeros_like(problem.labels)
        flat = replace(problem, labels=zeros)
        run(choice, flat, _constant, range(6))
        source = torch.Generator().manual_seed(1)

        def at_random(images: Tensor, _rows: Tensor, source: torch.Generator = source) -> Tensor:
            return torch.randn((len(images), 4), generator=source, dtype=torch.float64)

        run(choice, problem, at_random, range(6))


def _constant(images: Tensor, _rows: Tensor) -> Tensor:
    return torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64).repeat(len(images), 1)
