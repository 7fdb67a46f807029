"""Train the shipped digit classifier: `python -m registry.models.recipes.mnist_cnn`.

Uses the `train` split alone; the last epoch is kept, so no accuracy below chose anything. The
result is the same on every run of one machine and one version of torch.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmark.catalogue import DATASETS
from benchmark.checkpoints import fingerprint
from benchmark.data import DataRequest, Dataset, Split
from benchmark.victim import Victim
from registry.models.mnist_cnn import MEAN, STD, WEIGHTS, MnistCnn

SEED = 0
EPOCHS = 60
BATCH = 100
RATE = 0.01  # highest learning rate of AdamW
DECAY = 0.01  # weight decay
TURN = math.radians(12.0)  # largest rotation
SCALE = 0.12  # largest relative change of size, each axis on its own
SHEAR = 0.15  # largest shear
SHIFT = 2.0 / 14.0  # largest shift, 2 pixels in units of half the width


def main() -> None:
    """Train, measure, and write the weights and the record beside them."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    data: Dataset = DATASETS.get("mnist").build(DataRequest("", None))
    network = MnistCnn(data.num_classes)
    train(network, data)
    victim = Victim(network, mean=MEAN, std=STD, num_classes=data.num_classes)
    accuracy = {str(s): measure(victim, data, s) for s in (Split.CALIBRATE, Split.EVAL)}
    WEIGHTS.parent.mkdir(exist_ok=True)
    WEIGHTS.write_bytes(save({k: v.contiguous() for k, v in network.state_dict().items()}))
    record = json.dumps(describe(network, data, accuracy), indent=2)
    WEIGHTS.with_suffix(".json").write_text(record + "\n", encoding="utf-8")
    sys.stdout.write(f"{record}\n")


def train(network: nn.Module, data: Dataset) -> None:
    """Fit a network, in place, to randomly distorted images of the `train` split."""
    samples = data.take(Split.TRAIN, len(data.splits[Split.TRAIN]))
    rng = torch.Generator().manual_seed(SEED)
    steps = math.ceil(len(samples.labels) / BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RATE, epochs=EPOCHS, steps_per_epoch=steps
    )
    network.train()
    for _ in range(EPOCHS):
        for batch in _batches(len(samples.labels), rng):
            images = (distort(samples.images[batch], rng) - MEAN[0]) / STD[0]
            loss = functional.cross_entropy(network(images), samples.labels[batch])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    network.eval()


def distort(images: Tensor, rng: Generator) -> Tensor:
    """Rotate, scale, shear and shift each image, (n, 1, H, W), by its own random amounts."""
    count = len(images)
    turn, shear, wide, high, right, down = (
        2.0 * torch.rand(6, count, generator=rng) - 1.0
    ) * torch.tensor([TURN, SHEAR, SCALE, SCALE, SHIFT, SHIFT]).view(6, 1)
    cosine, sine = turn.cos(), turn.sin()
    first = torch.stack([(1 + wide) * cosine, shear - sine, right], dim=1)
    second = torch.stack([sine, (1 + high) * cosine, down], dim=1)
    maps = torch.stack([first, second], dim=1)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def measure(victim: Victim, data: Dataset, split: Split) -> float:
    """Return the accuracy on a whole split, in [0, 1]."""
    samples = data.take(split, len(data.splits[split]))
    right = victim(samples.images).argmax(dim=1) == samples.labels
    return round(float(right.double().mean()), 6)


def describe(network: nn.Module, data: Dataset, accuracy: dict[str, float]) -> dict[str, Any]:
    """Record how the weights came about."""
    return {
        "recipe": "python -m registry.models.recipes.mnist_cnn",
        "data": {"name": data.name, "fingerprint": data.fingerprint, "split": "train"},
        "images": len(data.splits[Split.TRAIN]),
        "seed": SEED,
        "epochs": EPOCHS,
        "batch": BATCH,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "fingerprint": fingerprint(network),
        "accuracy": accuracy,
    }


def _batches(count: int, rng: Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=rng)
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH]


if __name__ == "__main__":
    main()
