"""Blacklight: recognises the near-copies that an attack asks, by hashes of pieces of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from benchmark.data import Dataset, Split
from benchmark.defense import Defense, QueryContext
from benchmark.errors import SpecError
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.rng import RowRng, seed_from
from benchmark.rows import occurrence
from benchmark.victim import Victim
from registry.parts.history import NOTHING, History, room

_SMALL = 64  # pixels a side: up to here the windows of CIFAR-10, above those of ImageNet
_BASE = -0x61C8864680B583EB  # odd, so that it has an inverse modulo 2**64
_UNBASE = pow(_BASE, -1, 1 << 64) - (1 << 64)
_ROUNDS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))  # as splitmix64 ends

_OARS = "OARS (Feng et al., CCS 2023), its configuration of Blacklight"
_REJECTS = "flagged queries are rejected there"


@defense(
    source=Source(
        paper="Li et al.: Blacklight: Scalable Defense for Neural Networks against Query-Based "
        "Black-Box Attacks (USENIX Security)",
        url="https://arxiv.org/abs/2006.14042",
        year=2022,
        differences=(
            "a flagged query is answered like the earlier query it resembles most, where the "
            "paper rejects it: an answer is always well defined, and a rejection is never taken "
            "for a misclassification",
            "each image under attack is a client of its own, with a memory of its own",
            "windows are hashed by a polynomial modulo 2**64, not by SHA-256",
            "images with fewer different windows than `kept` are compared by those they have",
            "windows run along the rows of one colour channel after the other",
        ),
    ),
    level=Level.ANSWER,
    traits=Traits(stateful=True),
    presets={
        "oars-cifar": Preset(f"{_OARS}, CIFAR-10", {"window": 20, "stride": 1}, note=_REJECTS),
        "oars-imagenet": Preset(f"{_OARS}, ImageNet", {"window": 50, "stride": 25}, note=_REJECTS),
    },
    examples=("[kept=7,stride=3,window=5]", "[threshold=0.02]"),
)
@dataclass(kw_only=True)
class Blacklight(Defense):
    """Flags a query whose digest shares enough hashes with that of an earlier one.

    The digest: the salted image is rounded to few levels, every window of it is hashed, and
    the first `kept` different hashes by value stand for the image. All queries are remembered,
    flagged ones too; memory grows with their number.

    Attributes:
        threshold: Share of a digest's hashes found in an earlier digest of the same owner from
            which on a query is flagged; above 1 none is.
        window: Values in a window; none for 20 on images of up to 64 pixels a side, else 50.
        stride: Values from one window to the next; none for 1, or 25 on larger images.
        round: Width of a level, in units of the [0, 255] range.
        kept: Hashes in a digest.
        salt: Seed of the salt image.
        flagged: (owners,) flagged queries of each owner since its last reset, int64.
    """

    threshold: Annotated[float, Field(gt=0)] = 0.5
    window: Annotated[int, Field(ge=1)] | None = None
    stride: Annotated[int, Field(ge=1)] | None = None
    round: Annotated[float, Field(ge=1, le=255)] = 50.0
    kept: Annotated[int, Field(ge=1)] = 50
    salt: Annotated[int, Field(ge=0)] = 0
    flagged: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.int64), init=False, repr=False
    )
    _image: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)
    _history: History = field(init=False, repr=False)

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Draw the salt image and start with an empty memory.

        Raises:
            SpecError: If a window is larger than an image.
        """
        image = data.take(Split.CALIBRATE, 1).images[0].to(victim.mean)
        window, _ = self._widths(image)
        if window > image.numel():
            raise SpecError(f"window={window} is larger than an image of {image.numel()} values")
        rng = RowRng([seed_from("blacklight", self.salt)])
        self._image = rng.uniform(torch.zeros(1, dtype=torch.int64), image.shape)[0].to(image)
        self._history = History(self.kept, image.new_empty((0, victim.num_classes)))
        self.flagged = torch.zeros(0, dtype=torch.int64, device=image.device)

    @property
    def asked(self) -> Tensor:
        """Queries that each owner has asked since its last reset, (owners,) int64."""
        return self._history.asked

    @property
    def flagged_queries(self) -> int:
        """Flagged queries of all owners."""
        return int(self.flagged.sum())

    def reset(self, owner: int) -> None:
        """Forget the queries of an owner and how many of them were flagged."""
        self._history.forget(owner)
        if owner < len(self.flagged):
            self.flagged[owner] = 0

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Answer queries, those of one owner in their order; logits, (n, K)."""
        logits: Tensor = victim(images)
        digests, sizes = self.digest(images)
        turns = occurrence(context.rows)
        for turn in range(int(turns.max()) + 1):
            now = (turns == turn).nonzero()[:, 0]
            logits[now] = self._one_each(context.rows[now], digests[now], sizes[now], logits[now])
        return logits

    def _one_each(self, rows: Tensor, digests: Tensor, sizes: Tensor, logits: Tensor) -> Tensor:
        """Answer one query of each of n different owners; logits, (n, K)."""
        shared, earlier = self._history.nearest(rows, digests)
        near = shared.double() / sizes >= self.threshold
        answers = torch.where(near[:, None], earlier, logits)
        self._history.add(rows, digests, answers)
        self.flagged = room(self.flagged, len(self.asked))
        self.flagged[rows] += near
        return answers

    def digest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Hash images, (n, C, H, W) in [0, 1].

        Returns:
            The first `kept` different hashes of each in rising order, (n, kept) int64, filled
            up with `NOTHING`; and how many they are, (n,).
        """
        salted = (images + self._image.to(images)) % 1.0
        levels = (salted * (255.0 / self.round)).round().long().flatten(1)
        hashes = window_hashes(levels, *self._widths(images)).sort(1).values
        fresh = torch.ones_like(hashes, dtype=torch.bool)
        fresh[:, 1:] = hashes[:, 1:] != hashes[:, :-1]
        rank = fresh.cumsum(1) - 1
        row, column = (fresh & (rank < self.kept)).nonzero(as_tuple=True)
        digests = hashes.new_full((len(hashes), self.kept), NOTHING)
        digests[row, rank[row, column]] = hashes[row, column]
        return digests, fresh.sum(1).clamp(max=self.kept)

    def _widths(self, images: Tensor) -> tuple[int, int]:
        window, stride = (20, 1) if max(images.shape[-2:]) <= _SMALL else (50, 25)
        return self.window or window, self.stride or stride


def window_hashes(levels: Tensor, window: int, stride: int) -> Tensor:
    """Hash every window of a sequence to 64 bits.

    Args:
        levels: (n, L) int64.
        window: Values in a window, at most L.
        stride: Values from one window to the next.

    Returns:
        (n, m) int64 for m = (L - window) // stride + 1; equal windows have equal hashes
        wherever they stand.
    """
    length = levels.shape[1]
    powers = torch.full((length,), _BASE, device=levels.device).cumprod(0)
    inverses = torch.full((length,), _UNBASE, device=levels.device).cumprod(0)
    sums = pad((levels * powers).cumsum(1), (1, 0))
    last = length - window + 1
    hashes = (sums[:, window::stride] - sums[:, :last:stride]) * inverses[:last:stride]
    # The order of polynomials is that of the images; scrambled, it is as good as random.
    for shift, factor in _ROUNDS:
        hashes = (hashes ^ _shifted(hashes, shift)) * factor
    return hashes ^ _shifted(hashes, 31)


def _shifted(values: Tensor, shift: int) -> Tensor:
    """Shift right without copying the sign."""
    return (values >> shift) & ((1 << (64 - shift)) - 1)
