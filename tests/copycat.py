"""A stealing attack for tests of the engine: a linear clone, a step for each batch of the pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.registry import Source, stealer
from benchmark.stealing.stealer import Asking, Scene, Stealer

SOURCE = Source(paper="none", url="https://example.org", year=2026)


@stealer(source=SOURCE)
@dataclass(kw_only=True)
class Copycat(Stealer):
    batch: int = 50
    rate: float = 0.5
    least: int = 1
    cheat: str = ""

    def blank(self, channels: int, num_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(14), nn.Flatten(), nn.Linear(196 * channels, num_classes)
        )

    def begin(self, scene: Scene) -> None:
        super().begin(scene)
        self.clone = scene.network(lambda: self.blank(scene.shape[0], scene.num_classes))
        self.optimizer = torch.optim.SGD(self.clone.parameters(), self.rate, momentum=0.5)
        self.noise = scene.stream("questions")
        self.asked = 0

    def step(self, left: int) -> Asking:
        count = min(self.batch, left)
        if left < self.least:
            return
        places = torch.randint(len(self.scene.pool), (count,), generator=self.noise)
        images = self.scene.pool.read(places)
        if self.cheat == "gradient":
            images.requires_grad_()
        if self.cheat == "more":
            images = images.repeat(left // count + 1, 1, 1, 1)
        if self.cheat == "outside":
            images = images - 0.5
        if self.cheat == "shape":
            images = images[:, :, 1:]
        chances = yield images
        self.asked += len(images)
        self.clone.train()
        loss = -(chances * self.clone(images).log_softmax(1)).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def learn(self) -> Iterator[float]:
        self.clone.eval()
        yield 1.0

    def sample(self, count: int, stream: torch.Generator) -> Tensor:
        return self.scene.pool.read(torch.randint(len(self.scene.pool), (count,), generator=stream))
