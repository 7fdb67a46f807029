"""Targets of targeted runs, and an image of each target's class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmark.data import Dataset, Indices, Split
from benchmark.errors import DataError
from benchmark.rng import seed_from
from benchmark.victim import Victim

TRIES = 20  # images of a class among which one is looked for that the victim gets right


def draw_targets(labels: Tensor, ids: Sequence[int], classes: int, seed: int) -> Tensor:
    """Draw a target for each image, uniformly among the other classes, once and for all.

    The draw is named by seed and image alone: every attack and defense has the same targets.

    Args:
        labels: True labels, (B,).
        ids: Positions of the images in the data set.
        classes: Number of classes, at least 2.
        seed: Seed of the run.

    Returns:
        (B,), int64, on the device of the labels.
    """
    shifts = [1 + seed_from("target", seed, image) % (classes - 1) for image in ids]
    return (labels + torch.tensor(shifts, dtype=torch.int64, device=labels.device)) % classes


def starts(
    targets: Tensor, ids: Sequence[int], dataset: Dataset, victim: Victim, seed: int
) -> Tensor:
    """Give each image one of its target's class from split `calibrate`, (B, C, H, W).

    It is drawn by seed and image: the first of 20 that the undefended victim gets right, or the
    first of them if it gets none right.

    Raises:
        DataError: If the split has none.
    """
    pool = dataset.splits[Split.CALIBRATE]
    labels = dataset.labels[pool]
    chosen = [
        _start(pool[labels == target], (seed, image), dataset, victim)
        for image, target in zip(ids, targets.tolist(), strict=True)
    ]
    shape = dataset.take(Split.CALIBRATE, 1).images.shape[1:]
    return torch.stack(chosen) if chosen else torch.empty((0, *shape), device=targets.device)


@torch.no_grad()
def _start(members: Indices, names: tuple[int, int], dataset: Dataset, victim: Victim) -> Tensor:
    if not len(members):
        raise DataError(f"data set '{dataset.name}' has no image of a target's class to start from")
    first = seed_from("start", *names) % len(members)
    tried = np.roll(members, -first)[:TRIES]
    device = victim.mean.device
    images = dataset.read(tried).to(device)
    right = victim(images).argmax(1) == int(dataset.labels[members[0]])
    return images[int(right.long().argmax())]
