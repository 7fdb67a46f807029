"""The classifier under attack: images in [0, 1] in, logits out, open at named stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.errors import SpecError, VictimError, suggestion

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ModelRequest:
    """What a model entry is asked to build.

    Attributes:
        argument: What follows the colon in its name (`timm:NAME`), or empty.
        checkpoint: Weights to load, or None.
        num_classes: Classes of the data set K.
        image_shape: Shape of one image, (C, H, W).
    """

    argument: str
    checkpoint: Path | None
    num_classes: int
    image_shape: tuple[int, int, int]


class Victim(nn.Module):
    """A frozen classifier in evaluation mode with its normalisation inside.

    Args:
        network: Any network that maps normalised images to logits, (n, K).
        mean: Mean of each channel, in pixel units of the [0, 1] range.
        std: Standard deviation of each channel.
        num_classes: Number of classes K.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], num_classes: int
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval().requires_grad_(requires_grad=False)
        # In a tuple, for a module as attribute would join the state_dict a second time.
        self._last: tuple[nn.Linear, ...] = ()
        self.fingerprint = ""  # hash of all weights, once it is loaded for a run

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, (n, C, H, W) in [0, 1]; returns logits, (n, K)."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits

    @contextmanager
    def edited(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Pass the outputs of named stages through functions while the context lasts.

        Args:
            edits: Function for each stage; gets a tensor and returns one of the same shape.

        Raises:
            SpecError: If the network has no such stage.
        """
        handles = []
        try:
            for name, edit in edits.items():
                handles.append(self.stage(name).register_forward_hook(_hook(name, edit)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stage(self, name: str) -> nn.Module:
        """Return the submodule of that name.

        Raises:
            SpecError: If the network has none; the message names the nearest match.
        """
        modules: dict[str, nn.Module] = dict(self.network.named_modules())
        if not name or name not in modules:
            tops = [key for key in modules if key and key.count(".") <= 1]
            raise SpecError(f"the victim has no stage '{name}'. {suggestion(name, tops)}")
        return modules[name]

    def stages(self) -> tuple[str, ...]:
        """Name the usual stages, in order: the blocks between stem and head.

        These are `layer1`, `layer2`, ... of a ResNet (with its max-pool), otherwise the children
        of the longest chain that holds at least half of the modules, otherwise all children of
        the network but the last.
        """
        names = [name for name, _ in self.network.named_children()]
        layers = [name for name in names if name.startswith("layer") and name[5:].isdigit()]
        if layers:
            return (*(["maxpool"] if "maxpool" in names else []), *layers)
        whole = _size(self.network)
        chains = [
            (name, module)
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Sequential | nn.ModuleList) and 2 * _size(module) >= whole
        ]
        if not chains:
            return tuple(names[:-1])
        longest, module = max(chains, key=lambda pair: len(pair[1]))
        prefix = f"{longest}." if longest else ""
        return tuple(f"{prefix}{name}" for name, _ in module.named_children())

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features, (n, d): the input of the last linear layer."""
        caught: list[Tensor] = []

        def catch(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            caught.append(inputs[0])
            raise _CaughtError

        handle = self._linear(images).register_forward_pre_hook(catch)
        try:
            self(images)
        except _CaughtError:
            return caught[0]
        finally:
            handle.remove()
        raise VictimError("the victim's last linear layer was not reached")

    def head(self, features: Tensor) -> Tensor:
        """Map penultimate features, (n, d), to logits, (n, K)."""
        logits: Tensor = self.last_linear(features)
        return logits

    @property
    def last_linear(self) -> nn.Linear:
        """The layer that maps penultimate features to logits, once features were asked for."""
        if not self._last:
            raise VictimError("ask for features before using the head")
        return self._last[0]

    def _linear(self, images: Tensor) -> nn.Linear:
        """Find the last linear layer and check once that it alone makes the logits."""
        if not self._last:
            linears = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
            if not linears or not _makes_logits(self, linears[-1], images[:2]):
                raise VictimError(
                    "the victim cannot be split before a last linear layer; "
                    "use a defense that acts on images, stages or logits"
                )
            self._last = (linears[-1],)
        return self._last[0]


def _size(module: nn.Module) -> int:
    return sum(1 for _ in module.modules())


class _CaughtError(Exception):
    """Leaves a forward pass once the features are known."""


def _hook(name: str, edit: Edit) -> Callable[[nn.Module, Any, Any], Tensor]:
    def apply(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise SpecError(f"stage '{name}' gives a {type(output).__name__}, not one tensor")
        return edit(output)

    return apply


def _makes_logits(victim: Victim, linear: nn.Linear, images: Tensor) -> bool:
    inputs: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    try:
        logits = victim(images)
    finally:
        handle.remove()
    if len(inputs) != 1 or inputs[0].dim() != 2:
        return False
    return bool(torch.allclose(linear(inputs[0]), logits, rtol=1e-4, atol=1e-5))
