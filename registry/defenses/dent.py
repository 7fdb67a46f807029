"""DENT: adapt the affine layers of the normalisation to each query by entropy descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from benchmark.defense import Defense, QueryContext
from benchmark.errors import SpecError
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.victim import Victim
from registry.parts.each import classify_each
from registry.parts.optimisers import Optimiser
from registry.parts.single import twice

_FLOOR = 1e-5  # inside the logarithms of "shot"


@defense(
    source=Source(
        paper="Wang et al.: Fighting Gradients with Gradients: Dynamic Defenses against "
        "Adversarial Attacks",
        url="https://arxiv.org/abs/2105.08714",
        year=2021,
        code="https://github.com/DequanWang/dent",
        differences=(
            "by default the plain entropy, summed over the rows, so that no query feels another; "
            "loss=shot and statistics=online take means over the call, as the code does",
            "the network stays in evaluation mode while it adapts; the code switches dropout on",
            "a network without batch normalisation adapts its layer normalisation instead",
            "alone in its call a query is not changed by loss=shot, whose two terms then cancel",
            "rate=0 is off, also with batch statistics",
        ),
    ),
    level=Level.ANSWER,
    traits=Traits(),
    strength="rate",
    presets={
        "official": Preset(
            "authors' code, CIFAR-10",
            {"loss": "shot"},
            note="in batches of 128; dropout is active there",
        ),
        "aaa": Preset("AAA's copy", {"optimiser": "adam", "rate": 1e-3}),
        "unig": Preset(
            "UniG's copy, CIFAR-10 and ImageNet",
            {"optimiser": "adam", "rate": 1e-3, "statistics": "online"},
            note="in batches of 256 (CIFAR-10) and 32 (ImageNet)",
        ),
    },
    examples=(
        "[loss=shot]",
        "[statistics=online]",
        "[optimiser=adam,rate=0.001]",
        "[optimiser=adam,rate=0.001,statistics=online]",
        "[steps=1]",
    ),
)
@dataclass(kw_only=True)
class Dent(Defense):
    """Answers with affine parameters of each row's own, moved to lower its entropy (section 3).

    Every call starts anew from the victim's parameters.

    Attributes:
        rate: Learning rate of the optimiser; 0 is off.
        steps: Optimiser steps for each query.
        loss: "tent" is the entropy of each row's prediction, "shot" the mean entropy less the
            entropy of the call's mean prediction.
        statistics: Normalise by the stored mean and variance ("static"), or by those of the
            call ("online").
        optimiser: "adamod" or "adam".
    """

    inside = True

    rate: Annotated[float, Field(ge=0)] = 6e-3
    steps: Annotated[int, Field(ge=1)] = 6
    loss: Literal["tent", "shot"] = "tent"
    statistics: Literal["static", "online"] = "static"
    optimiser: Literal["adamod", "adam"] = "adamod"

    def __post_init__(self) -> None:
        coupled = self.loss == "shot" or self.statistics == "online"
        self.traits = replace(type(self).traits, coupled=coupled)

    def check(self, victim: Victim) -> None:
        """Refuse a victim without the normalisation that is adapted."""
        norms = layers(victim)
        if not norms:
            raise SpecError(
                "dent needs affine parameters of BatchNorm2d or LayerNorm; the victim has none"
            )
        if self.statistics == "online" and not _over_batches(norms):
            raise SpecError(
                "dent: statistics=online needs BatchNorm2d, the victim has LayerNorm only. "
                "Allowed: static."
            )

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Adapt to the images, (n, C, H, W), and classify them, (n, K)."""
        if self.rate == 0 or (self.loss == "shot" and len(images) == 1):
            bare: Tensor = victim(images)
            return bare
        start = [victim.get_parameter(name).flatten() for name in _names(victim)]
        affine = torch.cat(start).repeat(len(images), 1)
        optimiser = Optimiser(self.optimiser, self.rate)
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = affine.detach().requires_grad_()
                loss = self._objective(self._classify(victim, images, leaf))
            (slopes,) = torch.autograd.grad(loss, leaf)
            affine = affine - optimiser.step(slopes)
        return self._classify(victim, images, affine)

    def _objective(self, logits: Tensor) -> Tensor:
        if self.loss == "shot":
            chances = logits.softmax(1)
            return _floored(chances).mean() - _floored(chances.mean(0, keepdim=True))[0]
        entropies = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
        return entropies.mean() if self.traits.coupled else entropies.sum()

    def _classify(self, victim: Victim, images: Tensor, affine: Tensor) -> Tensor:
        """Classify each image with its own affine parameters, (n, P)."""
        own = _split(victim, affine)
        norms = layers(victim)
        if not _over_batches(norms):
            return classify_each(victim, images, own)
        # The layers' own affine map is replaced by the identity; theirs goes before it.
        plain = {
            name: torch.full_like(victim.get_parameter(name), float(name.endswith("weight")))
            for name in own
        }
        handles = []
        try:
            for name, norm in norms.items():
                edit = self._before(own[f"{name}.weight"], own[f"{name}.bias"])
                handles.append(norm.register_forward_pre_hook(edit))
            shown = twice(images) if torch.is_grad_enabled() else images
            logits: Tensor = functional_call(victim, plain, (shown,), tie_weights=False)
        finally:
            for handle in handles:
                handle.remove()
        return logits[: len(images)]

    def _before(self, weight: Tensor, bias: Tensor) -> Callable[[nn.Module, Any], Tensor]:
        """Change the input of a layer so that its plain output is scaled by weight, plus bias."""

        def edit(norm: Any, inputs: Any) -> Tensor:
            maps: Tensor = inputs[0]
            spread = (norm.running_var + norm.eps).sqrt()
            mean, scale = norm.running_mean, weight
            if self.statistics == "online":
                variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0)
                scale = weight * spread / (variance + norm.eps).sqrt()
            shift = norm.running_mean + spread * bias - scale * mean
            moved: Tensor = scale[:, :, None, None] * maps + shift[:, :, None, None]
            return moved

        return edit


def layers(victim: Victim) -> dict[str, nn.Module]:
    """Find the layers that are adapted: batch normalisation, layer normalisation if none."""
    batch: dict[str, nn.Module] = {}
    layer: dict[str, nn.Module] = {}
    for name, module in victim.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            batch[name] = module
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            layer[name] = module
    return batch or layer


def _over_batches(norms: dict[str, nn.Module]) -> bool:
    return all(isinstance(norm, nn.BatchNorm2d) for norm in norms.values())


def _names(victim: Victim) -> list[str]:
    """Name the affine parameters of these layers."""
    return [
        f"{layer}.{name}"
        for layer, module in layers(victim).items()
        for name, _ in module.named_parameters(recurse=False)
    ]


def _split(victim: Victim, affine: Tensor) -> dict[str, Tensor]:
    """Cut (n, P) into (n, *shape) for each affine parameter."""
    names = _names(victim)
    shapes = [victim.get_parameter(name).shape for name in names]
    parts = torch.split(affine, [shape.numel() for shape in shapes], 1)
    return {
        name: part.view(-1, *shape) for name, part, shape in zip(names, parts, shapes, strict=True)
    }


def _floored(chances: Tensor) -> Tensor:
    """Entropy of each row of probabilities, (n, K), with a floor in the logarithm."""
    return -(chances * (chances + _FLOOR).log()).sum(1)
