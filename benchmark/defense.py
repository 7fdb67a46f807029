"""A defense turns a classifier into another classifier; it never sees the attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmark.data import Dataset
from benchmark.facts import Traits
from benchmark.rng import RowRng
from benchmark.victim import Victim


@dataclass(frozen=True)
class QueryContext:
    """What a defense knows of the queries it answers.

    Attributes:
        rng: One stream per owner; a draw for `rows` gives each query its own noise.
        rows: (n,) the owner of each query, as a row of `rng`. Queries of one owner come in
            the order they were asked.
    """

    rng: RowRng
    rows: Tensor


class Defense:
    """Base of all defenses: override the hook of the level at which the defense acts.

    A subclass is a dataclass with keyword-only fields; they are its parameters. A new instance
    is made for each shard, so state cannot leak.
    """

    traits: Traits = Traits()

    def check(self, victim: Victim) -> None:
        """Refuse a victim the defense cannot be attached to (SpecError, VictimError)."""

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Measure or store what the defense needs, once, from the splits that are not attacked."""

    def sites(self, victim: Victim) -> Sequence[str]:
        """Name the stages whose outputs `on_features` changes."""
        del victim
        return ()

    def on_images(self, images: Tensor, context: QueryContext) -> Tensor:
        """Change the images, (n, C, H, W) in [0, 1]."""
        del context
        return images

    def on_features(self, features: Tensor, site: str, context: QueryContext) -> Tensor:
        """Change the output of a stage, (n, ...)."""
        del site, context
        return features

    def on_penultimate(self, features: Tensor, victim: Victim, context: QueryContext) -> Tensor:
        """Change the input of the last linear layer, (n, d)."""
        del victim, context
        return features

    def on_logits(self, logits: Tensor, context: QueryContext) -> Tensor:
        """Change the logits, (n, K)."""
        del context
        return logits

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Answer queries with logits, (n, K).

        Overridden by defenses that need several passes; the default calls the hooks in order.
        """
        images = self.on_images(images, context)
        edits = {
            site: partial(self.on_features, site=site, context=context)
            for site in self.sites(victim)
        }
        with victim.edited(edits):
            if type(self).on_penultimate is Defense.on_penultimate:
                return self.on_logits(victim(images), context)
            features = victim.features(images)
        changed = self.on_penultimate(features, victim, context)
        return self.on_logits(victim.head(changed), context)
