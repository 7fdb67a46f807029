"""Train the shipped digit classifier: `python -m registry.models.recipes.mnist_cnn`.

Uses the `train` split alone; the last epoch is kept, so no accuracy in the record chose anything.
The result is the same on every run of one machine and one version of torch.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from registry.models.mnist_cnn import SHIPPED
from registry.models.recipes.training import Recipe, warp

TURN = math.radians(12.0)  # largest rotation
SCALE = 0.12  # largest relative change of size, each axis on its own
SHEAR = 0.15  # largest shear
SHIFT = 2.0 / 14.0  # largest shift, 2 pixels in units of half the width


def distort(images: Tensor, rng: Generator) -> Tensor:
    """Rotate, scale, shear and shift each image, (n, 1, H, W), by its own random amounts."""
    turn, shear, wide, high, right, down = (
        2.0 * torch.rand(6, len(images), generator=rng) - 1.0
    ) * torch.tensor([TURN, SHEAR, SCALE, SCALE, SHIFT, SHIFT]).view(6, 1)
    cosine, sine = turn.cos(), turn.sin()
    across = [(1 + wide) * cosine, shear - sine, right]
    return warp(images, across, [sine, (1 + high) * cosine, down])


RECIPE = Recipe("mnist_cnn", SHIPPED, "mnist", images=3_000, epochs=60, distort=distort)

if __name__ == "__main__":
    RECIPE.run()
