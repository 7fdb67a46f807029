"""UniG: scale the penultimate features so that neighbouring queries' gradients agree."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from benchmark.data import Dataset, Split
from benchmark.defense import Defense, QueryContext
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.rows import occurrence
from benchmark.victim import Victim

_SPREAD = 0.5  # standard deviation of the first A around 1
_MOMENTUM, _DECAY = 0.9, 5e-4  # of the released code's optimiser
_TINY = 1e-12  # all-confident batches have gradients of zero


@defense(
    source=Source(
        paper="Wu et al.: Unifying Gradients to Improve Real-world Robustness (TIST)",
        url="https://arxiv.org/abs/2208.06228",
        year=2023,
        code="https://github.com/snowien/UniG-pytorch",
        differences=(
            "the default forgets its momentum after each query, as the paper's algorithm does; "
            "variant=official keeps it across queries, as the released code does",
            "by default each query is unified with fixed training images, not with the other "
            "images under attack; composition=batch is the paper's",
            "norms and ranges are kept from zero, where the released code divides by them",
        ),
    ),
    level=Level.PENULTIMATE,
    traits=Traits(randomised=True),
    strength="delta",
    presets={
        "official": Preset(
            "authors' code, CIFAR-10",
            {"variant": "official", "composition": "batch"},
            note="its batches shrink as images are broken; here training images take their place",
        ),
        "single": Preset(
            "authors' code for a single image: a cascade with five training images",
            {"variant": "official", "context": 5},
            note="the paper says ten, which is our default",
        ),
        "imagenet": Preset(
            "authors' code, ImageNet",
            {
                "variant": "official",
                "composition": "batch",
                "delta": 0.1,
                "alpha": 1.0,
                "batch": 32,
            },
        ),
    },
    examples=(
        "[variant=official]",
        "[variant=noise-only]",
        "[variant=step-only]",
        "[composition=batch]",
        "[variant=official,composition=batch]",
        "[steps=3]",
    ),
)
@dataclass(kw_only=True)
class UniG(Defense):
    """Answers head(A * f) with A moved to unify the rows' gradients (Algorithm 1).

    Attributes:
        delta: Most that an entry of A differs from 1.
        steps: Gradient steps on A for each query.
        alpha: Length of a step.
        variant: "fresh" starts the optimiser anew for each query, "official" keeps its momentum;
            ablations: "noise-only" takes no step, "step-only" starts A at 1.
        composition: What a query is unified with: fixed training images ("context"), or the
            queries of other images sent together ("batch"), padded with training images.
        context: Training images beside each query in "context".
        batch: Rows of a call in "batch".
    """

    delta: Annotated[float, Field(ge=0, le=1)] = 0.5
    steps: Annotated[int, Field(ge=1)] = 1
    alpha: Annotated[float, Field(ge=0)] = 10.0
    variant: Literal["fresh", "official", "noise-only", "step-only"] = "fresh"
    composition: Literal["context", "batch"] = "context"
    context: Annotated[int, Field(ge=1)] = 10
    batch: Annotated[int, Field(ge=2)] = 256
    _beside: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)
    _labels: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)
    _momentum: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.traits = replace(
            type(self).traits,
            randomised=self.variant != "step-only",
            coupled=self.composition == "batch",
            stateful=self.variant == "official",
        )

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Store the features of the training images that stand beside the queries."""
        wanted = self.context if self.composition == "context" else self.batch
        available = max(1, min(wanted, len(data.splits[Split.TRAIN])))
        samples = data.take(Split.TRAIN, available)
        places = torch.arange(wanted) % available  # a small data set is used more than once
        with torch.no_grad():
            self._beside = victim.features(samples.images.to(victim.mean))[places]
        self._labels = samples.labels[places].to(victim.mean.device)

    def on_penultimate(self, features: Tensor, victim: Victim, context: QueryContext) -> Tensor:
        """Scale the features of each query, (n, d)."""
        if self.composition == "batch":
            parts = torch.split(torch.arange(len(features), device=features.device), self.batch)
            return torch.cat([self._together(features[p], victim, context, p) for p in parts])
        if self.variant != "official":
            return self._alone(features, victim, context, context.rows)
        # The momentum makes queries of one owner depend on each other: one at a time.
        result, rank = torch.empty_like(features), occurrence(context.rows)
        for turn in torch.unique(rank).tolist():
            now = rank == turn
            result[now] = self._alone(features[now], victim, context, context.rows[now])
        return result

    def _alone(
        self, features: Tensor, victim: Victim, context: QueryContext, rows: Tensor
    ) -> Tensor:
        """Unify each query with the context images: one problem a query, it comes first."""
        count, size = len(features), 1 + len(self._beside)
        block = torch.cat((features[:, None], self._beside.expand(count, -1, -1)), 1)
        own = victim.head(features).argmax(1)
        labels = torch.cat((own[:, None], self._labels.expand(count, -1)), 1)
        noise = context.rng.normal(rows, (size, features.shape[1]))
        scales = self._unify(block, labels, victim, noise.to(features), rows)
        return features * scales[:, 0]

    def _together(
        self, features: Tensor, victim: Victim, context: QueryContext, part: Tensor
    ) -> Tensor:
        """Unify the queries of one call with each other, in one problem."""
        rows, count = context.rows[part], len(features)
        block = torch.cat((features, self._beside[: self.batch - count]))
        labels = victim.head(block).argmax(1)
        owners = torch.cat((rows, rows[:1].expand(len(block) - count)))
        noise = context.rng.normal(owners, features.shape[1:]).to(features)
        scales = self._unify(block[None], labels[None], victim, noise[None], rows.new_zeros(1))
        return features * scales[0, :count]

    def _unify(
        self, features: Tensor, labels: Tensor, victim: Victim, noise: Tensor, owners: Tensor
    ) -> Tensor:
        """Find A for problems of r rows each, (n, r, d)."""
        start = torch.zeros_like(noise) if self.variant == "step-only" else noise * _SPREAD
        scales = start + 1.0
        if self.variant == "noise-only":
            return scales.clamp_(1.0 - self.delta, 1.0 + self.delta)
        velocity = self._recall(scales, owners)
        span: Tensor | None = None
        for _ in range(self.steps):
            gradient, span = unify_gradient(features, labels, scales, _weights(victim), span)
            velocity = _MOMENTUM * velocity + gradient + _DECAY * scales
            scales = (scales - self.alpha * velocity).clamp_(1.0 - self.delta, 1.0 + self.delta)
        if self._momentum is not None:
            self._momentum[owners] = velocity
        return scales

    def _recall(self, scales: Tensor, owners: Tensor) -> Tensor:
        if self.variant != "official":
            return torch.zeros_like(scales)
        needed = int(owners.max()) + 1
        known = self._momentum
        if known is None or len(known) < needed:
            grown = scales.new_zeros((needed, *scales.shape[1:]))
            if known is not None:
                grown[: len(known)] = known
            self._momentum = known = grown
        return known[owners]


def _weights(victim: Victim) -> tuple[Tensor, Tensor]:
    """Matrix (K, d) and bias (K,) of the head."""
    layer = victim.last_linear
    bias: Tensor | None = layer.bias
    return layer.weight, layer.weight.new_zeros(len(layer.weight)) if bias is None else bias


def unify_gradient(
    features: Tensor,
    labels: Tensor,
    scales: Tensor,
    head: tuple[Tensor, Tensor],
    span: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradient by A of the distances between neighbouring rows' normalised feature gradients.

    Args:
        features: f, (n, r, d): n problems of r rows.
        labels: Pseudo-labels, (n, r).
        scales: A, (n, r, d).
        head: Weight (K, d) and bias (K,) of the last linear layer.
        span: Range of the feature gradients at the first step, (n, 1, 1); None to measure it.

    Returns:
        The gradient, (n, r, d), and the range.
    """
    weight, bias = head
    probabilities = ((features * scales) @ weight.T + bias).softmax(2)
    error = (probabilities - one_hot(labels, weight.shape[0])) @ weight
    slopes = scales * error  # r times the gradient of the mean cross-entropy by f
    rows = features.shape[1]
    if span is None:
        span = (slopes.amax((1, 2), keepdim=True) - slopes.amin((1, 2), keepdim=True)) / rows
        span = span + _TINY
    steps = slopes[:, :-1] - slopes[:, 1:]
    units = steps / (steps.norm(dim=2, keepdim=True) + _TINY)
    pull = torch.zeros_like(slopes)
    pull[:, :-1] += units
    pull[:, 1:] -= units
    through = (scales * pull) @ weight.T
    mixed = probabilities * (through - (probabilities * through).sum(2, keepdim=True))
    return (pull * error + features * (mixed @ weight)) / (rows * span), span
