"""Train the shipped garment classifier: `python -m registry.models.recipes.fashion_cnn`.

Uses the first half of the `train` split alone, so that the second half is new to the victim. The
`calibrate` split chose the largest shift and the number of epochs; `eval` chose nothing.
The result is the same on every run of one machine and one version of torch.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from registry.models.fashion_cnn import SHIPPED
from registry.models.recipes.training import Recipe, warp

SHIFT = 1  # largest shift, in pixels
HALF_WIDTH = 14  # of an image, in pixels


def distort(images: Tensor, rng: Generator) -> Tensor:
    """Mirror each image, (n, 1, 28, 28), or not, and shift it by whole pixels."""
    count = len(images)
    side = 2.0 * torch.randint(2, (count,), generator=rng) - 1.0
    right, down = torch.randint(-SHIFT, SHIFT + 1, (2, count), generator=rng) / HALF_WIDTH
    none = torch.zeros(count)
    return warp(images, [side, none, right], [none, none + 1.0, down])


RECIPE = Recipe("fashion_cnn", SHIPPED, "fashion-mnist", images=30_000, epochs=30, distort=distort)

if __name__ == "__main__":
    RECIPE.run()
