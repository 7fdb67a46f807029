"""What data sets of image files share: decoding, resizing, splits and hashes."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from benchmark.data import Indices, Split, stratified
from benchmark.errors import DataError, SpecError

T = TypeVar("T")
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # others saturate
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """A centre crop.

    Attributes:
        size: Side of the crop in pixels, > 0.
        resize: Shorter side before the crop in pixels, >= size.
    """

    size: int
    resize: int

    @classmethod
    def of(cls, who: str, size: int | None, resize: int | None) -> Crop | None:
        """Read the parameters `size` and `resize`; None keeps images as they are.

        Without `resize`, the crop shows 7/8 of the shorter side, as is usual for ImageNet.

        Raises:
            SpecError: If `resize` comes without `size`, or is smaller.
        """
        if size is None:
            if resize is not None:
                raise SpecError(f"{who}: resize={resize} needs size, the side of the crop")
            return None
        resize = round(size / 0.875) if resize is None else resize
        if resize < size:
            raise SpecError(f"{who}: resize={resize} is smaller than size={size}")
        return cls(size, resize)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Resize (bilinear, antialiased) and cut the centre out."""
        # Importing torchvision takes seconds; other data sets do not need it.
        transforms: Any = importlib.import_module("torchvision.transforms.functional")
        cut: Image.Image = transforms.center_crop(transforms.resize(image, self.resize), self.size)
        return cut


@dataclass(frozen=True)
class Pictures:
    """Encoded images, each decoded when it is read.

    Attributes:
        count: Number of images.
        encoded: File or content of an image, by position.
        where: How messages name an image, by position.
    """

    count: int
    encoded: Callable[[int], Path | BytesIO]
    where: Callable[[int], str]

    def look(self, index: int, use: Callable[[Image.Image], T]) -> T:
        """Open an image and return what `use` makes of it.

        Raises:
            DataError: If it cannot be decoded.
        """
        try:
            with Image.open(self.encoded(index)) as image:
                return use(image)
        except Exception as error:  # decoders fail in many ways
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "unknown format" if unknown else one_line(error)
            raise DataError(f"{self.where(index)}: image cannot be decoded: {reason}") from error


def decode(pictures: Pictures, ids: Indices, mode: str, crop: Crop | None = None) -> Tensor:
    """Decode images.

    Args:
        pictures: Where they come from.
        ids: Positions, (n,).
        mode: "L" for one channel, "RGB" for three.
        crop: Cut out of every image, or None.

    Returns:
        (n, C, H, W), float32, in [0, 1].

    Raises:
        DataError: If one cannot be decoded or they differ in size.
    """

    def pixels(image: Image.Image) -> Pixels:
        if image.mode not in _EIGHT_BIT:
            raise ValueError(f"mode {image.mode} has no 8-bit values. Convert it first.")
        image = image.convert(mode)
        return np.array(image if crop is None else crop(image))

    arrays: list[Pixels] = []
    for index in ids.tolist():
        arrays.append(pictures.look(index, pixels))
        if arrays[-1].shape != arrays[0].shape:
            raise DataError(f"{pictures.where(index)}: image differs in size from the others")
    if not arrays:
        return torch.empty(0, 1 if mode == "L" else 3, 0, 0)
    stacked = torch.from_numpy(np.stack(arrays))
    stacked = stacked.unsqueeze(1) if mode == "L" else stacked.permute(0, 3, 1, 2)
    return stacked.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def reader(pictures: Pictures, crop: Crop | None, form: str) -> Callable[[Indices], Tensor]:
    """Return the function that loads images by position: grey only if all of them are.

    Args:
        pictures: Where they come from.
        crop: Cut out of every image, or None if all have the same size.
        form: How the user names the data set, for the message.

    Raises:
        DataError: If images differ in size and there is no crop, or cannot be opened.
    """
    mode, first = "L", (0, 0)
    for index in range(pictures.count):
        kind, size = pictures.look(index, lambda image: (image.mode, image.size))
        mode, first = "L" if mode == kind == "L" else "RGB", first if index else size
        if crop is None and size != first:
            raise DataError(
                f"{pictures.where(index)}: image is {size[0]}x{size[1]}, the first is "
                f"{first[0]}x{first[1]}; write {form}[size=224]"
            )
        if crop is not None and mode == "RGB":
            break  # nothing to learn from the other files of a large data set
    return lambda ids: decode(pictures, ids, mode, crop)


def shared_splits(labels: Indices, eval_share: float, seed: int) -> dict[Split, Indices]:
    """Divide images into eval and, in halves, calibrate and train."""
    half = (1.0 - eval_share) / 2
    shares = {Split.EVAL: eval_share, Split.CALIBRATE: half, Split.TRAIN: half}
    return stratified(labels, shares, seed)


def digest(parts: Iterable[bytes]) -> str:
    """Hash a sequence of contents: sha256, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()[:16]


def one_line(error: Exception) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
