"""The only door between an attack and a victim: counts, caps, checks, remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmark.errors import QueryError
from benchmark.geometry import allowed, corners, distance
from benchmark.memory import BestImages
from benchmark.objective import Objective
from benchmark.rows import occurrence, spread
from benchmark.scores import Scores
from benchmark.tally import JudgeFn, Seen, Tally
from benchmark.trace import Trace
from benchmark.types import Access, Goal, Norm, Probes, Problem, Queries, Replies

AnswerFn = Callable[[Tensor, Tensor], Tensor]  # images, rows -> logits


@dataclass(frozen=True)
class Terms:
    """What the oracle knows of the attack and of the protocol.

    Attributes:
        name: Name of the attack, for messages.
        access: What replies contain.
        region: Where queries may lie.
        scores: What score access shows.
        checkpoints: Query counts at which the best image so far is remembered.
        goal: What the attack looks for.
        run_to_budget: Broken images are attacked on, for the distances that would be reached.
    """

    name: str
    access: Access = Access.SCORES
    region: Probes = Probes.BALL
    scores: Scores = field(default_factory=Scores)
    checkpoints: Sequence[int] = ()
    goal: Goal = Goal.IN_BALL
    run_to_budget: bool = False


class Oracle:
    """Answers the queries of one attack on the images of one shard.

    Args:
        problem: The images under attack.
        answer: Gives logits for images and rows.
        judge: Decides which hits on a randomised victim are verified; None for a deterministic
            victim.
        terms: What the attack may ask and see.

    Attributes:
        used: (B,) counted queries of each image.
        finished: (B,) bool, True where no more queries are answered.
        tallies: What was reached, at the problem's radius and at others.
        trace: How near the hits were, for an attack that looks for the nearest; else None.
    """

    def __init__(
        self, problem: Problem, answer: AnswerFn, judge: JudgeFn | None, terms: Terms
    ) -> None:
        # Copies: what an attack does to the tensors it was given must not move the ball.
        targets = None if problem.targets is None else problem.targets.clone()
        problem = replace(
            problem, images=problem.images.clone(), labels=problem.labels.clone(), targets=targets
        )
        self.problem, self.terms = problem, terms
        self._depth = Objective(problem)
        self._answer = answer
        images, threat = problem.images, problem.threat
        self.used = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.finished = torch.zeros_like(self.used, dtype=torch.bool)
        self.tallies: list[Tally] = []
        self.count_at(threat.eps, judge)
        seeks = terms.goal is Goal.NEAREST
        self.trace = Trace(len(images), images.device) if seeks else None
        low, high = corners(images, allowed(threat.eps, threat.norm))
        self._lock = _Gathered(low, high)

    def count_at(self, eps: float, judge: JudgeFn | None) -> None:
        """Keep a tally at one more radius; call it before the first question."""
        problem = replace(self.problem, threat=replace(self.problem.threat, eps=eps))
        nearest = self.terms.goal is Goal.NEAREST
        self.tallies.append(Tally(problem, judge, tuple(self.terms.checkpoints), nearest=nearest))

    @property
    def first_hit(self) -> Tensor:
        """(B,) number of the first hit in the problem's ball, 0 for none."""
        return self.tallies[0].first_hit

    @property
    def broken_at(self) -> Tensor:
        """(B,) number of the first verified hit in the problem's ball, 0 for none."""
        return self.tallies[0].broken_at

    @property
    def reach(self) -> Tensor:
        """(B,) distance of the hit that broke the row, NaN for none."""
        return self.tallies[0].reach

    @property
    def memory(self) -> BestImages | None:
        """The best images; None for deterministic victims."""
        return self.tallies[0].memory

    def ask(self, queries: Queries) -> Replies:
        """Answer a round of queries, each row up to its budget.

        All queries of a round are sent together, so all of them count even after a hit.

        Raises:
            QueryError: If a query is malformed or outside the allowed region.
        """
        self._check_form(queries)
        self._lock.turn(queries.rows)
        number = self.used[queries.rows] + self._lock.rank + 1
        sent = ~self.finished[queries.rows] & (number <= self.problem.threat.budget)
        whole = bool(sent.all())
        if not whole:
            images, rows, number = queries.images[sent], queries.rows[sent], number[sent]
            self._lock.turn(rows)
        else:
            images, rows = queries.images, queries.rows
        logits = self._reply(images, rows, number)
        return self._show(queries.rows, logits, sent, whole=whole)

    def _reply(self, images: Tensor, rows: Tensor, number: Tensor) -> Tensor:
        if len(rows) == 0:
            return images.new_zeros((0, self.problem.num_classes))
        self._check_region(images, rows)
        logits = self._answer(images, rows)
        self.used.index_add_(0, rows, torch.ones_like(rows))
        hits, away = self._hits(images, rows, logits)
        judged = self.memory is not None
        margins = self._depth.of(logits, rows) if judged else None
        if self.trace is not None and len(hits):
            self.trace.see(rows[hits], number[hits], away)
        if judged or len(hits):
            seen = Seen(images, rows, number, margins, hits, away)
            for tally in self.tallies:
                tally.see(seen)
        if len(hits) and not self.terms.run_to_budget:
            broken = torch.stack([tally.broken_at > 0 for tally in self.tallies])
            self.finished |= broken.all(0)
        self.finished |= self.used >= self.problem.threat.budget
        return logits

    def _hits(self, images: Tensor, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the adversarial answers to valid images, and how far these lie away."""
        hits = self.problem.adversarial(logits.argmax(1), rows).nonzero()[:, 0]
        if self.terms.region is Probes.FREE and len(hits):
            shown = images[hits].flatten(1)
            hits = hits[(shown.amin(1) >= 0) & (shown.amax(1) <= 1)]
        if not len(hits):
            return hits, images.new_zeros(0)
        centres = self.problem.images[rows[hits]]
        return hits, distance(images[hits], centres, self.problem.threat.norm)

    def beyond(self, images: Tensor, rows: Tensor) -> Tensor:
        """How far images lie outside the ball, (n,); at most 0 inside."""
        threat = self.problem.threat
        away = distance(images, self.problem.images[rows], threat.norm)
        return away - allowed(threat.eps, threat.norm)

    def _check_form(self, queries: Queries) -> None:
        images, rows = queries
        if images.shape[1:] != self.problem.images.shape[1:] or rows.shape != images.shape[:1]:
            raise QueryError(
                f"attack '{self.terms.name}' asked images of shape {tuple(images.shape)} for rows "
                f"of shape {tuple(rows.shape)}; one image is {tuple(self.problem.images.shape[1:])}"
            )
        if images.dtype != self.problem.images.dtype:
            raise QueryError(
                f"attack '{self.terms.name}' asked images of {images.dtype}, "
                f"those it was given are {self.problem.images.dtype}"
            )
        if rows.dtype != torch.int64:
            raise QueryError(
                f"attack '{self.terms.name}' gave rows of type {rows.dtype}, not int64"
            )
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(self.used)):
            raise QueryError(f"attack '{self.terms.name}' asked about a row it was not given")

    def _check_region(self, images: Tensor, rows: Tensor) -> None:
        """Refuse queries outside the region; what is usual is settled by one comparison."""
        if self.terms.region is Probes.BALL and self.problem.threat.norm is Norm.LINF:
            if torch.equal(torch.clamp(images, self._lock.low, self._lock.high), images):
                return
        elif self.terms.region is Probes.BOX:
            low, high = torch.aminmax(images)
            if bool((low >= 0) & (high <= 1)):
                return
        outside = self._outside(images, rows)
        if bool(outside.any()):
            place = int(outside.nonzero()[0])
            raise QueryError(self._complaint(images[place : place + 1], rows[place : place + 1]))

    def _outside(self, images: Tensor, rows: Tensor) -> Tensor:
        """Which images lie outside the region, (n,) bool; NaN lies outside any."""
        if self.terms.region is Probes.FREE:
            return ~images.isfinite().flatten(1).all(1)
        if self.terms.region is Probes.BALL and self.problem.threat.norm is Norm.LINF:
            inside = torch.clamp(images, self._lock.low, self._lock.high) == images
            return ~inside.flatten(1).all(1)
        boxed = ((images >= 0) & (images <= 1)).flatten(1).all(1)
        if self.terms.region is Probes.BOX:
            return ~boxed
        return ~boxed | ~(self.beyond(images, rows) <= 0)

    def _complaint(self, image: Tensor, row: Tensor) -> str:
        threat = self.problem.threat
        away = float(distance(image, self.problem.images[row], threat.norm))
        return (
            f"attack '{self.terms.name}' left its threat model for row {int(row)}: pixels from "
            f"{float(image.amin()):g} to {float(image.amax()):g}, {threat.norm} distance {away:g} "
            f"with eps={threat.eps:g}. Project before asking (benchmark.geometry.project)."
        )

    def _show(self, rows: Tensor, logits: Tensor, sent: Tensor, *, whole: bool) -> Replies:
        """Give back what the access level allows."""
        labels = logits.argmax(1)
        scores: Tensor | None = None
        shown: Tensor | None = None
        if self.terms.access is not Access.LABEL:
            scores, shown = self.terms.scores.show(logits)
        if not whole:
            labels = torch.full_like(rows, -1).masked_scatter_(sent, labels)
            scores, shown = spread(scores, sent, torch.nan), spread(shown, sent, False)
        used = self.used[rows]
        return Replies(labels, sent, self.finished[rows], used, self.left(rows), scores, shown)

    def left(self, rows: Tensor) -> Tensor:
        """Queries that images of these rows may still cost, (n,)."""
        left = self.problem.threat.budget - self.used[rows]
        return left.masked_fill(self.finished[rows], 0)


class _Gathered:
    """What a round needs of its rows, kept while the rows stay the same."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self._all = low, high
        self._rows = torch.arange(len(low), device=low.device)
        self.low, self.high = low, high
        self.rank = torch.zeros_like(self._rows)

    def turn(self, rows: Tensor) -> None:
        if torch.equal(rows, self._rows):
            return
        self._rows = rows.clone()
        self.low, self.high = (tensor[rows] for tensor in self._all)
        self.rank = occurrence(rows)
