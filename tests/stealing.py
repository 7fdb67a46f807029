"""A tiny pool and victim for stealing attacks, and a loop that drives them."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.stealing.pool import Pool
from benchmark.stealing.stealer import Scene, Stealer
from registry.parts.clones import CloneName
from registry.stealing.knockoff import Knockoff

SHAPE, CLASSES = (1, 8, 8), 4


def tiny_pool(count: int = 150, classes: int = 3) -> Pool:
    """Noise whose classes differ in brightness; every third image is of the same class."""
    labels = torch.arange(count) % classes
    noise = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1))
    images = 0.5 * noise + 0.5 * (labels / classes)[:, None, None, None]
    return Pool(labels, classes, lambda places: images[places])


def tiny_scene(budget: int = 100, seed: int = 0, pool: Pool | None = None) -> Scene:
    return Scene(SHAPE, CLASSES, budget, seed, pool or tiny_pool(), torch.device("cpu"))


class Client:
    """Answers like a random linear victim, and keeps what it was asked.

    Attributes:
        images: Every image asked about, in order.
        sizes: Queries of each call.
    """

    def __init__(self, seed: int = 0) -> None:
        stream = torch.Generator().manual_seed(seed)
        self._weights = torch.randn((64, CLASSES), generator=stream).div_(2)
        self._weights -= self._weights.mean(0)
        self._tint = torch.randn(CLASSES, generator=stream)
        self.images, self.sizes = torch.zeros(0, *SHAPE), []

    def answer(self, images: Tensor) -> Tensor:
        bright = 20 * (images.mean((1, 2, 3)) - 0.55)  # what shifts do not change
        return (images.flatten(1) @ self._weights + bright[:, None] * self._tint).softmax(1)

    def ask(self, images: Tensor) -> Tensor:
        assert not images.requires_grad
        assert images.min() >= 0 and images.max() <= 1
        self.images = torch.cat((self.images, images))
        self.sizes.append(len(images))
        return self.answer(images)


def spend(attack: Stealer, queries: int, client: Client) -> int:
    """Let an attack ask until a step asks nothing; return how many queries it asked."""
    asked = 0
    while True:
        before, step = asked, attack.step(queries - asked)
        reply = None
        while (images := _next(step, reply)) is not None:
            asked += len(images)
            assert asked <= queries
            reply = client.ask(images)
        if asked == before:
            return asked


def learned(attack: Stealer) -> dict[str, Tensor]:
    """Weights and statistics of the clone that it makes now."""
    shares = list(attack.learn())
    assert shares == sorted(shares) and (not shares or shares[-1] == 1.0)
    assert not attack.clone.training
    return attack.clone.state_dict()


def _next(step, reply):
    try:
        return step.send(reply)
    except StopIteration:
        return None


def knockoff(budget=100, seed=0, pool=None, **given):
    attack = Knockoff(network=CloneName.CNN, **{"epochs": 2, **given})
    attack.begin(tiny_scene(budget, seed, pool))
    return attack


def run(budget, **given):
    attack, client = knockoff(budget, **given), Client()
    spend(attack, budget, client)
    return attack, client


def places(images, pool):
    """Places in the pool of images; -1 of those that are not in it."""
    whole = pool.read(torch.arange(len(pool)))
    same = (images[:, None] == whole[None]).flatten(2).all(2)
    return torch.where(same.any(1), same.float().argmax(1), -1).tolist()
