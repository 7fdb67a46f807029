"""One pass of the victim in which each image meets parameters of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmark.victim import Victim


def classify_each(victim: Victim, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Classify each image with parameters of its own; the others are the victim's.

    Args:
        victim: The classifier; it is left as it was.
        images: (n, C, H, W).
        parameters: (n, *shape) for each parameter that is replaced, by its name in the victim.

    Returns:
        Logits, (n, K).
    """

    def one(image: Tensor, own: dict[str, Tensor]) -> Tensor:
        # Tying looks every name up by itself, which breaks modules that stand under several.
        logits: Tensor = functional_call(victim, own, (image[None],), tie_weights=False)
        return logits[0]

    with _plain_attention():
        logits: Tensor = vmap(one)(images, dict(parameters))
    return logits


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Have attention made of operations that can be batched; its fused kernels cannot."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
