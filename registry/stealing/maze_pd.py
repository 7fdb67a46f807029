"""MAZE-PD: MAZE with a few real images, which made images are drawn to resemble."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.errors import SpecError
from benchmark.registry import stealer
from benchmark.stealing.stealer import Asking, Scene
from registry.parts.critic import Critic, critic_loss
from registry.parts.generator import pixels
from registry.stealing.maze import PRESETS, QUICK, SOURCE, Count, Maze, Rate, Rates, sgd


@stealer(
    source=replace(
        SOURCE,
        differences=(
            *SOURCE.differences,
            "the queries of the seeds are billed; the official code does not count them",
            "the critic's real batches are drawn from the seeds with replacement; there the seeds "
            "are repeated",
        ),
    ),
    planned=True,
    presets=PRESETS,
    examples=(f"[{QUICK},seeds=10]",),
)
@dataclass(kw_only=True)
class MazePd(Maze):
    """MAZE whose generator is also told by a critic how real its images look (section 6).

    The seeds are asked once, in the first step, and put into the replay. The critic is that of
    WGAN-GP; it learns in every clone step on made images, and its gradient costs no query.

    Attributes:
        seeds: Images that the attacker has, drawn from the pool.
        alpha: Weight of the critic in what the generator brings down; 0 leaves MAZE with seeds.
        critic_rate: First learning rate of the critic.
    """

    seeds: Count = 100
    alpha: Annotated[float, Field(ge=0)] = 10.0
    critic_rate: Rate = 1e-4

    @property
    def upfront(self) -> int:
        """Queries before the first iteration."""
        return self.seeds

    def begin(self, scene: Scene) -> None:
        """Make what MAZE makes, the critic, and choose the seeds; nothing is asked.

        Raises:
            SpecError: If the pool has fewer images, or for MAZE's reasons.
        """
        if self.seeds > len(scene.pool):
            raise SpecError(f"seeds={self.seeds}: the attacker's pool has {len(scene.pool)} images")
        super().begin(scene)
        self.critic = scene.network(lambda: Critic(scene.shape), "critic")
        self.critic_optimizer = sgd(self.critic, self.critic_rate)
        order = torch.randperm(len(scene.pool), generator=scene.stream("seeds"))
        self.real = scene.pool.read(order[: self.seeds]).to(scene.device)
        self.contrasts = scene.stream("critic")
        self.seeded = False

    def step(self, left: int) -> Asking:
        """Ask about the seeds in the first step, then iterate like MAZE."""
        if self.seeded:
            yield from super().step(left)
        elif self.seeds <= left:
            answers = yield self.real
            self.kept.add(self.real, answers)
            self.seeded = True

    def _known_slopes(self, activations: Tensor) -> Tensor:
        activations = activations.detach().requires_grad_()
        looks = self.critic(pixels(activations)).sum()
        (slopes,) = torch.autograd.grad(-self.alpha * looks, activations)
        return slopes

    def _take_in(self, images: Tensor, answers: Tensor) -> None:
        super()._take_in(images, answers)
        self._fit_critic(images)

    def _fit_critic(self, made: Tensor) -> None:
        """Take a step of the critic: seeds against made images."""
        which = torch.randint(self.seeds, (len(made),), generator=self.contrasts)
        shares = torch.rand((len(made), 1, 1, 1), generator=self.contrasts).to(made)
        self.critic_optimizer.zero_grad()
        loss = critic_loss(self.critic, self.real[which.to(made.device)], made, shares)
        torch.autograd.backward([loss])
        self.critic_optimizer.step()

    def _trained(self) -> Rates:
        return (*super()._trained(), (self.critic_optimizer, self.critic_rate))
