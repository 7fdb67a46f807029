"""A small convolutional network for handwritten digits, shipped with its weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from benchmark.checkpoints import load_into, read_state
from benchmark.errors import SpecError
from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim

WEIGHTS = Path(__file__).parent / "weights" / "mnist-cnn.safetensors"
MEAN, STD = (0.1307,), (0.3081,)
_SHAPE = (1, 28, 28)


class MnistCnn(nn.Module):
    """Three blocks of convolution, batch normalisation and ReLU, mean over space, linear head.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer1 = _block(1, 16)
        self.layer2 = _block(16, 32)
        self.layer3 = _block(32, 64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, (n, 1, 28, 28), to logits, (n, K)."""
        maps = functional.max_pool2d(self.layer1(images), 2)
        maps = functional.max_pool2d(self.layer2(maps), 2)
        logits: Tensor = self.linear(self.layer3(maps).mean(dim=(2, 3)))
        return logits


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
    if request.image_shape != _SHAPE:
        size = "x".join(str(side) for side in request.image_shape)
        raise SpecError(f"model 'mnist-cnn' takes images of 1x28x28, not {size}")
    path = request.checkpoint or WEIGHTS
    network = MnistCnn(request.num_classes)
    load_into(network, read_state(path), path)
    return Victim(network, mean=MEAN, std=STD, num_classes=request.num_classes)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
