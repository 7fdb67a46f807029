"""The classifier under attack: images in [0, 1] in, logits out, open at named stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark import sites
from benchmark.config import Config
from benchmark.errors import VictimError
from benchmark.facts import Traits
from benchmark.graphs import Graphs, watched
from benchmark.scores import Scores
from benchmark.sites import Edit
from benchmark.split import Head, Layer, find_head


@dataclass(frozen=True)
class ModelRequest:
    """What a model entry is asked to build.

    Attributes:
        argument: What follows the colon in its name (`timm:NAME`), or empty.
        checkpoint: Weights to load, or None.
        num_classes: Classes of the data set K.
        image_shape: Shape of one image, (C, H, W).
        config: Where endpoints and the cache are.
    """

    argument: str
    checkpoint: Path | None
    num_classes: int
    image_shape: tuple[int, int, int]
    config: Config = field(default_factory=Config)


@dataclass(frozen=True)
class Remote:
    """What is known of a victim that runs elsewhere: it answers, and nothing inside it is seen.

    Attributes:
        name: What tables show after the colon, for an address may not stand in them.
        shows: What its answers contain.
        traits: How it behaves: it may be defended where it runs.
        price: Price of one image.
        rate: Images a second at most, None for no limit.
    """

    name: str
    shows: Scores
    traits: Traits
    price: float = 0.0
    rate: float | None = None


class Victim(nn.Module):
    """A frozen classifier in evaluation mode with its normalisation inside.

    Args:
        network: Any network that maps normalised images to logits, (n, K).
        mean: Mean of each channel, in pixel units of the [0, 1] range.
        std: Standard deviation of each channel.
        num_classes: Number of classes K.
        remote: What is known of it if it runs elsewhere, else None.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        remote: Remote | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.remote = remote
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval().requires_grad_(requires_grad=False)
        # In a tuple, for a module as attribute would join the state_dict a second time.
        self._last: tuple[Layer, ...] = ()
        self._usual: tuple[str, ...] = ()
        self.graphs: Graphs | None = None  # plays passes, on a GPU
        self.fingerprint = ""  # hash of all weights, once it is loaded for a run
        self.prepared: dict[str, Any] = {}  # defenses attached to it, if it runs elsewhere

    @property
    def steady(self) -> bool:
        """Identical images always get identical answers."""
        return self.remote is None or self.remote.traits.steady

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, (n, C, H, W) in [0, 1]; returns logits, (n, K)."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits

    def classify(self, images: Tensor) -> Tensor:
        """Classify images as `forward` does; on a GPU faster, as long as nothing looks inside."""
        if self.graphs is None or torch.is_grad_enabled() or watched(self):
            logits: Tensor = self(images)
            return logits
        return self.graphs.answer(self, images)

    @contextmanager
    def edited(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Pass what flows through named sites through functions while the context lasts.

        Args:
            edits: Function for each site: `layer1` is the output of that module, `in:layer1` its
                input. Gets a tensor and returns one of the same shape; of several tensors it
                gets the first.

        Raises:
            SpecError: If the network has no such site, or no tensor flows through it.
        """
        handles = []
        try:
            for site, edit in edits.items():
                handles.append(sites.attach(self.network, site, edit))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stage(self, site: str) -> nn.Module:
        """Return the submodule whose output (`layer1`) or input (`in:layer1`) a site names.

        Raises:
            SpecError: If the network has none; the message names the nearest match.
        """
        return sites.module_at(self.network, site)

    def stages(self) -> tuple[str, ...]:
        """Name the usual sites, in order; `benchmark.sites.usual` has the rules."""
        if not self._usual:
            self._usual = sites.usual(self.network)
        return self._usual

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features, (n, d): the input of the linear head.

        Raises:
            VictimError: If no linear layer alone makes the logits; the message says why.
        """
        caught: list[Tensor] = []

        def catch(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            caught.append(inputs[0].flatten(1))
            raise _CaughtError

        handle = self._split(images).register_forward_pre_hook(catch)
        try:
            self(images)
        except _CaughtError:
            return caught[0]
        finally:
            handle.remove()
        raise VictimError("the victim's last linear layer was not reached")

    def head(self, features: Tensor) -> Tensor:
        """Map penultimate features, (n, d), to logits, (n, K), once features were asked for."""
        layer = self._found
        logits: Tensor = layer(features.view(-1, *layer.weight.shape[1:]))
        return logits.flatten(1)

    @property
    def last_linear(self) -> Head:
        """Weight and bias of the head, once features were asked for."""
        return Head(self._found.weight.flatten(1), self._found.bias)

    @property
    def _found(self) -> Layer:
        if not self._last:
            raise VictimError("ask for features before using the head")
        return self._last[0]

    def _split(self, images: Tensor) -> Layer:
        """Find the head, once."""
        if not self._last:
            self._last = (find_head(self.network, self, images[:2]),)
        return self._last[0]


class _CaughtError(Exception):
    """Leaves a forward pass once the features are known."""
