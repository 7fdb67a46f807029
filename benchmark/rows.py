"""Which image a query belongs to: dropping finished rows, numbering repeated ones."""

from __future__ import annotations

import torch
from torch import Tensor


def keep(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Drop the rows of finished images from an attack's tensors.

    Args:
        mask: (n,) bool, True for the rows that stay.
        tensors: Tensors with n rows each.

    Returns:
        The tensors without the dropped rows; the same objects if nothing was dropped.
    """
    if bool(mask.all()):
        return tensors
    index = mask.nonzero()[:, 0]
    return tuple(tensor.index_select(0, index) for tensor in tensors)


def occurrence(rows: Tensor) -> Tensor:
    """Number the entries of each row from 0 in their order: [5, 2, 5, 5] gives [0, 0, 1, 2]."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    places = torch.arange(len(rows), device=rows.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, places, 0).cummax(0).values if len(rows) else places
    return torch.empty_like(rows).scatter_(0, order, places - first)


def spread(values: Tensor | None, chosen: Tensor, blank: float) -> Tensor | None:
    """Put values, (m, ...), at the m chosen places of n, `blank` elsewhere; None stays None."""
    if values is None:
        return None
    whole = values.new_full((len(chosen), *values.shape[1:]), blank)
    whole[chosen] = values
    return whole
