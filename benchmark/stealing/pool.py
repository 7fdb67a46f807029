"""Images that an attacker has: another data set, brought to the victim's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmark.data import Dataset, Split
from benchmark.errors import SpecError

_GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in luma (ITU-R BT.601)


@dataclass(frozen=True)
class Pool:
    """Images that an attacker has.

    Attributes:
        labels: (n,) int64, classes of their own; they need not be the victim's.
        num_classes: Number of these classes.
        read: Loads images by position, (m, C, H, W), float32 in [0, 1], of the victim's size.
    """

    labels: Tensor
    num_classes: int
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def open_pool(data: Dataset, count: int | None, shape: tuple[int, int, int]) -> Pool:
    """Take an attacker's images from the end of a data set's split `train`.

    A shipped victim that was not trained on all of it was trained on its beginning.

    Args:
        data: The data set.
        count: Number of images; None means the whole split.
        shape: Shape of one image of the victim, (C, H, W).

    Raises:
        SpecError: If the split has fewer.
    """
    ids = data.splits[Split.TRAIN][::-1].copy()
    if count is not None and count > len(ids):
        raise SpecError(
            f"--pool-images {count}: split 'train' of data set '{data.name}' has only {len(ids)}"
        )
    ids = ids[:count]

    def read(places: Tensor) -> Tensor:
        return fitted(data.read(ids[places.numpy()]), shape)

    return Pool(torch.from_numpy(data.labels[ids]), data.num_classes, read)


def fitted(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bring images, (n, c, h, w), to a number of channels and a size; (n, *shape) in [0, 1]."""
    channels, height, width = shape
    if images.shape[1] != channels:
        if images.shape[1] == 3:
            images = (images * images.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
        images = images[:, :1].expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        images = interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images.clamp(0.0, 1.0).contiguous()


def image_shape(images: Tensor) -> tuple[int, int, int]:
    """Shape of one of some images, (n, C, H, W)."""
    _, channels, height, width = images.shape
    return channels, height, width
