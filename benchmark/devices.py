"""Devices lent to one piece of work at a time, from a list of those that are free."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmark.errors import SpecError
from benchmark.surroundings import check_device

_last = threading.local()  # the place this thread had before: its victim is there already
_PAUSE = 0.05  # seconds between two looks at the list


def read_devices(text: str) -> tuple[str, ...]:
    """Read `cuda:0,cuda:1`; a device that is named twice does two pieces of work at a time.

    Raises:
        SpecError: If one is not there, or if a CPU is named beside a GPU.
    """
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        check_device(name)
    if len({torch.device(name).type for name in names}) > 1:
        raise SpecError(f"--devices {text}: a CPU and a GPU give different results, name one kind")
    return names


@dataclass(frozen=True)
class FreeDevices:
    """The list of free devices, as locks on files: a killed process gives its device back.

    Attributes:
        names: Devices, one for each piece of work that runs at a time.
        folder: Folder of this machine for the locks.
    """

    names: tuple[str, ...]
    folder: Path

    @contextmanager
    def taken(self) -> Iterator[str]:
        """Take a free device while the context lasts; wait for one if there is none."""
        place, lock = self._free()
        _last.place = place
        try:
            yield self.names[place]
        finally:
            lock.release()

    def _free(self) -> tuple[int, FileLock]:
        last = getattr(_last, "place", 0)
        order = sorted(range(len(self.names)), key=lambda place: place != last)
        turn = 0
        while True:
            place = order[turn % len(order)]
            lock = FileLock(self.folder / f"{place}.lock")
            # All but the last look of a round come back at once.
            wait = _PAUSE if turn % len(order) == len(order) - 1 else 0
            try:
                lock.acquire(timeout=wait)
            except Timeout:
                turn += 1
            else:
                return place, lock
