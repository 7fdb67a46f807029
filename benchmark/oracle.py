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
from benchmark.types import Access, Norm, Probes, Problem, Queries, Replies

AnswerFn = Callable[[Tensor, Tensor], Tensor]  # images, rows -> logits
JudgeFn = Callable[[Tensor, Tensor], Tensor]  # images, rows -> verified


@dataclass(frozen=True)
class Terms:
    """What the oracle knows of the attack and of the protocol.

    Attributes:
        name: Name of the attack, for messages.
        access: What replies contain.
        region: Where queries may lie.
        scores: What score access shows.
        checkpoints: Query counts at which the best image so far is remembered.
    """

    name: str
    access: Access = Access.SCORES
    region: Probes = Probes.BALL
    scores: Scores = field(default_factory=Scores)
    checkpoints: Sequence[int] = ()


class Oracle:
    """Answers the queries of one attack on the images of one shard.

    Args:
        problem: The images under attack.
        answer: Gives logits for images and rows.
        judge: Decides which hits on a randomised victim are verified; None for a deterministic
            victim, whose hits are verified by themselves.
        terms: What the attack may ask and see.

    Attributes:
        used: (B,) counted queries of each image.
        first_hit: (B,) number of the first query that was a hit (S1), 0 for none.
        broken_at: (B,) number of the query whose hit was verified (S2), 0 for none.
        finished: (B,) bool, True where no more queries are answered.
        memory: The best image so far and at each checkpoint; None for deterministic victims.
        reach: (B,) distance of the image that broke the row, NaN for none.
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
        self._answer, self._judge = answer, judge
        images, threat = problem.images, problem.threat
        counts = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.used, self.first_hit, self.broken_at = counts, counts.clone(), counts.clone()
        self.finished = torch.zeros_like(counts, dtype=torch.bool)
        self.reach = images.new_full((len(images),), torch.nan)
        self.memory = None if judge is None else BestImages(problem, terms.checkpoints)
        low, high = corners(images, allowed(threat.eps, threat.norm))
        self._lock = _Gathered(low, high)
        self._marks = torch.tensor(tuple(terms.checkpoints), device=images.device)

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
        hits = self.problem.adversarial(logits.argmax(1), rows)
        margins = None if self.memory is None else self._depth.of(logits, rows)
        if margins is not None and self.memory is not None:
            self.memory.see(images, rows, number, margins)
        if bool(hits.any()):
            index = hits.nonzero()[:, 0]
            index = index[self._in_ball(images[index], rows[index])]
            if len(index):
                self._hit(images, rows, number, index, margins)
        self.finished |= self.used >= self.problem.threat.budget
        return logits

    def _hit(
        self, images: Tensor, rows: Tensor, number: Tensor, index: Tensor, margins: Tensor | None
    ) -> None:
        """Record hits; of several of one row in a round, up to a checkpoint, one is judged."""
        earliest = index[occurrence(rows[index]) == 0]
        fresh = earliest[self.first_hit[rows[earliest]] == 0]
        self.first_hit[rows[fresh]] = number[fresh]
        if margins is None or self._judge is None:
            return self._break(images[earliest], rows[earliest], number[earliest])
        stretch = torch.bucketize(number, self._marks)  # hits beyond a checkpoint wait
        for part in torch.unique(stretch[index]).tolist():
            now = index[(stretch[index] == part) & ~self.finished[rows[index]]]
            if not len(now):
                continue
            order = now[margins[now].argsort(stable=True)]
            deepest = order[occurrence(rows[order]) == 0]
            verified = deepest[self._judge(images[deepest], rows[deepest])]
            self._break(images[verified], rows[verified], number[verified])
        return None

    def _break(self, images: Tensor, rows: Tensor, number: Tensor) -> None:
        self.broken_at[rows] = number
        self.finished[rows] = True
        centres = self.problem.images[rows]
        self.reach[rows] = distance(images, centres, self.problem.threat.norm)
        if self.memory is not None:
            self.memory.settle(images, rows, number)

    def _in_ball(self, images: Tensor, rows: Tensor) -> Tensor:
        if self.terms.region is Probes.BALL:  # every query was checked already
            return torch.ones_like(rows, dtype=torch.bool)
        inside = (images.flatten(1).amin(1) >= 0) & (images.flatten(1).amax(1) <= 1)
        return inside & (self.beyond(images, rows) <= 0)

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
