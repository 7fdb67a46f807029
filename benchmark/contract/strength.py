"""Whether an attack is better than guessing, on a linear classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.config import Config
from benchmark.contract.playing import norms, pose, run
from benchmark.contract.toy import Toy, demand, toy
from benchmark.entry import Choice
from benchmark.geometry import column, distance
from benchmark.types import Goal, Norm, Problem


def check_strength(choice: Choice[Any], _config: Config) -> None:
    """It is stronger on the linear victim than as many random questions are."""
    nearest = choice.entry.facts.goal is Goal.NEAREST
    world = toy((3, 8, 8), count=10 if nearest else 40)
    for norm in norms(choice):
        if nearest:
            _compare_distances(choice, world, pose(choice, world, norm, 2000))
            continue
        problem = pose(choice, world, norm, 300)
        broken = int((run(choice, problem, world.answer, range(40)).broken_at > 0).sum())
        chance = _random_corners(world, problem)
        demand(broken > chance, f"{norm}: broke {broken} of 40 images, random corners {chance}")


def _compare_distances(choice: Choice[Any], world: Toy, problem: Problem) -> None:
    log = run(choice, problem, world.answer, range(len(problem.images)), run_to_budget=True)
    found = log.trace.nearest if log.trace else torch.full_like(problem.labels, torch.inf)
    mine, chance = float(found.median()), float(_random_rays(world, problem).median())
    demand(mine < chance, f"median {problem.threat.norm} distance {mine:.3g}, random {chance:.3g}")


def _random_rays(world: Toy, problem: Problem) -> Tensor:
    """Nearest hits, (B,), on random rays, each bisected with eleven questions."""
    source = torch.Generator().manual_seed(2)
    nearest = problem.images.new_full((len(problem.images),), torch.inf)

    def hit(images: Tensor) -> Tensor:
        labels = world.answer(images, problem.rows).argmax(1)
        return problem.adversarial(labels, problem.rows)

    for _ in range(problem.threat.budget // 12):
        noise = torch.randn(problem.images.shape, generator=source, dtype=torch.float64)
        far = (problem.images + noise).clamp(0, 1)
        open_, high = hit(far), torch.ones_like(nearest)
        low = torch.zeros_like(high)
        for _ in range(11):
            middle = (low + high) / 2
            inside = hit(problem.images + column(middle, far) * (far - problem.images))
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        away = high * distance(far, problem.images, problem.threat.norm)
        nearest = torch.where(open_ & (away < nearest), away, nearest)
    return nearest


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
