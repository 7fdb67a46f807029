"""A network that tells real images from made ones (WGAN-GP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDTH = 64
_PENALTY = 10.0


class Critic(nn.Module):
    """Two convolutions of stride 2 and a linear layer, without batch normalisation.

    Args:
        shape: Shape of one image, (C, H, W); sides that are multiples of 4.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, _WIDTH // 2, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH // 2, _WIDTH, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(_WIDTH * (height // 4) * (width // 4), 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images, (n, C, H, W) in [0, 1], to how real they look, (n,)."""
        looks: Tensor = self.layers(2 * images - 1)
        return looks[:, 0]


def critic_loss(critic: nn.Module, real: Tensor, made: Tensor, shares: Tensor) -> Tensor:
    """Loss of WGAN-GP: made images low, real ones high, slopes of length 1 between them.

    Args:
        critic: The critic.
        real: Real images, (n, C, H, W).
        made: Made images, (n, C, H, W).
        shares: Where between the two the slope is looked at, (n, 1, 1, 1) in [0, 1].
    """
    between = torch.lerp(real, made, shares).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    excess = torch.linalg.vector_norm(slopes.flatten(1), dim=1) - 1
    loss: Tensor = (critic(made) - critic(real) + _PENALTY * excess.square()).mean()
    return loss
