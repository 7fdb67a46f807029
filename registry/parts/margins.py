"""The lead of each row's best class over its runner-up: measured, placed in cells, and set."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-6  # least lead that is set, in logits: float32 log-softmax still shows it


def leaders(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Find the best class of each row and its runner-up; of equal classes the first.

    Args:
        logits: (n, K), K at least 2.

    Returns:
        Index of the best class and of its runner-up, (n, 1) each.
    """
    best = logits.argmax(1, keepdim=True)
    return best, logits.scatter(1, best, -torch.inf).argmax(1, keepdim=True)


def margin(logits: Tensor) -> Tensor:
    """Return the best logit less the second best, (n, 1), never negative."""
    best, second = leaders(logits)
    return logits.gather(1, best) - logits.gather(1, second)


def cells(margins: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Place margins in cells of width tau; an edge belongs to the cell above it.

    Returns:
        Number of the cell from 0, and the place in it as a share of tau, in [0, 1).
    """
    scaled = margins / tau
    whole = scaled.floor()
    return whole, scaled - whole


def with_margin(logits: Tensor, margins: Tensor) -> Tensor:
    """Move each row's best logit until it leads its runner-up by a margin.

    Args:
        logits: (n, K).
        margins: The wanted leads, (n, 1), not negative; a smaller one than 1e-6 becomes 1e-6.

    Returns:
        Logits, (n, K), with the same best classes and all other entries unchanged.
    """
    best, second = leaders(logits)
    return lead(logits.scatter(1, best, logits.gather(1, second) + margins), best)


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Raise the logit of each row's label above all others where it is not.

    Args:
        logits: (n, K).
        labels: The class that has to lead each row, (n, 1).

    Returns:
        Logits, (n, K): the label leads by 1e-6 at least, or by one unit in the last place.
    """
    rest = logits.scatter(1, labels, -torch.inf).amax(1, keepdim=True)
    # Beyond 16 the sum with 1e-6 is rounded back.
    least = torch.maximum(rest + _LEAST, torch.nextafter(rest, torch.full_like(rest, torch.inf)))
    return logits.scatter(1, labels, torch.maximum(logits.gather(1, labels), least))
