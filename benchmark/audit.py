"""Uncounted looks at a defended victim: clean answers, verification (S2), submission (S3, S4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.defended import Defended
from benchmark.memory import BestImages
from benchmark.rng import RowRng
from benchmark.types import Problem


def clean_hits(
    defended: Defended, images: Tensor, labels: Tensor, draws: int, rng: RowRng
) -> Tensor:
    """Count for each image how many of `draws` answers are right, (n,).

    A deterministic victim is asked once.
    """
    rows = torch.arange(len(images), device=images.device)
    right = torch.zeros_like(rows)
    for _ in range(draws):
        right += defended.answer(images, rows, rng).argmax(1) == labels
    return right


class Judge:
    """Verifies hits by a majority of fresh answers, asking no more than settles the vote.

    Attributes:
        asked: (B,) answers asked for verification so far, of each image under attack.
    """

    def __init__(self, defended: Defended, problem: Problem, votes: int, rng: RowRng) -> None:
        self._defended, self._problem, self._rng = defended, problem, rng
        self._votes, self._majority = votes, votes // 2 + 1
        self.asked = torch.zeros_like(problem.labels)

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Tell which images, (n, C, H, W), by a majority of answers are adversarial, (n,) bool."""
        # No vote is settled before a majority was asked, so these go together.
        wrong = self._ask(images, rows, self._majority)
        for asked in range(self._majority, self._votes):
            open_ = (wrong < self._majority) & (asked - wrong < self._majority)
            if not bool(open_.any()):
                break
            wrong[open_] += self._ask(images[open_], rows[open_], 1)
        return wrong >= self._majority

    def _ask(self, images: Tensor, rows: Tensor, times: int) -> Tensor:
        self.asked.index_add_(0, rows, torch.full_like(rows, times))
        repeated = rows.repeat_interleave(times)
        logits = self._defended.answer(images.repeat_interleave(times, dim=0), repeated, self._rng)
        wrong = self._problem.adversarial(logits.argmax(1), repeated)
        return wrong.view(-1, times).sum(1)


class Submitted(NamedTuple):
    """What fresh answers say of the best image at each checkpoint.

    Attributes:
        expected_broken: (B, checkpoints) bool: the mean answer is adversarial (S3).
        wrong: (B, checkpoints) int64: how many of the answers were adversarial (S4).
        asked: (B,) answers that were asked for.
    """

    expected_broken: Tensor
    wrong: Tensor
    asked: Tensor


def submit(
    defended: Defended,
    memory: BestImages,
    problem: Problem,
    marks: Sequence[int],
    draws: int,
    rng: RowRng,
) -> Submitted:
    """Ask `draws` answers to the best image of each row at each checkpoint."""
    rows = problem.rows
    broken = torch.zeros((len(rows), len(marks)), dtype=torch.bool, device=rows.device)
    wrong = torch.zeros_like(broken, dtype=torch.int64)
    asked = torch.zeros_like(rows)
    before: Tensor | None = None
    for place, mark in enumerate(marks):
        images = memory.at(mark)
        changed = torch.ones_like(rows, dtype=torch.bool)
        if before is not None:
            changed = (images != before).flatten(1).any(1)
            broken[:, place], wrong[:, place] = broken[:, place - 1], wrong[:, place - 1]
        index = changed.nonzero()[:, 0]
        total = images.new_zeros((len(index), defended.victim.num_classes))
        adversarial = torch.zeros_like(index)
        for _ in range(draws):
            logits = defended.answer(images[index], index, rng)
            total += logits.softmax(1)
            adversarial += problem.adversarial(logits.argmax(1), index)
        asked[index] += draws
        broken[index, place] = problem.adversarial(total.argmax(1), index)
        wrong[index, place] = adversarial
        before = images
    return Submitted(broken, wrong, asked)
