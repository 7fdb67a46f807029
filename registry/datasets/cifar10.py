"""CIFAR-10 from Parquet files or from torchvision's own files."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.data import DataRequest, Dataset, Indices, Split, stratified
from benchmark.errors import DataError
from benchmark.images import decode, digest, one_line
from benchmark.parquet import read_parquet
from benchmark.registry import Source, dataset
from benchmark.types import Norm

_BATCHES = "cifar-10-batches-py"
_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_SEED = 10


class _Pools(NamedTuple):
    """All images: those of the test pool first, lossy ones last."""

    labels: Indices
    tests: int
    lossy: int
    read: Callable[[Indices], Tensor]
    fingerprint: str


@dataset(
    source=Source(
        paper="Krizhevsky: Learning Multiple Layers of Features from Tiny Images",
        url="https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
        year=2009,
    ),
    model="resnet20",
    eps={Norm.LINF: 8 / 255, Norm.L2: 1.0},
)
def cifar10(request: DataRequest, *, jpeg: bool = False) -> Dataset:
    """CIFAR-10, 3x32x32: test images are attacked, training images calibrate and train.

    Args:
        request: Its root holds `cifar10/test*.parquet` with `cifar10/train*.parquet`, or
            `cifar-10-batches-py`, directly or in `cifar10/`.
        jpeg: The images of `cifar10/train*jpeg*.parquet` train, too, for defenses that need many;
            without it they are used only where there are no lossless ones. Copies of images
            that calibrate may be among them, as they are among those the victims were trained on.

    Raises:
        DataError: If it holds neither, or damaged files, or no such JPEG images.
    """
    pools = _find(request.root, jpeg=jpeg)
    return Dataset(
        name="cifar10",
        labels=pools.labels,
        class_names=_CLASSES,
        splits=_splits(pools.labels, pools.tests, pools.lossy),
        read=pools.read,
        fingerprint=pools.fingerprint,
    )


def _splits(labels: Indices, tests: int, lossy: int = 0) -> dict[Split, Indices]:
    whole = len(labels) - lossy
    train = labels[tests:whole]
    calibrate = 0.5 if len(train) < 10_000 else 5_000 / len(train)
    shares = {Split.CALIBRATE: calibrate, Split.TRAIN: 1.0 - calibrate}
    splits = stratified(labels[:tests], {Split.EVAL: 1.0}, _SEED)
    rest = stratified(train, shares, _SEED)
    splits |= {split: ids + tests for split, ids in rest.items()}
    splits[Split.TRAIN] = np.concatenate([splits[Split.TRAIN], np.arange(whole, len(labels))])
    return splits


def _find(root: Path | None, *, jpeg: bool) -> _Pools:
    how = "set --data-root DIR or QUERYBENCH_DATA"
    if root is None:
        raise DataError(f"data set 'cifar10' needs a data folder: {how}")
    folder = root / "cifar10"
    tests, trains = _lossless(folder, "test"), _lossless(folder, "train")
    compressed = sorted(folder.glob("train*jpeg*.parquet")) if jpeg else []
    if jpeg and not compressed:
        raise DataError(f"cifar10[jpeg=true]: '{folder}/train*jpeg*.parquet' was not found")
    if tests:
        return _from_parquet(tests, trains, [file for file in compressed if file not in trains])
    for parent in (root, folder):
        if (parent / _BATCHES).is_dir():
            return _from_batches(parent)
    tried = f"'{folder}/test*.parquet', '{root / _BATCHES}' and '{folder / _BATCHES}'"
    raise DataError(f"data set 'cifar10' was not found: tried {tried}; {how}")


def _lossless(folder: Path, start: str) -> list[Path]:
    # A victim trained on lossless images loses about 10 points of accuracy on JPEG ones,
    # so files with 'jpeg' in their name are used only if there are no others.
    files = sorted(folder.glob(f"{start}*.parquet"))
    return [file for file in files if "jpeg" not in file.name.lower()] or files


def _from_parquet(tests: list[Path], trains: list[Path], lossy: list[Path]) -> _Pools:
    table = read_parquet([*tests, *trains, *lossy])
    if (table.class_names or _CLASSES) != _CLASSES or table.labels.max() >= len(_CLASSES):
        raise DataError(f"'{tests[0]}' does not have the ten classes of CIFAR-10")

    def read(ids: Indices) -> Tensor:
        return decode(table.pictures, ids, "RGB")

    tested, whole = sum(table.rows[: len(tests)]), sum(table.rows[: len(tests) + len(trains)])
    return _Pools(table.labels, tested, len(table.labels) - whole, read, table.fingerprint)


def _from_batches(parent: Path) -> _Pools:
    # Importing torchvision takes seconds; other data sets do not need it.
    datasets: Any = importlib.import_module("torchvision.datasets")
    try:
        # torchvision unpickles a file only if its md5 is right, so no foreign code can run.
        pools = [datasets.CIFAR10(str(parent), train=train) for train in (False, True)]
    except (OSError, RuntimeError) as error:
        raise DataError(f"'{parent / _BATCHES}' cannot be read: {one_line(error)}") from error
    pixels = np.concatenate([pool.data for pool in pools])
    labels = np.concatenate([np.array(pool.targets, dtype=np.int64) for pool in pools])

    def read(ids: Indices) -> Tensor:
        return torch.from_numpy(pixels[ids]).permute(0, 3, 1, 2).contiguous().float().div_(255)

    content = digest([labels.tobytes(), pixels.tobytes()])
    return _Pools(labels, len(pools[0].data), 0, read, content)
