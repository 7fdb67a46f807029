"""Residual networks for CIFAR: 6n+2 layers, three stages, shortcuts without parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from benchmark.checkpoints import load_into, read_state
from benchmark.errors import DataError, SpecError
from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_SHAPE = (3, 32, 32)
_SOURCE = Source(
    paper="He et al., Deep Residual Learning for Image Recognition",
    url="https://arxiv.org/abs/1512.03385",
    year=2016,
    differences=(
        "normalised by ImageNet's mean and deviation, as the weights in use were trained",
        "zero channels of a shortcut go half before and half after, as in the weights in use",
    ),
)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut that subsamples and pads with zero channels.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output, `inputs` or twice as many.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def shortcut(self, maps: Tensor) -> Tensor:
        """Bring the input, (n, c, h, w), to the shape of the output without parameters."""
        if self.padding:
            maps = maps[:, :, :: self.stride, :: self.stride]
            return functional.pad(maps, (0, 0, 0, 0, self.padding, self.padding))
        return maps

    def forward(self, maps: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = functional.relu(self.bn1(self.conv1(maps)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))


class CifarResNet(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, mean over space, linear head.

    Args:
        blocks: Blocks in each stage, n; the network has 6n+2 layers.
        num_classes: Number of classes K.
        channels: Channels of the images.
    """

    def __init__(self, blocks: int, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, (n, 3, 32, 32), to logits, (n, K)."""
        maps = functional.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(maps.mean(dim=(2, 3)))
        return logits


@model(source=_SOURCE, weights="cifar10-resnet20.safetensors")
def resnet20(request: ModelRequest) -> Victim:
    """CIFAR ResNet with 20 layers and 0.27 million parameters."""
    return _victim(3, request)


@model(source=_SOURCE, weights="cifar10-resnet32.safetensors")
def resnet32(request: ModelRequest) -> Victim:
    """CIFAR ResNet with 32 layers and 0.46 million parameters."""
    return _victim(5, request)


@model(source=_SOURCE, weights="cifar10-resnet44.safetensors")
def resnet44(request: ModelRequest) -> Victim:
    """CIFAR ResNet with 44 layers and 0.66 million parameters."""
    return _victim(7, request)


@model(source=_SOURCE, weights="cifar10-resnet56.safetensors")
def resnet56(request: ModelRequest) -> Victim:
    """CIFAR ResNet with 56 layers and 0.85 million parameters."""
    return _victim(9, request)


def _stage(blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    first = Block(inputs, outputs, outputs // inputs)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _victim(blocks: int, request: ModelRequest) -> Victim:
    name = f"resnet{6 * blocks + 2}"
    if request.image_shape != _SHAPE:
        size = "x".join(str(side) for side in request.image_shape)
        raise SpecError(f"model '{name}' takes images of 3x32x32, not {size}")
    if request.checkpoint is None:
        raise DataError(
            f"model '{name}' needs weights: give --checkpoint FILE, "
            f"or a weights folder that contains cifar10-{name}.safetensors"
        )
    network = CifarResNet(blocks, request.num_classes)
    load_into(network, read_state(request.checkpoint), request.checkpoint)
    return Victim(network, mean=_MEAN, std=_STD, num_classes=request.num_classes)
