"""What every data set must keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmark.config import Config
from benchmark.contract.toy import NotHere, demand
from benchmark.data import DataRequest, Dataset, Split
from benchmark.entry import Choice
from benchmark.errors import DataError


def _load(choice: Choice[Any], config: Config) -> Dataset:
    try:
        dataset: Dataset = choice.entry.build(
            DataRequest(choice.argument, config.data_root), **choice.values
        )
    except DataError as error:
        raise NotHere(str(error)) from None
    return dataset


def check_images(choice: Choice[Any], config: Config) -> None:
    """Images are NCHW float32 in [0, 1], labels int64 in range."""
    data = _load(choice, config)
    samples = data.take(Split.EVAL, min(50, len(data.splits[Split.EVAL])))
    demand(samples.images.dtype == torch.float32, f"images are {samples.images.dtype}")
    demand(samples.images.dim() == 4, f"images have shape {tuple(samples.images.shape)}")
    demand(samples.images.amax() > 0.5, "no pixel is above 0.5: are values scaled to [0, 1]?")
    demand(data.labels.dtype == np.int64, f"labels are {data.labels.dtype}")
    low, high = int(data.labels.min()), int(data.labels.max())
    demand(low >= 0 and high < data.num_classes, f"labels go from {low} to {high}")


def check_splits(choice: Choice[Any], config: Config) -> None:
    """Splits are disjoint, and eval is not empty."""
    data = _load(choice, config)
    together = np.concatenate([data.splits[split] for split in Split])
    demand(len(np.unique(together)) == len(together), "an image is in two splits, or twice")
    demand(len(data.splits[Split.EVAL]) > 0, "split eval is empty")


def check_order(choice: Choice[Any], config: Config) -> None:
    """Loading twice gives the same order, content and fingerprint."""
    first, again = _load(choice, config), _load(choice, config)
    demand(first.fingerprint == again.fingerprint, "the fingerprint changed")
    for split in Split:
        demand(np.array_equal(first.splits[split], again.splits[split]), f"'{split}' changed")
    count = min(5, len(first.splits[Split.EVAL]))
    one, two = (data.take(Split.EVAL, count).images for data in (first, again))
    demand(torch.equal(one, two), "the images changed")
