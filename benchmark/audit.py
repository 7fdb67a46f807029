"""Uncounted looks at a defended victim: clean accuracy, verification (S2), expectation (S3)."""

from __future__ import annotations

from collections.abc import Sequence

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
        forwards: Images shown for verification so far.
    """

    def __init__(self, defended: Defended, problem: Problem, votes: int, rng: RowRng) -> None:
        self._defended, self._problem, self._rng = defended, problem, rng
        self._votes, self._majority = votes, votes // 2 + 1
        self.forwards = 0

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
        self.forwards += len(images) * times
        repeated = rows.repeat_interleave(times)
        logits = self._defended.answer(images.repeat_interleave(times, dim=0), repeated, self._rng)
        wrong = self._problem.adversarial(logits.argmax(1), repeated)
        return wrong.view(-1, times).sum(1)


def expected_broken(
    defended: Defended,
    memory: BestImages,
    problem: Problem,
    marks: Sequence[int],
    draws: int,
    rng: RowRng,
) -> Tensor:
    """Tell whether the mean answer on the best image is adversarial at each checkpoint (S3).

    Returns:
        (B, len(marks)) bool.
    """
    rows = problem.rows
    result = torch.zeros((len(rows), len(marks)), dtype=torch.bool, device=rows.device)
    before: Tensor | None = None
    for place, mark in enumerate(marks):
        images = memory.at(mark)
        changed = torch.ones_like(rows, dtype=torch.bool)
        if before is not None:
            changed = (images != before).flatten(1).any(1)
            result[:, place] = result[:, place - 1]
        index = changed.nonzero()[:, 0]
        total = images.new_zeros((len(index), defended.victim.num_classes))
        for _ in range(draws):
            total += defended.answer(images[index], index, rng).softmax(1)
        result[index, place] = problem.adversarial(total.argmax(1), index)
        before = images
    return result
