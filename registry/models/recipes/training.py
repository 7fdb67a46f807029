"""What the recipes of shipped victims share: training, measurement, record."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmark.catalogue import DATASETS
from benchmark.checkpoints import fingerprint
from benchmark.config import load_config
from benchmark.data import DataRequest, Dataset, Split
from benchmark.victim import Victim
from registry.models.small_cnn import Shipped

SEED = 0
BATCH = 100
RATE = 0.01  # highest learning rate of AdamW
DECAY = 0.01  # weight decay
_AT_ONCE = 500  # images in a forward pass that measures


@dataclass(frozen=True)
class Recipe:
    """How a shipped victim is trained.

    Attributes:
        name: Name of its module in this package.
        shipped: The victim.
        data: Name of the data set.
        images: It is trained on that many images, the first of split `train`.
        epochs: Passes over them; the last one is kept.
        distort: Changes each image, (n, 1, H, W), at random each time it is shown.
    """

    name: str
    shipped: Shipped
    data: str
    images: int
    epochs: int
    distort: Callable[[Tensor, Generator], Tensor]

    def run(self) -> None:
        """Train, measure, and write the weights and the record beside them."""
        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        torch.use_deterministic_algorithms(mode=True)
        request = DataRequest("", load_config().data_root)
        data: Dataset = DATASETS.get(self.data).build(request)
        network = self.shipped.network(data.num_classes)
        self.train(network, data)
        victim = self.shipped.victim(network)
        accuracy = {str(s): measure(victim, data, s) for s in (Split.CALIBRATE, Split.EVAL)}
        weights = self.shipped.weights
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(save({k: v.contiguous() for k, v in network.state_dict().items()}))
        record = json.dumps(self.describe(network, data, accuracy), indent=2)
        weights.with_suffix(".json").write_text(record + "\n", encoding="utf-8")
        sys.stdout.write(f"{record}\n")

    def train(self, network: nn.Module, data: Dataset) -> None:
        """Fit a network, in place, to randomly distorted images of the `train` split."""
        samples = data.take(Split.TRAIN, self.images)
        rng = torch.Generator().manual_seed(SEED)
        steps = math.ceil(self.images / BATCH)
        optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, RATE, epochs=self.epochs, steps_per_epoch=steps
        )
        network.train()
        for _ in range(self.epochs):
            for batch in _batches(self.images, rng):
                images = self.distort(samples.images[batch], rng)
                images = (images - self.shipped.mean) / self.shipped.std
                loss = functional.cross_entropy(network(images), samples.labels[batch])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
        network.eval()

    def describe(
        self, network: nn.Module, data: Dataset, accuracy: dict[str, float]
    ) -> dict[str, Any]:
        """Record how the weights came about."""
        return {
            "recipe": f"python -m registry.models.recipes.{self.name}",
            "data": {"name": data.name, "fingerprint": data.fingerprint, "split": "train"},
            "images": self.images,
            "seed": SEED,
            "epochs": self.epochs,
            "batch": BATCH,
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in network.parameters()),
            "fingerprint": fingerprint(network),
            "accuracy": accuracy,
        }


def warp(images: Tensor, across: list[Tensor], down: list[Tensor]) -> Tensor:
    """Move the pixels of each image, (n, 1, H, W), by an affine map of its own.

    Args:
        images: The images.
        across: Where a pixel comes from, horizontally: weight of x, weight of y, shift, each (n,);
            units are half the width.
        down: The same vertically.
    """
    maps = torch.stack([torch.stack(across, dim=1), torch.stack(down, dim=1)], dim=1)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def measure(victim: Victim, data: Dataset, split: Split) -> float:
    """Return the accuracy on a whole split, in [0, 1]."""
    samples = data.take(split, len(data.splits[split]))
    batches = torch.split(samples.images, _AT_ONCE)
    found = torch.cat([victim(images).argmax(dim=1) for images in batches])
    return round(float((found == samples.labels).double().mean()), 6)


def _batches(count: int, rng: Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=rng)
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH]
