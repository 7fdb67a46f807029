"""Keeps the latest images that were asked about, and their answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Replay:
    """A ring of images, rounded to 8 bits, and answers; when it is full the oldest go.

    Args:
        room: Images it holds at most.
        shape: Shape of one image.
        num_classes: Number of classes K.
        device: Where it is kept.
    """

    def __init__(
        self, room: int, shape: tuple[int, ...], num_classes: int, device: torch.device
    ) -> None:
        self._images = torch.zeros((room, *shape), dtype=torch.uint8, device=device)
        self._answers = torch.zeros((room, num_classes), device=device)
        self._added = 0

    def __len__(self) -> int:
        """Number of images held."""
        return min(self._added, len(self._images))

    def add(self, images: Tensor, answers: Tensor) -> None:
        """Keep images, (n, *shape) in [0, 1], and their answers, (n, K)."""
        places = torch.arange(self._added, self._added + len(images)) % len(self._images)
        kept = slice(-len(self._images), None)  # of one call, too, only the latest fit
        places = places[kept].to(self._images.device)
        self._images[places] = images[kept].mul(255).round().to(torch.uint8)
        self._answers[places] = answers[kept].to(self._answers)
        self._added += len(images)

    def draw(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw with replacement: images, (count, *shape) in [0, 1], and answers, (count, K)."""
        places = torch.randint(len(self), (count,), generator=stream).to(self._images.device)
        return self._images[places].float().div(255), self._answers[places]

    def state_dict(self) -> dict[str, Tensor | int]:
        """What it holds, as plain data and tensors."""
        held = slice(len(self))
        return {
            "images": self._images[held].clone(),
            "answers": self._answers[held].clone(),
            "added": self._added,
        }

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Hold what another of the same size held."""
        self._added = int(state["added"])
        self._images[: len(self)] = torch.as_tensor(state["images"])
        self._answers[: len(self)] = torch.as_tensor(state["answers"])
