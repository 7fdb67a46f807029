"""Logits on which a defense that keeps labels could lose one."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.config import Config
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.fitting import attach
from benchmark.loading import load_dataset, load_victim
from benchmark.rng import RowRng, seed_from
from benchmark.stack import DefenseChoice


def awkward_logits(classes: int, tau: float, count: int = 10_000) -> Tensor:
    """Make float32 logits of all scales: random, tied, nearly tied, and margins of k * tau.

    A quarter of the rows is of each kind; levels and scales vary by row.
    """
    generator = torch.Generator().manual_seed(classes)
    scales = 10.0 ** torch.empty(count, 1).uniform_(-3, 2, generator=generator)
    logits = torch.randn(count, classes, generator=generator) * scales
    logits += torch.randn(count, 1, generator=generator) * 20
    quarter = count // 4
    places = torch.rand(count, classes, generator=generator).argsort(1)[:, :2]
    best, second = places[:, :1], places[:, 1:]
    tops = logits.amax(1, keepdim=True).ceil()  # margins of whole numbers are exact
    margins = torch.zeros(count, 1)
    close = slice(2 * quarter, 3 * quarter)
    margins[close] = (torch.nextafter(tops, tops + 1) - tops)[close]
    margins[3 * quarter :] = torch.arange(count - 3 * quarter)[:, None] % 9 * tau
    changed = logits.scatter(1, second, tops).scatter(1, best, tops + margins)
    changed = torch.where(torch.arange(count)[:, None] < quarter, logits, changed)
    # All classes tie in some of the tied rows.
    changed[quarter : quarter + 100] = changed[quarter : quarter + 100, :1]
    return changed


def digits_accuracy(name: str, count: int = 300) -> tuple[float, float]:
    """Accuracy of the shipped victim under a defense, and how many labels are the bare one's."""
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    samples = data.take(Split.EVAL, count)
    defense, _ = attach(DefenseChoice.parse(name), victim, data, Config().cache_folder)
    rows = torch.arange(count)
    answers = Defended(victim, defense, 64).answer(
        samples.images, rows, RowRng([seed_from(row) for row in range(count)])
    )
    with torch.no_grad():
        bare = victim(samples.images).argmax(1)
    labels = answers.argmax(1)
    kept = float((labels == bare).float().mean())
    return float((labels == samples.labels).float().mean()), kept
