"""Splits a network before the linear head that makes its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.errors import VictimError

Layer = nn.Linear | nn.Conv2d  # a convolution over the whole of its input is linear too


@dataclass(frozen=True)
class Head:
    """The linear map from penultimate features to logits.

    Attributes:
        weight: (K, d).
        bias: (K,), or None.
    """

    weight: Tensor
    bias: Tensor | None


def find_head(network: nn.Module, classify: Callable[[Tensor], Tensor], images: Tensor) -> Layer:
    """Find the layer that alone makes the logits.

    Tried are the classifier that a network of timm names, the last linear layer and the last
    convolution; taken is the first whose weights map its input to the logits.

    Args:
        network: The network.
        classify: Maps images to the network's logits.
        images: (n, C, H, W) to try on.

    Raises:
        VictimError: If there is none; the message says why.
    """
    reasons = []
    for name, layer in _candidates(network):
        reason = _obstacle(layer, classify, images)
        if not reason:
            return layer
        reasons.append(f"its layer '{name}' {reason}")
    raise _unsplittable(reasons[0] if reasons else "it has no linear layer")


def _candidates(network: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Give the layers that may be the head, the likeliest first."""
    named = {module: name for name, module in network.named_modules()}
    getter = getattr(network, "get_classifier", None)
    classifier = getter() if callable(getter) else None
    if isinstance(classifier, tuple | list | nn.ModuleList) and len(classifier) > 1:
        raise _unsplittable(f"{len(classifier)} heads make its logits together")
    if isinstance(classifier, Layer):
        yield named.get(classifier, "classifier"), classifier
    for kind in (nn.Linear, nn.Conv2d):
        last = [module for module in named if isinstance(module, kind)][-1:]
        yield from ((named[module], module) for module in last if module is not classifier)


def _obstacle(layer: Layer, classify: Callable[[Tensor], Tensor], images: Tensor) -> str:
    """Say why a layer is not the head; empty if it is."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    try:
        logits = classify(images)
    finally:
        handle.remove()
    if len(inputs) != 1:
        return f"is used {len(inputs)} times in a pass, not once"
    found, wanted = tuple(inputs[0].shape), (len(images), *layer.weight.shape[1:])
    if found != wanted:
        return f"maps more than one vector for each image: its input is {found}, not {wanted}"
    made = functional.linear(inputs[0].flatten(1), layer.weight.flatten(1), layer.bias)
    if made.shape == logits.shape and torch.allclose(made, logits, rtol=1e-4, atol=1e-5):
        return ""
    return "does not make the logits alone"


def _unsplittable(reason: str) -> VictimError:
    return VictimError(
        f"the victim cannot be split before a last linear layer: {reason}; "
        "use a defense that acts on images, stages or logits"
    )
