"""The only door between a stealing attack and a victim: counts, caps, checks."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.defended import Defended
from benchmark.errors import QueryError
from benchmark.rng import RowRng
from benchmark.scores import Kind, Scores
from benchmark.stealing.stealer import Stealer

COMPANY = 128  # queries at most that a defense sees together


class Meter:
    """Answers a stealing attack and bills every image.

    Queries reach the defense in the order they were asked, `COMPANY` at a time; the k-th of such a
    group draws from the k-th of that many streams. A stateful defense meets one client.

    Args:
        name: Name of the attack, for messages.
        defended: The victim behind its defense.
        rng: `COMPANY` streams the defense draws its noise from.
        scores: What replies show.
        shape: Shape of one image, (C, H, W).

    Attributes:
        used: Queries answered so far.
    """

    def __init__(
        self,
        name: str,
        defended: Defended,
        rng: RowRng,
        scores: Scores,
        shape: tuple[int, int, int],
    ) -> None:
        self._name, self._defended, self._rng = name, defended, rng
        self._scores, self._shape = scores, shape
        self.used = 0

    def ask(self, images: Tensor, left: int) -> Tensor:
        """Answer queries, (n, C, H, W) in [0, 1], at most `left`.

        Returns:
            Probabilities, (n, K), as far as they are shown: hidden classes have none, and those
            shown add up to one.

        Raises:
            QueryError: If there are more of them, or one is malformed.
        """
        self._check(images, left)
        # A copy: what the attack does to its tensor later must not reach a stateful defense.
        shown = images.detach().clone()
        parts = [self._answer(part) for part in torch.split(shown, COMPANY)]
        self.used += len(images)
        return chances(torch.cat(parts), self._scores)

    def _answer(self, images: Tensor) -> Tensor:
        rows = torch.arange(len(images), device=images.device)
        if self._defended.defense.traits.stateful:
            rows = torch.zeros_like(rows)
        return self._defended.answer(images, rows, self._rng)

    def _check(self, images: Tensor, left: int) -> None:
        who = f"stealing attack '{self._name}'"
        if images.requires_grad:
            raise QueryError(f"{who} asked images that carry a gradient: it gets none")
        if images.shape[1:] != self._shape or not len(images) or images.dtype != torch.float32:
            raise QueryError(
                f"{who} asked images of shape {tuple(images.shape)} and type {images.dtype}; "
                f"one image is {self._shape}, float32"
            )
        if len(images) > left:
            raise QueryError(f"{who} asked {len(images)} queries with {left} left")
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= 0.0 and high <= 1.0):
            raise QueryError(f"{who} asked pixels from {low:g} to {high:g}, outside [0, 1]")


def drain(attack: Stealer, meter: Meter, left: int) -> int:
    """Let an attack take one step; return how many queries it asked."""
    before = meter.used
    steps = attack.step(left)
    try:
        images = next(steps)
        while True:
            images = steps.send(meter.ask(images, left - (meter.used - before)))
    except StopIteration:
        return meter.used - before
    finally:
        steps.close()


def chances(logits: Tensor, scores: Scores) -> Tensor:
    """Turn logits, (n, K), into the probabilities that a client can tell from what is shown."""
    if scores.kind is Kind.LABEL:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    seen, shown = scores.show(logits)
    found = seen.softmax(1) if scores.kind is Kind.LOGITS else seen.exp()
    if shown is not None:
        found = found.masked_fill(~shown, 0.0)
    return found / found.sum(1, keepdim=True)
