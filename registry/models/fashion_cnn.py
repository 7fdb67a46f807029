"""A small convolutional network for Fashion-MNIST, shipped with its weights."""

from __future__ import annotations

from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim
from registry.models.small_cnn import Shipped

SHIPPED = Shipped("fashion-cnn", widths=(24, 48, 96), mean=0.2865, std=0.3534)


@model(
    source=Source(
        paper="LeCun et al., Gradient-Based Learning Applied to Document Recognition",
        url="https://doi.org/10.1109/5.726791",
        year=1998,
        differences=(
            "batch normalisation, ReLU and maximum pooling replace the layers of LeNet-5",
            "trained on 30,000 garments; `registry.models.recipes.fashion_cnn` is the recipe",
        ),
    )
)
def fashion_cnn(request: ModelRequest) -> Victim:
    """Small convolutional network for Fashion-MNIST; its weights are part of the package.

    It was trained on the first 30,000 images of split `train` of data set `fashion-mnist`; the
    30,000 after them it has never seen.
    """
    return SHIPPED.load(request)
