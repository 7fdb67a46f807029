"""Memory: half the batch where that of a device runs out, and the most that was used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from benchmark.surroundings import Surroundings

T = TypeVar("T")

_MOST = 24  # halvings; work that asks for no batch would be begun again for ever
# By device and batch that was asked for: what did not fit once does not fit later.
_halvings: dict[tuple[str, int | None], int] = {}


def within_memory(do: Callable[[Surroundings], T], surroundings: Surroundings) -> T:
    """Do a whole piece of work; where the device's memory runs out, again with half the batch.

    Args:
        do: The work; it gets where to run, and is the same however often it is begun.
        surroundings: Where.

    Returns:
        What the work returns.

    Raises:
        VictimError: If a single image in a forward pass is too much.
        torch.OutOfMemoryError: If it does not depend on the batch.
    """
    while True:
        here = replace(surroundings, halvings=halvings(surroundings))
        try:
            return do(here)
        except torch.OutOfMemoryError:
            if here.halvings == _MOST:
                raise
            _halvings[here.device, here.batch] = here.halvings + 1
        torch.cuda.empty_cache()  # only now: the error held the tensors of the failed attempt


def halvings(surroundings: Surroundings) -> int:
    """How often this process halved the batch that is asked for."""
    return _halvings.get((surroundings.device, surroundings.batch), 0)


def peak_memory(device: str) -> int:
    """Most bytes of a GPU that this process had in use at a time; 0 on a CPU."""
    if torch.device(device).type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device)


@dataclass
class Mark:
    """The most that any piece of a run needed.

    Attributes:
        memory: Bytes in use at a time.
        halvings: How often batches had to be halved.
    """

    memory: int = 0
    halvings: int = 0

    def see(self, memory: int, halvings: int) -> None:
        """Take one more piece of work into account."""
        self.memory = max(self.memory, memory)
        self.halvings = max(self.halvings, halvings)

    def lines(self, device: str) -> list[str]:
        """Say how much of a GPU it was, and whether memory ran out, a line each."""
        said = []
        if self.memory and torch.device(device).type == "cuda":
            said.append(f"peak memory: {self.memory / 2**30:.2f} GiB of the GPU")
        if self.halvings:
            said.append(
                f"memory ran out: the batch was divided by {2**self.halvings}, and the work begun "
                "again; a smaller --batch saves that time"
            )
        return said
