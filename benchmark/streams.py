"""Random streams by name: one for each image and purpose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from benchmark.rng import RowRng, seed_from
from benchmark.spec import Part


def attack_streams(part: Part, seed: int, ids: Iterable[int], device: torch.device) -> RowRng:
    """Streams of an attack; not of the defense: the same draws make comparisons paired."""
    names = ("attack", seed, part.record["name"], part.record["parameters"])
    return named_streams(names, ids, device)


def defense_streams(
    purpose: str, name: str, seed: int, ids: Iterable[int], device: torch.device
) -> RowRng:
    """Streams of a defense; not of its parameters: strengths share noise, so curves are smooth.

    Args:
        purpose: What the answers are for, "counted", "clean", "verify", ...
        name: Name of the defense, without parameters.
        seed: Seed of the run.
        ids: Position of each image in the data set.
        device: Device of the run.
    """
    return named_streams((purpose, seed, name), ids, device)


def named_streams(names: tuple[Any, ...], ids: Iterable[int], device: torch.device) -> RowRng:
    """Streams of any name, one for each image."""
    return RowRng([seed_from(*names, image) for image in ids], device)
