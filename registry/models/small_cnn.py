"""What the shipped victims for grey images of 28x28 share: their network and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from benchmark.checkpoints import load_into, read_state
from benchmark.errors import SpecError
from benchmark.victim import ModelRequest, Victim

_SHAPE = (1, 28, 28)


class SmallCnn(nn.Module):
    """Three blocks of convolution, batch normalisation and ReLU, mean over space, linear head.

    Args:
        num_classes: Number of classes K.
        widths: Channels of each of the three blocks.
    """

    def __init__(self, num_classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.layer1 = _block(1, widths[0])
        self.layer2 = _block(widths[0], widths[1])
        self.layer3 = _block(widths[1], widths[2])
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, (n, 1, 28, 28), to logits, (n, K)."""
        maps = functional.max_pool2d(self.layer1(images), 2)
        maps = functional.max_pool2d(self.layer2(maps), 2)
        logits: Tensor = self.linear(self.layer3(maps).mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class Shipped:
    """A victim whose weights are part of the package.

    Attributes:
        name: Name of the model, and of the file of its weights.
        widths: Channels of each of the three blocks.
        mean: Mean of the pixels it was trained on, in [0, 1].
        std: Their standard deviation.
    """

    name: str
    widths: tuple[int, int, int]
    mean: float
    std: float

    @property
    def weights(self) -> Path:
        """File of the weights; the record of their training has the suffix `.json`."""
        return Path(__file__).parent / "weights" / f"{self.name}.safetensors"

    def network(self, num_classes: int) -> SmallCnn:
        """Make the network with random weights."""
        return SmallCnn(num_classes, self.widths)

    def victim(self, network: SmallCnn) -> Victim:
        """Put the normalisation before a trained network."""
        classes = network.linear.out_features
        return Victim(network, mean=(self.mean,), std=(self.std,), num_classes=classes)

    def load(self, request: ModelRequest) -> Victim:
        """Make the victim with the weights asked for, else with those of the package.

        Raises:
            SpecError: If images are not 1x28x28.
            DataError: If the weights are missing, damaged or do not fit.
        """
        if request.image_shape != _SHAPE:
            size = "x".join(str(side) for side in request.image_shape)
            raise SpecError(f"model '{self.name}' takes images of 1x28x28, not {size}")
        path = request.checkpoint or self.weights
        network = self.network(request.num_classes)
        load_into(network, read_state(path), path)
        return self.victim(network)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
