"""Victims that show labels only, and what attacks on them asked."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from support import Recorder, toy_problem
from torch import Tensor

from benchmark.drive import drive
from benchmark.geometry import push
from benchmark.oracle import AnswerFn, Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.types import Access, Goal, Norm, Probes, Problem, Steps


def attacked(
    attack: Callable[..., Steps], problem: Problem, answer: AnswerFn, **parameters: object
) -> tuple[Oracle, Recorder]:
    """Run an attack to the budget whatever it finds; the oracle, and every query."""
    record = Recorder(answer)
    terms = Terms("toy", Access.LABEL, Probes.BOX, goal=Goal.NEAREST, run_to_budget=True)
    oracle = Oracle(problem, record, None, terms)
    rng = RowRng([seed_from("labels", row) for row in range(len(problem.images))])
    drive(attack(problem, rng, **parameters), oracle)
    return oracle, record


def trail(record: Recorder, row: int) -> Tensor:
    """Queries of one row, in order."""
    shown = [image for image, owner in zip(record.images, record.rows, strict=True) if owner == row]
    return torch.stack(shown)


def hits(problem: Problem, answer: AnswerFn, images: Tensor, row: int) -> Tensor:
    """Which images would be adversarial for a row, (n,) bool."""
    rows = torch.full((len(images),), row)
    return problem.adversarial(answer(images, rows).argmax(1), rows)


def flat(
    norm: Norm, budget: int, count: int = 4, shape: tuple[int, int, int] = (3, 8, 8)
) -> tuple[Problem, AnswerFn, Tensor]:
    """Pose images far from the box's faces before a linear boundary; their least distances, (B,).

    Two classes; every image lies on the side of its label, at a distance that the box allows.
    """
    problem = toy_problem(count, shape, norm=norm, budget=budget, classes=2, eps=1e-6)
    source = torch.Generator().manual_seed(7)
    images = 0.4 + 0.2 * torch.rand(problem.images.shape, generator=source, dtype=torch.float64)
    problem.images.copy_(images)
    weight = torch.randn(images[0].numel(), generator=source, dtype=torch.float64)
    dual = weight.norm() if norm is Norm.L2 else weight.abs().sum()
    least = torch.linspace(0.01, 0.02, count, dtype=torch.float64)
    least *= 1.0 if norm is Norm.LINF else images[0].numel() ** 0.5 / 2
    clean = torch.stack([weight @ image.flatten() for image in images])
    sign = 1.0 - 2.0 * problem.labels  # label 0 lies where the sum is above the threshold

    def answer(shown: Tensor, rows: Tensor) -> Tensor:
        sums = torch.stack([weight @ image.flatten() for image in shown])
        score = (sums - clean[rows]) + sign[rows] * least[rows] * dual
        return torch.stack([score, torch.zeros_like(score)], 1)

    return problem, answer, least


def follow(
    steps: Generator[Tensor | None, bool, None], shown: Tensor, found: Tensor, atol: float = 1e-9
) -> Tensor | None:
    """Compare questions with those of a plain loop that is sent the answers; its next one."""
    expected = next(steps)
    for number, (image, hit) in enumerate(zip(shown, found.tolist(), strict=True), 1):
        assert expected is not None
        assert torch.allclose(image, expected, atol=atol), f"question {number}"
        expected = steps.send(hit)
    return expected


def blended(clean: Tensor, far: Tensor) -> Generator[Tensor, bool, Tensor]:
    """Halve the way back from a start ten times; the nearest point that hit."""
    least, most = 0.0, 1.0
    for _ in range(10):
        middle = (least + most) / 2
        if (yield clean + middle * (far - clean)):
            most = middle
        else:
            least = middle
    return clean + most * (far - clean)


def broken_by_noise(problem: Problem, answer: AnswerFn) -> float:
    """Share of images that a hundred random images of the ball break."""
    source, threat = torch.Generator().manual_seed(0), problem.threat
    broken = torch.zeros_like(problem.labels, dtype=torch.bool)
    for _ in range(100):
        if threat.norm is Norm.LINF:
            noise = threat.eps * (2 * torch.rand(problem.images.shape, generator=source) - 1)
            images = (problem.images + noise).clamp(0, 1)
        else:
            noise = 1e-3 * torch.randn(problem.images.shape, generator=source)
            images = push(problem.images + noise, problem.images, threat.eps, threat.norm)
        broken |= problem.adversarial(answer(images, problem.rows).argmax(1), problem.rows)
    return float(broken.float().mean())
