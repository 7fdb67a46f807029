"""PNI: Gaussian noise on the weights of every convolution and linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmark.data import Dataset
from benchmark.defense import Defense, QueryContext
from benchmark.errors import SpecError
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.victim import Victim
from registry.parts.each import classify_each
from registry.parts.training import Schedule, Trainer, adversarial

_ROOM = 2**27  # bytes of weights that are perturbed at once
_FIRST = 0.25  # alpha before training


@defense(
    source=Source(
        paper="He et al.: Parametric Noise Injection: Trainable Randomness to Improve Deep "
        "Neural Network Robustness Against Adversarial Attack (CVPR)",
        url="https://arxiv.org/abs/1811.09310",
        year=2019,
        code="https://github.com/elliothe/CVPR_2019_PNI",
        differences=(
            "by default no training: one alpha for all layers. epochs > 0 trains one for each "
            "layer together with the weights, as the paper, but by FGSM from the given victim; "
            "the paper also has one for each channel or weight",
            "by default each query has weights of its own; the code draws once for each call, "
            "which draw=per-call does",
            "the deviation divides by the number of weights, in the code by one less",
        ),
    ),
    level=Level.ANSWER,
    traits=Traits(randomised=True),
    strength="alpha",
    presets={
        "official": Preset(
            "authors' code, CIFAR-10, at the start of its training",
            {"alpha": 0.25, "draw": "per-call"},
            note="its alphas and its weights are trained from there",
        ),
        "trained": Preset(
            "paper: alphas of the layers trained with the weights",
            {"alpha": 1.0, "epochs": 15},
            note="160 epochs of PGD with 7 steps there",
        ),
    },
    examples=("[alpha=0.25]", "[alpha=1,epochs=1]"),
)
@dataclass(kw_only=True)
class Pni(Defense):
    """Answers with weights W + alpha * n, n normal with the deviation of W (equations 1 and 2).

    The deviation is that of all entries of a layer's W. Biases and normalisation stay.

    Attributes:
        alpha: Deviation of the noise, as a share of that of the weights; where alphas were
            trained, as a multiple of them.
        draw: Draw weights for each query ("per-row"), or once for all queries of a call, from
            the first one's stream ("per-call").
        epochs: Times that every training image is shown; 0 trains nothing.
        rate: Largest learning rate of the training.
        eps: Radius of the training images, linf, pixel units of the [0, 1] range.
    """

    inside = True

    alpha: Annotated[float, Field(ge=0)] = 0.1
    draw: Literal["per-row", "per-call"] = "per-row"
    epochs: Annotated[int, Field(ge=0)] = 0
    rate: Annotated[float, Field(gt=0)] = 0.02
    eps: Annotated[float, Field(gt=0)] = 8 / 255
    _scales: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.traits = replace(type(self).traits, coupled=self.draw == "per-call")

    def check(self, victim: Victim) -> None:
        """Refuse a victim without layers that can be perturbed."""
        if not layers(victim):
            raise SpecError("pni needs Conv2d or Linear layers; the victim has none")

    def recipe(self) -> Mapping[str, object]:
        """Return what training depends on; empty if nothing is trained."""
        names = ("epochs", "rate", "eps") if self.epochs else ()
        return {name: getattr(self, name) for name in names}

    def fit(self, victim: Victim, data: Dataset) -> Iterator[float]:
        """Train the weights and one alpha for each layer, on clean and on FGSM images alike."""
        alphas = {name: victim.mean.new_full((), _FIRST) for name in layers(victim)}
        schedule = Schedule(self.epochs, 64, self.rate)
        trainer = Trainer(victim, data, schedule, statistics=True, beside=list(alphas.values()))

        def noisy(images: Tensor) -> Tensor:
            drawn = {}
            for name, alpha in alphas.items():
                weight = victim.get_parameter(f"{name}.weight")
                spread = weight.detach().std(correction=0)
                drawn[f"{name}.weight"] = weight + alpha * spread * trainer.normal(weight)
            logits: Tensor = functional_call(victim, drawn, (images,), tie_weights=False)
            return logits

        for images, labels in trainer.batches():
            moved = adversarial(noisy, images, labels, trainer.uniform(images), self.eps, 1)
            losses = [cross_entropy(noisy(shown), labels) for shown in (images, moved)]
            yield trainer.step((losses[0] + losses[1]) / 2)
        self.learned = {name: alpha.detach() for name, alpha in alphas.items()}

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Measure the spread of each layer's weights."""
        self._scales = {
            layer: alpha * float(victim.get_parameter(f"{layer}.weight").std(correction=0))
            for layer, alpha in self.alphas(victim).items()
        }

    def alphas(self, victim: Victim) -> Mapping[str, float]:
        """Return alpha for each layer, by its name: the same for all unless trained."""
        own = {name: abs(float(alpha)) for name, alpha in self.learned.items()}
        return {name: self.alpha * own.get(name, 1.0) for name in layers(victim)}

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Perturb the weights and classify images, (n, C, H, W), to (n, K)."""
        if not any(self._scales.values()):
            bare: Tensor = victim(images)
            return bare
        if self.draw == "per-call":
            drawn = self._perturbed(victim, context.rows[:1], context)
            shared = {name: weights[0] for name, weights in drawn.items()}
            logits: Tensor = functional_call(victim, shared, (images,), tie_weights=False)
            return logits
        parts = torch.split(torch.arange(len(images), device=images.device), self._chunk(victim))
        answers = []
        for part in parts:
            weights = self._perturbed(victim, context.rows[part], context)
            answers.append(classify_each(victim, images[part], weights))
        return torch.cat(answers)

    def _chunk(self, victim: Victim) -> int:
        """How many queries have their weights in memory at once."""
        weights = [victim.get_parameter(f"{layer}.weight") for layer in self._scales]
        return max(1, _ROOM // sum(weight.numel() * weight.element_size() for weight in weights))

    def _perturbed(self, victim: Victim, rows: Tensor, context: QueryContext) -> dict[str, Tensor]:
        """Draw weights for each row, (n, *shape) for each layer, by parameter name."""
        names = [f"{layer}.weight" for layer in self._scales]
        weights = [victim.get_parameter(name) for name in names]
        # One draw for all layers, so that a stream does not show how a call was divided.
        noise = context.rng.normal(rows, (sum(weight.numel() for weight in weights),))
        parts = torch.split(noise.to(weights[0]), [weight.numel() for weight in weights], 1)
        return {
            name: torch.add(weight, part.view(-1, *weight.shape), alpha=scale)
            for name, weight, part, scale in zip(
                names, weights, parts, self._scales.values(), strict=True
            )
        }


def layers(victim: Victim) -> list[str]:
    """Name the layers that get noise: those with a weight that is a parameter of its own."""
    return [
        name
        for name, module in victim.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and "weight" in dict(module.named_parameters(recurse=False))
    ]
