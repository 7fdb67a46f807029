"""Fashion-MNIST from its four files, as published, as torchvision keeps them or from Debian."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.data import DataRequest, Dataset, Indices, Split, stratified
from benchmark.errors import DataError
from benchmark.images import Pixels, digest, one_line
from benchmark.registry import Source, dataset
from benchmark.types import Norm

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_HOW = (
    "apt-get install dataset-fashion-mnist, or set --data-root DIR or QUERYBENCH_DATA "
    "to the folder that holds it"
)
_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_SIDE = 28
_SEED = 2828


class _Pool(NamedTuple):
    """Pixels, (n, 1, 28, 28), and labels, (n,)."""

    pixels: Pixels
    labels: Indices


@dataset(
    source=Source(
        paper="Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking "
        "Machine Learning Algorithms",
        url="https://arxiv.org/abs/1708.07747",
        year=2017,
    ),
    model="fashion-cnn",
    eps={Norm.LINF: 0.1, Norm.L2: 1.5},
)
def fashion_mnist(request: DataRequest) -> Dataset:
    """Fashion-MNIST, 1x28x28: half of the test images are attacked, the other half calibrates.

    The training images are split `train`. Every prefix of it is balanced, and `fashion-cnn` was
    trained on the first 30,000 of its 60,000 images: those after them are new to it.

    Args:
        request: Its root holds `fashion-mnist/` or torchvision's `FashionMNIST/raw/`; the folder
            of Debian's package `dataset-fashion-mnist` is the last that is tried.

    Raises:
        DataError: If there is no such folder, or a file in it is missing or damaged.
    """
    folder = _find(request.root)
    tests, trains = _pool(folder, "t10k"), _pool(folder, "train")
    pixels = np.concatenate([tests.pixels, trains.pixels])
    labels = np.concatenate([tests.labels, trains.labels])

    def read(ids: Indices) -> Tensor:
        return torch.from_numpy(pixels[ids]).to(torch.float32).div_(255)

    return Dataset(
        name="fashion-mnist",
        labels=labels,
        class_names=_CLASSES,
        splits=_splits(labels, len(tests.labels)),
        read=read,
        fingerprint=digest([labels.tobytes(), pixels.tobytes()]),
    )


def _splits(labels: Indices, tests: int) -> dict[Split, Indices]:
    halves = stratified(labels[:tests], {Split.EVAL: 0.5, Split.CALIBRATE: 0.5}, _SEED)
    rest = stratified(labels[tests:], {Split.TRAIN: 1.0}, _SEED)
    return halves | {Split.TRAIN: rest[Split.TRAIN] + tests}


def _find(root: Path | None) -> Path:
    below = [] if root is None else [root / "fashion-mnist", root / "FashionMNIST" / "raw"]
    tried = [*below, _DEBIAN]
    for folder in tried:
        if folder.is_dir():
            return folder
    names = ", ".join(f"'{folder}'" for folder in tried)
    raise DataError(f"data set 'fashion-mnist' was not found: tried {names}; {_HOW}")


def _pool(folder: Path, part: str) -> _Pool:
    pixels = _read(folder, f"{part}-images-idx3-ubyte", 3)
    labels = _read(folder, f"{part}-labels-idx1-ubyte", 1)
    highest = labels.max(initial=0)
    if pixels.shape != (len(labels), _SIDE, _SIDE) or highest >= len(_CLASSES):
        raise DataError(
            f"data set 'fashion-mnist': '{folder}/{part}-*' hold images of {pixels.shape} and "
            f"{len(labels)} labels up to {highest}, wanted (n, 28, 28) and n labels up to 9"
        )
    return _Pool(pixels[:, None], labels.astype(np.int64))


def _read(folder: Path, name: str, axes: int) -> Pixels:
    """Read an IDX file: 0, 0, 8 for bytes, number of axes, their lengths, values."""
    packed, plain = folder / f"{name}.gz", folder / name
    file = packed if packed.is_file() else plain
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if file == packed else content
        if content[:4] != bytes([0, 0, 8, axes]):
            raise ValueError(f"no IDX file of bytes with {axes} axes")
        shape = np.frombuffer(content, ">u4", axes, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except FileNotFoundError:
        raise DataError(f"data set 'fashion-mnist': '{packed}' is missing; {_HOW}") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = one_line(error)
        raise DataError(f"data set 'fashion-mnist': cannot read '{file}': {reason}") from error
