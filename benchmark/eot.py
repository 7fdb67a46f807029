"""Expectation over transformation: every question asked several times, and the answers reduced."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.oracle import Oracle
from benchmark.rows import occurrence, spread
from benchmark.types import Queries, Replies

Reduction = Literal["logits", "loss", "probabilities"]

# Parameters that every attack has besides its own: `square[eot=5,reduce=loss]`.
PARAMETERS: dict[str, tuple[Any, Any]] = {
    "eot": (Annotated[int, Field(ge=1, le=1000)], 1),
    "reduce": (Reduction, "logits"),
}


class Repeated:
    """Stands before an oracle and asks each question `times` times.

    Every repeat is a query: counted, capped, and a hit if its own answer is adversarial. A
    question that the budget no longer pays in full is not asked; an image that can pay for none
    is finished. Attacks see one reply a question:

    | reduction | scores | loss |
    |---|---|---|
    | logits | mean of logits, or of log-probabilities: equal but for an offset | of these |
    | loss | as above | mean of the losses of the single answers |
    | probabilities | logarithm of the mean probabilities | of these |

    Labels are those of the reduced scores, or by vote where only labels are shown.

    Args:
        oracle: Where the queries go.
        times: Queries a question.
        reduction: How scores are reduced.
    """

    def __init__(self, oracle: Oracle, times: int, reduction: Reduction = "logits") -> None:
        self._oracle, self._times, self._reduction = oracle, times, reduction
        self.terms = oracle.terms

    @property
    def finished(self) -> Tensor:
        """(B,) bool, True where no question can be asked any more."""
        rows = self._oracle.problem.rows
        return self._oracle.finished | (self._oracle.left(rows) < self._times)

    def ask(self, queries: Queries) -> Replies:
        """Ask a round of questions; see `Oracle.ask`."""
        if self._times == 1:
            return self._oracle.ask(queries)
        images, rows = queries
        sent = (occurrence(rows) + 1) * self._times <= self._oracle.left(rows)
        index = sent.nonzero()[:, 0].repeat_interleave(self._times)
        replies = self._oracle.ask(Queries(images[index], rows[index]))
        return self._reduce(replies, rows, sent)

    def _reduce(self, replies: Replies, rows: Tensor, sent: Tensor) -> Replies:
        votes = replies.labels.view(-1, self._times).mode(1).values
        labels = torch.full_like(rows, -1).masked_scatter_(sent, votes)
        finished, used = self.finished[rows], self._oracle.used[rows]
        remaining = (self._oracle.left(rows) // self._times).masked_fill(finished, 0)
        told = Replies(labels, sent, finished, used, remaining)
        if replies.bare:
            return told
        draws = replies.scores.view(-1, self._times, replies.scores.shape[1])
        scores = self._mean(draws)
        labels = labels.masked_scatter(sent, scores.argmax(1))
        kept = draws if self._reduction == "loss" else None
        shown = None if replies.shown is None else replies.shown.view_as(draws).any(1)
        return replace(
            told,
            labels=labels,
            _scores=spread(scores, sent, torch.nan),
            _draws=spread(kept, sent, torch.nan),
            shown=spread(shown, sent, False),
        )

    def _mean(self, draws: Tensor) -> Tensor:
        if self._reduction == "probabilities":
            return draws.log_softmax(2).logsumexp(1) - math.log(draws.shape[1])
        return draws.mean(1)
