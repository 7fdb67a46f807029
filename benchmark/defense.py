"""A defense turns a classifier into another classifier; it never sees the attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

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
    is made for each shard, so state cannot leak. `inside` is for a defense that needs weights or
    gradients of its victim though its level does not say so: one that runs elsewhere has none.
    """

    inside: bool = False
    traits: Traits = Traits()
    learned: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def members(self) -> Sequence[Defense]:
        """The defenses this one is made of: itself, unless it is a stack."""
        return (self,)

    @property
    def splits(self) -> bool:
        """It acts on penultimate features, so the victim must have a last linear layer."""
        return type(self).on_penultimate is not Defense.on_penultimate

    @property
    def flagged_queries(self) -> int:
        """Queries so far that it took for parts of an attack; 0 of a defense that detects none."""
        return 0

    def check(self, victim: Victim) -> None:
        """Refuse a victim the defense cannot be attached to (SpecError, VictimError)."""

    def recipe(self) -> Mapping[str, object]:
        """Return all that training depends on, as plain data; empty if nothing is trained."""
        return {}

    def fit(self, victim: Victim, data: Dataset) -> Iterator[float]:
        """Train the victim in place, a copy, from split `train`; yield the share done.

        Called once for each recipe, victim and data set: the result is cached. Tensors besides
        the victim's weights go into `learned`, which is cached with them.
        """
        del victim, data
        yield 1.0

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Measure or store what the defense needs, once, from the splits that are not attacked."""

    def sites(self, victim: Victim) -> Sequence[str]:
        """Name what `on_features` changes: `layer1` is a module's output, `in:layer1` its input."""
        del victim
        return ()

    def on_images(self, images: Tensor, context: QueryContext) -> Tensor:
        """Change the images, (n, C, H, W) in [0, 1]."""
        del context
        return images

    def on_features(self, features: Tensor, site: str, context: QueryContext) -> Tensor:
        """Change what flows through a site, (n, ...)."""
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

    @contextmanager
    def editing(self, victim: Victim, context: QueryContext) -> Iterator[None]:
        """Change the outputs of the stages while the context lasts."""
        edits = {
            site: partial(self.on_features, site=site, context=context)
            for site in self.sites(victim)
        }
        with victim.edited(edits):
            yield

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Answer queries with logits, (n, K).

        Overridden by defenses that need several passes; the default calls the hooks in order.
        """
        images = self.on_images(images, context)
        with self.editing(victim, context):
            if not self.splits:
                return self.on_logits(victim.classify(images), context)
            features = victim.features(images)
        changed = self.on_penultimate(features, victim, context)
        return self.on_logits(victim.head(changed), context)
