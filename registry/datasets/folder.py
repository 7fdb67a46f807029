"""Any folder of images with one folder for each class."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from benchmark.data import DataRequest, Dataset
from benchmark.errors import DataError
from benchmark.images import Crop, Pictures, digest, one_line, reader, shared_splits
from benchmark.registry import Source, dataset

_SEED = 17
_HASHED = 2**31  # bytes up to which the content itself is hashed


@dataset(
    source=Source(
        paper="torchvision: ImageFolder",
        url="https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html",
        year=2017,
    ),
    argument="PATH",
)
def folder(
    request: DataRequest,
    *,
    size: Annotated[int, Field(gt=0)] | None = None,
    resize: Annotated[int, Field(gt=0)] | None = None,
    eval_share: Annotated[float, Field(gt=0, le=1)] = 0.5,
) -> Dataset:
    """Images of a folder that holds one folder for each class, as torchvision reads them.

    Args:
        request: Its argument is the path.
        size: Side of the centre crop in pixels; needed when images differ in size.
        resize: Shorter side before the crop in pixels; size / 0.875 if not given.
        eval_share: Share attacked; the rest is halved between calibrate and train.

    Raises:
        DataError: If there are no such images, or they differ in size and `size` is not given.
        SpecError: If `size` and `resize` do not go together.
    """
    path = Path(request.argument).expanduser().resolve()
    crop = Crop.of("data set 'folder'", size, resize)
    found = _scan(path)
    files = [Path(file) for file, _ in found.samples]
    labels = np.array(found.targets, dtype=np.int64)
    pictures = Pictures(len(files), lambda i: files[i], lambda i: f"'{files[i]}'")
    return Dataset(
        name=f"folder:{path.name}",
        labels=labels,
        class_names=tuple(found.classes),
        splits=shared_splits(labels, eval_share, _SEED),
        read=reader(pictures, crop, "folder:PATH"),
        fingerprint=_fingerprint(path, found.samples),
    )


def _scan(path: Path) -> Any:
    if not path.is_dir():
        raise DataError(f"folder '{path}' does not exist")
    # Importing torchvision takes seconds; other data sets do not need it.
    datasets: Any = importlib.import_module("torchvision.datasets")
    try:
        return datasets.ImageFolder(str(path))
    except OSError as error:
        raise DataError(f"folder '{path}' is no image folder: {one_line(error)}") from error


def _fingerprint(path: Path, samples: list[tuple[str, int]]) -> str:
    files = [(Path(file), label) for file, label in sorted(samples)]
    whole = sum(file.stat().st_size for file, _ in files) <= _HASHED

    def parts() -> Iterator[bytes]:
        for file, label in files:
            yield f"{file.relative_to(path).as_posix()} {label}".encode("utf-8", "surrogateescape")
            # Hashing all of ImageNet takes too long: size and time stand for its content.
            stat = file.stat()
            yield file.read_bytes() if whole else f"{stat.st_size} {stat.st_mtime_ns}".encode()

    return digest(parts())
