"""Remembers the queries of each owner by their digests, for defenses that look for near-copies."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 256  # earlier queries compared at once
NOTHING = torch.iinfo(torch.int64).max  # fills up a digest of too few hashes


class History:
    """Digests and answers of all queries so far.

    A query takes `kept` integers and K logits; nothing is dropped.

    Args:
        kept: Hashes in a digest.
        blank: Any logits, (n, K), for their type and device.

    Attributes:
        asked: (owners,) queries that each owner has asked since it was forgotten, int64.
    """

    def __init__(self, kept: int, blank: Tensor) -> None:
        whole = torch.zeros(0, dtype=torch.int64, device=blank.device)
        self.asked = whole
        self._places = whole.view(0, 0)  # of each owner's queries, in the two below
        self._digests = whole.view(0, kept)
        self._answers = blank[:0]
        self._stored = 0

    def nearest(self, rows: Tensor, digests: Tensor) -> tuple[Tensor, Tensor]:
        """Find the earlier query of each owner whose digest shares most hashes.

        Args:
            rows: (n,) owners, each at most once.
            digests: (n, kept) different hashes in rising order, filled up with `NOTHING`.

        Returns:
            How many hashes are shared, (n,), and the answer that query got, (n, K); of equally
            near ones the earliest. Without an earlier query: zero, and any logits.
        """
        self._admit(rows)
        most, place = torch.zeros_like(rows), torch.zeros_like(rows)
        for start in range(0, int(self.asked[rows].max()), _CHUNK):
            places = self._places[rows, start : start + _CHUNK]
            turn = start + torch.arange(places.shape[1], device=rows.device)
            shared = common(digests, self._digests[places])
            shared.masked_fill_(turn >= self.asked[rows, None], 0)
            best, which = shared.max(1)
            nearer = best > most
            place = torch.where(nearer, places.gather(1, which[:, None])[:, 0], place)
            most = torch.where(nearer, best, most)
        return most, self._answers[place]

    def add(self, rows: Tensor, digests: Tensor, answers: Tensor) -> None:
        """Remember one query of each of n owners: digests (n, kept), answers (n, K)."""
        self._admit(rows)
        first, self._stored = self._stored, self._stored + len(rows)
        self._digests = room(self._digests, self._stored)
        self._answers = room(self._answers, self._stored)
        self._digests[first : self._stored] = digests
        self._answers[first : self._stored] = answers
        asked = self.asked[rows]
        self._places = room(self._places.T, int(asked.max()) + 1).T
        self._places[rows, asked] = torch.arange(first, self._stored, device=rows.device)
        self.asked[rows] += 1

    def forget(self, owner: int) -> None:
        """Treat an owner as one that never asked."""
        if owner < len(self.asked):
            self.asked[owner] = 0

    def _admit(self, rows: Tensor) -> None:
        owners = int(rows.max()) + 1
        self.asked, self._places = room(self.asked, owners), room(self._places, owners)
        self._answers = room(self._answers, 1)  # something to return before anything is stored


def common(digests: Tensor, others: Tensor) -> Tensor:
    """Count the hashes that digests, (n, kept) in rising order, share with (n, m, kept) others."""
    flat = others.flatten(1).contiguous()
    place = torch.searchsorted(digests, flat).clamp_(max=digests.shape[1] - 1)
    equal = (digests.gather(1, place) == flat) & (flat != NOTHING)
    return equal.view_as(others).sum(2)


def room(buffer: Tensor, size: int) -> Tensor:
    """Give a buffer at least `size` entries, at each growth at least twice as many, new ones 0."""
    if len(buffer) >= size:
        return buffer
    grown = buffer.new_zeros((max(size, 2 * len(buffer)), *buffer.shape[1:]))
    grown[: len(buffer)] = buffer
    return grown
