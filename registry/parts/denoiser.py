"""A small network that predicts the noise in an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, relu

from registry.parts.diffusion import scales


class Denoiser(nn.Module):
    """Convolutions at half resolution, with the noise level as one more channel.

    The layout is that of FFDNet (Zhang et al. 2018) with shortcuts around the inner layers and
    no batch normalisation. The layers predict v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans &
    Ho 2022), which is well scaled at every time; the noise follows from it.

    Args:
        channels: Channels of an image.
        width: Channels of the inner layers.
        depth: Number of convolutions, at least 2.
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(4 * channels + 1, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth - 2))
        self.last = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        """Predict the noise in x_t, (n, C, H, W), at times t, (n,)."""
        kept, spread = (each.view(-1, 1, 1, 1) for each in scales(times))
        height, width = noisy.shape[2:]
        even = pad(noisy, (0, width % 2, 0, height % 2), mode="replicate")
        maps = pixel_unshuffle(even, 2)
        level = spread.expand(-1, 1, *maps.shape[2:])
        maps = relu(self.first(torch.cat((maps, level), 1)))
        for layer in self.inner:
            maps = maps + relu(layer(maps))
        speed = pixel_shuffle(self.last(maps), 2)[:, :, :height, :width]
        return spread * noisy + kept * speed
