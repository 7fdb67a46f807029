"""Networks that stealing attacks train: images in [0, 1] of any size to logits."""

from __future__ import annotations

import itertools
from enum import StrEnum

from torch import Tensor, nn
from torch.nn import functional

from registry.models.resnet_cifar import CifarResNet

_WIDTH, _BLOCKS = 2, 3  # of WRN-22-2: (22 - 4) / 6 blocks a stage


class CloneName(StrEnum):
    """Architectures of clones."""

    USUAL = "usual"  # cnn for grey images, resnet20 for colours
    CNN = "cnn"  # three convolutions, 1.9 MMAC for 28x28
    RESNET20 = "resnet20"  # 41 MMAC for 32x32
    WRN_22_2 = "wrn-22-2"  # 158 MMAC for 32x32; MAZE's own


class Centred(nn.Module):
    """Brings images in [0, 1] to [-1, 1] before a network: an attacker knows no statistics.

    Args:
        network: From images in [-1, 1] to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images, (n, C, H, W) in [0, 1], to logits, (n, K)."""
        logits: Tensor = self.network(2 * images - 1)
        return logits


def clone_of(name: CloneName, channels: int, num_classes: int) -> nn.Module:
    """Build a clone with fresh weights from the global random stream."""
    if name is CloneName.USUAL:
        name = CloneName.CNN if channels == 1 else CloneName.RESNET20
    if name is CloneName.CNN:
        return Centred(_cnn(channels, num_classes))
    if name is CloneName.RESNET20:
        return Centred(CifarResNet(3, num_classes, channels))
    return Centred(WideResNet(channels, num_classes))


def _cnn(channels: int, num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


class WideResNet(nn.Module):
    """WRN-22-2 of Zagoruyko and Komodakis (2016): pre-activation blocks, twice as wide.

    Args:
        channels: Channels of the images.
        num_classes: Number of classes K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        widths = (16, 16 * _WIDTH, 32 * _WIDTH, 64 * _WIDTH)
        stages = [
            _stage(inputs, outputs, 1 if place == 0 else 2)
            for place, (inputs, outputs) in enumerate(itertools.pairwise(widths))
        ]
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, (n, C, H, W), to logits, (n, K)."""
        maps = functional.relu(self.bn(self.stages(self.conv1(images))))
        logits: Tensor = self.linear(maps.mean(dim=(2, 3)))
        return logits


class _WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = functional.relu(self.bn1(maps))
        kept = self.shortcut(active) if self.shortcut else maps
        deeper: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return kept + deeper


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = _WideBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(_WideBlock(outputs, outputs, 1) for _ in range(_BLOCKS - 1)))
