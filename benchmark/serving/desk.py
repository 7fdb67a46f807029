"""Answers the images of each client from a defended victim of its own, and counts them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark.defended import Defended
from benchmark.rng import RowRng, seed_from

REMEMBERED = 1000  # clients


@dataclass
class _Client:
    defended: Defended
    rng: RowRng
    answered: int = 0


class Desk:
    """Answers clients one after the other; it is used by one thread.

    A client that has asked nothing for long is forgotten when there are too many: its defense
    starts anew when it comes back. The total forgets nothing.

    Args:
        fresh: Makes a defended victim that has answered nothing yet.
        seed: Seed of every client's stream, besides its name.
        device: Device of the victim.
        remembered: Clients at most.
    """

    def __init__(
        self,
        fresh: Callable[[], Defended],
        seed: int,
        device: torch.device,
        remembered: int = REMEMBERED,
    ) -> None:
        self._fresh, self._seed, self._device, self._most = fresh, seed, device, remembered
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._total = 0

    def answer(self, images: Tensor, name: str) -> tuple[Tensor, int]:
        """Answer images, (n, C, H, W); logits, (n, K), and how many this client was answered."""
        client = self._client(name)
        rows = torch.zeros(len(images), dtype=torch.int64, device=self._device)
        logits = client.defended.answer(images.to(self._device), rows, client.rng)
        client.answered += len(images)
        self._total += len(images)
        return logits.cpu(), client.answered

    def count(self) -> dict[str, Any]:
        """Count the images answered, in all and by client; clients no longer known together."""
        known = {name: client.answered for name, client in self._clients.items()}
        forgotten = self._total - sum(known.values())
        return {"answered": self._total, "clients": known, "forgotten": forgotten}

    def _client(self, name: str) -> _Client:
        if name not in self._clients:
            rng = RowRng([seed_from("serve", self._seed, name)], self._device)
            self._clients[name] = _Client(self._fresh(), rng)
            if len(self._clients) > self._most:
                self._clients.popitem(last=False)
        self._clients.move_to_end(name)
        return self._clients[name]
