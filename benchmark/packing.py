"""Shards run as one: on a GPU a single shard leaves most of the device idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmark.data import Dataset, Samples, Split
from benchmark.spec import Shard
from benchmark.stack import DefenseChoice

_Block = tuple[int, int]  # first image and number of images


@dataclass(frozen=True)
class Pack:
    """Shards of one cell that are run as one, each image under each radius.

    Attributes:
        radii: A shard for each radius, all of the same images.
        blocks: First image and number of images of every shard of a radius, in order.
        shards: All shards.
    """

    radii: tuple[Shard, ...]
    blocks: tuple[_Block, ...]
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Pack:
        """Put shards together."""
        blocks = sorted({(one.first, one.count) for one in shards})
        radii = [one for one in shards if (one.first, one.count) == blocks[0]]
        if len(radii) * len(blocks) != len(shards):
            raise ValueError("shards that are run as one have other images under another radius")
        return cls(tuple(radii), tuple(blocks), tuple(shards))

    def take(self, dataset: Dataset) -> Samples:
        """Load the images of all shards of a radius, in order."""
        parts = [dataset.take(Split.EVAL, count, first) for first, count in self.blocks]
        if len(parts) == 1:
            return parts[0]
        return Samples(
            np.concatenate([part.ids for part in parts]),
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels for part in parts]),
        )

    def members(self, radius: Shard) -> Iterator[tuple[Shard, slice]]:
        """Every shard of the radius of one, and where its images stand."""
        end = 0
        for block in self.blocks:
            start, end = end, end + block[1]
            mine = (one for one in self.shards if (one.first, one.count) == block)
            yield next(one for one in mine if one.cell == radius.cell), slice(start, end)


def packed(
    groups: Sequence[tuple[Shard, ...]], rows: Callable[[Shard], int]
) -> list[tuple[Shard, ...]]:
    """Put groups of shards together that differ in their images alone.

    Images are islands, so it changes no result; but where a defense answers queries of different
    images together, or remembers them, its shards stay alone.

    Args:
        groups: Shards that are run as one already (`spec.together`), of the same images each.
        rows: Images at most for shards like one, unless that alone has more.
    """
    packs: dict[object, list[list[Shard]]] = {}
    for group in groups:
        first = group[0]
        cells = tuple(one.cell.key for one in group)
        alone = not _islands(first.cell.defense.text)
        open_ = packs.setdefault((cells, first.first if alone else None), [])
        if not open_ or rows_of(open_[-1]) + first.count > rows(first):
            open_.append([])
        open_[-1] += group
    return [tuple(pack) for members in packs.values() for pack in members]


def smaller(pack: Sequence[Shard], halvings: int) -> list[tuple[Shard, ...]]:
    """Cut shards that are run as one so that the images of each part are halved so often."""
    groups: dict[int, list[Shard]] = {}
    for one in pack:
        groups.setdefault(one.first, []).append(one)
    most = rows_of(pack) >> halvings
    return packed([tuple(group) for group in groups.values()], lambda _: most)


def rows_of(pack: Sequence[Shard]) -> int:
    """Count the images of shards that are run as one."""
    return sum({one.first: one.count for one in pack}.values())


def _islands(defense: str) -> bool:
    """An image's answers depend on the questions about it alone."""
    traits = DefenseChoice.parse(defense).build().traits
    return not (traits.coupled or traits.stateful)
