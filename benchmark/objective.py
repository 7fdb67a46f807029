"""What attacks minimise: one sign convention for every loss, targeted or not."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from benchmark.types import Problem, Replies

Loss = Literal["margin", "ce", "prob"]


class Objective:
    """The loss of one attack on one problem; lower is more adversarial.

    | loss | untargeted | targeted |
    |---|---|---|
    | margin | score of the label minus the best other | best other minus score of the target |
    | ce | minus the cross-entropy of the label | cross-entropy of the target |
    | prob | probability of the label | minus the probability of the target |

    Args:
        problem: The images under attack, whose labels or targets are meant.
        loss: Which loss.
    """

    def __init__(self, problem: Problem, loss: Loss = "margin") -> None:
        self._loss = loss
        self._own = problem.labels if problem.targets is None else problem.targets
        self._sign = 1.0 if problem.targets is None else -1.0

    def __call__(self, replies: Replies, rows: Tensor) -> Tensor:
        """Loss of each reply, (n,), NaN where not answered; a mean over repeats (EOT by loss).

        Args:
            replies: Replies of a round.
            rows: (n,) rows of the questions.
        """
        draws = replies.draws
        count = draws.shape[1]
        if count == 1:
            return self.of(draws[:, 0], rows)
        return self.of(draws.flatten(0, 1), rows.repeat_interleave(count)).view(-1, count).mean(1)

    def of(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Loss of scores, (n, K), for images of these rows, (n,)."""
        own = self._own[rows]
        if self._loss == "margin":
            return self._sign * margin(scores, own)
        entropy = functional.cross_entropy(scores, own, reduction="none")
        return self._sign * (-entropy if self._loss == "ce" else (-entropy).exp())


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Score of a label minus the best other score, (n,); negative means it is not predicted."""
    own = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -float("inf"))
    return own[:, 0] - others.amax(1)
