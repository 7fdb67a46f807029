"""Data sets with named, disjoint, stratified and seeded splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmark.errors import DataError

Indices = npt.NDArray[np.int64]


class Split(StrEnum):
    """What images are used for; no image is in two splits."""

    EVAL = "eval"  # attacked
    CALIBRATE = "calibrate"  # sets the strength of defenses
    TRAIN = "train"  # contexts, pools, fine-tuning


@dataclass(frozen=True)
class DataRequest:
    """What a data set entry is asked to load.

    Attributes:
        argument: What follows the colon in its name (`folder:PATH`), or empty.
        root: The user's data folder, or None.
    """

    argument: str
    root: Path | None


@dataclass(frozen=True)
class Samples:
    """Some images of a data set.

    Attributes:
        ids: (n,) position in the data set, int64.
        images: (n, C, H, W), float32, in [0, 1].
        labels: (n,), int64.
    """

    ids: Indices
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Labelled images in a fixed order.

    Attributes:
        name: Name as tables show it.
        labels: Label of every image, int64.
        class_names: Name of every class.
        splits: For each split the positions of its images, in the order they are used.
        read: Loads images by position, (n, C, H, W), float32, in [0, 1].
        fingerprint: Hash of the content.
    """

    name: str
    labels: Indices
    class_names: tuple[str, ...]
    splits: Mapping[Split, Indices]
    read: Callable[[Indices], Tensor]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def take(self, split: Split, count: int, first: int = 0) -> Samples:
        """Load images `first` to `first + count - 1` of a split.

        Raises:
            DataError: If the split has too few images, or a value is outside [0, 1].
        """
        ids = self.splits[split][first : first + count]
        if len(ids) < count:
            raise DataError(
                f"data set '{self.name}' has {len(self.splits[split])} images in split '{split}', "
                f"{first + count} were asked for"
            )
        images = self.read(ids)
        low, high = (float(v) for v in torch.aminmax(images)) if count else (0.0, 0.0)
        if not (low >= 0.0 and high <= 1.0):
            raise DataError(
                f"data set '{self.name}' has pixel values from {low:g} to {high:g}; "
                "images must lie in [0, 1]"
            )
        return Samples(ids, images, torch.from_numpy(self.labels[ids]))


def stratified(labels: Indices, shares: Mapping[Split, float], seed: int) -> dict[Split, Indices]:
    """Divide positions into disjoint splits with the class balance of the whole.

    Every prefix of a split is balanced too, as far as its size allows.

    Args:
        labels: Label of every image.
        shares: Share of each split, > 0, together at most 1.
        seed: Seed of the order.

    Returns:
        Positions of each split, in the order they should be used.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shuffled = rng.permutation(members)
        places[shuffled] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(places, kind="stable").astype(np.int64)
    bounds = np.rint(np.cumsum([0.0, *shares.values()]) * len(labels)).astype(int)
    return {
        split: order[start:stop]
        for split, start, stop in zip(shares, bounds[:-1], bounds[1:], strict=True)
    }
