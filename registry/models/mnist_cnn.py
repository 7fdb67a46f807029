"""A small convolutional network for handwritten digits, shipped with its weights."""

from __future__ import annotations

from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim
from registry.models.small_cnn import Shipped

SHIPPED = Shipped("mnist-cnn", widths=(16, 32, 64), mean=0.1307, std=0.3081)


@model(
    source=Source(
        paper="LeCun et al., Gradient-Based Learning Applied to Document Recognition",
        url="https://doi.org/10.1109/5.726791",
        year=1998,
        differences=(
            "batch normalisation, ReLU and maximum pooling replace the layers of LeNet-5",
            "trained on 3,000 digits; `registry.models.recipes.mnist_cnn` is the recipe",
        ),
    )
)
def mnist_cnn(request: ModelRequest) -> Victim:
    """Small convolutional network for 28x28 digits; its weights are part of the package."""
    return SHIPPED.load(request)
