"""Toy problems, victims and data that every engine test may use; all arithmetic is row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.config import Config
from benchmark.data import Dataset, Split
from benchmark.defense import Defense
from benchmark.errors import BenchError
from benchmark.facts import Traits
from benchmark.loading import load_dataset, load_victim
from benchmark.oracle import AnswerFn, Oracle, Terms
from benchmark.rng import RowRng
from benchmark.tally import JudgeFn
from benchmark.types import Norm, Probes, Problem, Threat
from benchmark.victim import Victim

SHAPES = ((3, 8, 7), (1, 6, 9))  # neither square, one without colours


def toy_problem(count: int = 3, shape: tuple[int, int, int] = (3, 8, 7), **given: Any) -> Problem:
    """Make float64 images with exact 0 and 1 pixels; pixel (0, 0, 2) of each is 0.5."""
    generator = torch.Generator().manual_seed(given.pop("seed", 0))
    images = torch.rand((count, *shape), generator=generator, dtype=torch.float64)
    images[:, :, 0, 0], images[:, :, -1, -1], images[:, 0, 0, 2] = 0.0, 1.0, 0.5
    classes = given.pop("classes", 4)
    labels = torch.arange(count) % classes
    probes = given.pop("probes", Probes.BOX)
    defaults = {"norm": Norm.LINF, "eps": 0.25, "budget": 100}
    return Problem(images, labels, Threat(**{**defaults, **given}), classes, probes)


def true_label_logits(problem: Problem, rows: Tensor, margins: Sequence[float] | Tensor) -> Tensor:
    """Logits whose margin for the true label is the given number, for each row."""
    logits = torch.zeros((len(rows), problem.num_classes), dtype=torch.float64)
    margins = torch.as_tensor(margins, dtype=torch.float64)
    return logits.scatter_(1, problem.labels[rows][:, None], margins[:, None])


def linear(problem: Problem, seed: int = 0) -> AnswerFn:
    """Answer W x + b, each row on its own; clean images are classified as labelled."""
    generator = torch.Generator().manual_seed(seed)
    shape = (problem.num_classes, problem.images[0].numel())
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    clean = torch.stack([weight @ image.flatten() for image in problem.images])
    wanted = torch.nn.functional.one_hot(problem.labels, problem.num_classes)
    bias = wanted - clean  # one for each image: its own clean logits are the one-hot label

    def answer(images: Tensor, rows: Tensor) -> Tensor:
        pairs = zip(images, rows.tolist(), strict=True)
        return torch.stack([weight @ image.flatten() + bias[row] for image, row in pairs])

    return answer


def constant(problem: Problem) -> AnswerFn:
    """Answer the true label whatever is asked."""
    return lambda _images, rows: true_label_logits(problem, rows, torch.ones(len(rows)))


def turning(problem: Problem, at: Sequence[int]) -> AnswerFn:
    """Answer the true label until query number `at` of each row, and wrong from there on."""
    asked = [0] * len(problem.images)

    def answer(_images: Tensor, rows: Tensor) -> Tensor:
        margins = []
        for row in rows.tolist():
            asked[row] += 1
            margins.append(-1.0 if asked[row] >= at[row] else 1.0)
        return true_label_logits(problem, rows, margins)

    return answer


class Recorder:
    """Passes queries on and keeps copies of them.

    Attributes:
        images: Every image seen, in order.
        rows: The row of each.
        logits: The very tensors that were answered, one for each call.
    """

    def __init__(self, answer: AnswerFn) -> None:
        self._answer = answer
        self.images: list[Tensor] = []
        self.rows: list[int] = []
        self.logits: list[Tensor] = []

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        self.images += list(images.clone())
        self.rows += rows.tolist()
        self.logits.append(self._answer(images, rows))
        return self.logits[-1]

    def counts(self, rows: int) -> list[int]:
        """How often each row was seen."""
        return [self.rows.count(row) for row in range(rows)]


def toy_oracle(
    problem: Problem, answer: AnswerFn, judge: JudgeFn | None = None, **terms: Any
) -> Oracle:
    """Make an oracle for an attack called 'toy'."""
    return Oracle(problem, answer, judge, Terms("toy", **terms))


class Scripted(Defense):
    """Answers right or wrong as scripted for each row, and keeps what it was asked.

    The last entry of a row's script is repeated.
    """

    traits = Traits(randomised=True)

    def __init__(self, labels: Tensor, right: Sequence[Sequence[bool]]) -> None:
        self._labels, self._right = labels, [list(script) for script in right]
        self.asked = [0] * len(right)

    def answer(self, victim, images, context):
        """Answer each row's next scripted entry, one draw of its stream each."""
        context.rng.normal(context.rows, (1,))
        logits = images.new_zeros((len(images), victim.num_classes))
        for place, row in enumerate(context.rows.tolist()):
            script = self._right[row]
            right = script[min(self.asked[row], len(script) - 1)]
            self.asked[row] += 1
            label = int(self._labels[row])
            logits[place, label if right else (label + 1) % victim.num_classes] = 1.0
        return logits


def tiny_network(shape: tuple[int, int, int], classes: int = 4, width: int = 6) -> nn.Module:
    """A network of two stages and a linear head, equal in every call."""
    channels, height, breadth = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * breadth, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )


def tiny_victim(shape: tuple[int, int, int] = (1, 6, 9), **sizes: int) -> Victim:
    """A victim in float64, so that the order of sums does not show."""
    classes = sizes.get("classes", 4)
    network = tiny_network(shape, **sizes)
    channels = [0.5] * shape[0]
    return Victim(network, mean=channels, std=channels, num_classes=classes).double()


def tiny_dataset(
    shape: tuple[int, int, int] = (1, 6, 9), classes: int = 4, count: int = 60
) -> Dataset:
    """Random float64 images; a third of them in each split."""
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.random((count, *shape)))
    order = np.arange(count)
    splits = dict(zip(Split, np.array_split(order, 3), strict=True))
    names = tuple(f"class {i}" for i in range(classes))
    return Dataset("tiny", order % classes, names, splits, lambda ids: images[ids], "f" * 16)


def streams(count: int, purpose: int = 0) -> RowRng:
    """Streams with fixed seeds, one for each row."""
    return RowRng([(purpose << 100) + (row << 70) + row + 1 for row in range(count)])


def refusal(kind: type[BenchError], act: Callable[[], object]) -> str:
    """Call what must be refused with exactly this error; return its one line."""
    with pytest.raises(BenchError) as caught:
        act()
    message = str(caught.value)
    assert caught.type is kind, f"{caught.type.__name__}: {message}"
    assert message.strip()
    assert len(message.splitlines()) == 1
    return message


def digits(budget: int, count: int = 60) -> tuple[Problem, AnswerFn]:
    """Pose the digits of `count` that the shipped victim gets right, at linf 0.1."""
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    samples = data.take(Split.EVAL, count)

    @torch.no_grad()
    def answer(images: Tensor, _rows: Tensor) -> Tensor:
        return victim(images)

    right = answer(samples.images, samples.labels).argmax(1) == samples.labels
    threat = Threat(Norm.LINF, 0.1, budget)
    return Problem(samples.images[right], samples.labels[right], threat, 10), answer
