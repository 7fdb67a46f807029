"""A victim behind its defense: the only thing that answers queries."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmark.defense import Defense, QueryContext
from benchmark.errors import VictimError
from benchmark.rng import RowRng
from benchmark.rows import occurrence
from benchmark.victim import Victim


class Defended:
    """Answers queries of any number in batches of one size.

    Args:
        victim: The victim.
        defense: The defense, prepared.
        batch: Images in one forward pass.
        company: Images at most that a coupled defense sees together; None for all that are sent.

    Attributes:
        forwards: Images shown so far, counted queries and uncounted looks together.
    """

    def __init__(
        self, victim: Victim, defense: Defense, batch: int, company: int | None = None
    ) -> None:
        self.victim = victim
        self.defense = defense
        self.batch = batch
        self.company = company
        self.forwards = 0

    @property
    def steady(self) -> bool:
        """Identical queries always get identical answers, whatever else is asked."""
        return self.defense.traits.steady and self.victim.steady

    def fresh(self) -> Defended:
        """The same with a defense that has answered nothing yet; only of one that has not."""
        return Defended(self.victim, copy.deepcopy(self.defense), self.batch, self.company)

    @torch.no_grad()
    def answer(self, images: Tensor, rows: Tensor, rng: RowRng) -> Tensor:
        """Answer queries.

        Args:
            images: (n, C, H, W), in [0, 1] unless the probe policy allows more.
            rows: (n,) owner of each query, a row of `rng`.
            rng: Streams the defense draws its noise from, one per owner.

        Returns:
            Logits, (n, K).

        Raises:
            VictimError: If the answer has the wrong shape or a value that is not finite.
        """
        self.forwards += len(images)
        if self.defense.traits.coupled:
            return self._waves(images, rows, rng)
        parts = [
            self._ask(images[start : start + self.batch], rows[start : start + self.batch], rng)
            for start in range(0, len(images), self.batch)
        ]
        if not parts:
            return images.new_empty((0, self.victim.num_classes))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _waves(self, images: Tensor, rows: Tensor, rng: RowRng) -> Tensor:
        """Send the k-th query of every image in one call: a batch of different images."""
        rank = occurrence(rows)
        logits = images.new_empty((len(images), self.victim.num_classes))
        for wave in torch.unique(rank).tolist():
            for members in (rank == wave).nonzero()[:, 0].split(self.company or len(images)):
                logits[members] = self._ask(images[members], rows[members], rng)
        return logits

    def _ask(self, images: Tensor, rows: Tensor, rng: RowRng) -> Tensor:
        logits = self.defense.answer(self.victim, images, QueryContext(rng, rows))
        expected = (len(images), self.victim.num_classes)
        if logits.shape != expected:
            raise VictimError(
                f"{self._who} answered with shape {tuple(logits.shape)}, expected {expected}"
            )
        if not bool(logits.isfinite().all()):
            bad = int(rows[~logits.isfinite().all(1)][0])
            raise VictimError(f"{self._who} answered with NaN or infinity for row {bad}")
        return logits

    @property
    def _who(self) -> str:
        network, defense = type(self.victim.network), type(self.defense)
        return f"victim '{network.__name__}' with defense '{defense.__name__}'"
