"""A network that makes images from noise."""

from __future__ import annotations

from torch import Tensor, nn

from benchmark.errors import SpecError

_SHRUNK = 4  # the first maps have this part of the side of an image


class Generator(nn.Module):
    """Makes images of noise: a linear layer, and three convolutions with two enlargements.

    It ends before the last nonlinearity: `pixels` makes images of what it returns. The last batch
    normalisation keeps that nonlinearity out of saturation.

    Args:
        latent: Numbers of noise for an image.
        width: Channels of the first maps, even; 128 costs 88 MMAC for 28x28, 64 a quarter of it.
        shape: Shape of one image, (C, H, W).

    Raises:
        SpecError: If height or width is no multiple of 4.
    """

    def __init__(self, latent: int, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % _SHRUNK or breadth % _SHRUNK:
            raise SpecError(
                f"images of {height}x{breadth}: the generator makes sides that are multiples of "
                f"{_SHRUNK} only"
            )
        maps = (width, height // _SHRUNK, breadth // _SHRUNK)
        self.layers = nn.Sequential(
            nn.Linear(latent, width * maps[1] * maps[2]),
            nn.Unflatten(1, maps),
            nn.BatchNorm2d(width),
            *_enlarged(width, width),
            *_enlarged(width, width // 2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Map noise, (n, latent), to pre-activations of images, (n, C, H, W)."""
        activations: Tensor = self.layers(latents)
        return activations


def pixels(activations: Tensor) -> Tensor:
    """Make images in [0, 1] of pre-activations of any shape."""
    return activations.tanh().add(1).div(2)


def _enlarged(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
