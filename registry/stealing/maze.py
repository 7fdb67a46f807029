"""MAZE: a generator learns, by estimated gradients, to ask where victim and clone disagree."""

from __future__ import annotations

import math
from collections.abc import Generator as Routine
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmark.errors import SpecError
from benchmark.registry import Preset, Source, stealer
from benchmark.stealing.divergence import divergence
from benchmark.stealing.stealer import Asking, Scene, Stealer
from registry.parts.clones import CloneName, clone_of
from registry.parts.differences import forward_differences, units
from registry.parts.generator import Generator, pixels
from registry.parts.replay import Replay

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Rates = tuple[tuple[torch.optim.Optimizer, float], ...]

_MOMENTUM, _DECAY = 0.9, 5e-4

SOURCE = Source(
    paper="Kariyappa et al.: MAZE: Data-Free Model Stealing Attack Using Zeroth-Order Gradient "
    "Estimation (CVPR)",
    url="https://arxiv.org/abs/2005.03161",
    year=2021,
    code="https://github.com/sanjaykariyappa/MAZE",
    differences=(
        "by default probes are longer (mu=1, official 0.001): without a defense the estimates are "
        "as good, and noise and rounding drown less of them",
        "by default the generator learns faster (0.1, official 0.0001): with less it kept to one "
        "class of a certain victim, and the clone learned that class alone",
        "by default the clone is a small CNN, of colours ResNet-20; the official one is WRN-22-2",
        "the generator sees no gradient of the victim; the official code takes one each iteration, "
        "for a diagnostic",
        "the base batch of the generator is also the first one of the clone, with the answers it "
        "got; the official code asks the victim again and does not count it",
        "the clone is in evaluation mode while it is probed, so that losses of images do not "
        "depend on each other; there it is in training mode",
        "the replay is a ring of images rounded to 8 bits, drawn from with replacement; there it "
        "grows without bound",
    ),
)
_OFFICIAL: dict[str, object] = {
    "mu": 0.001,
    "generator_rate": 1e-4,
    "network": CloneName.WRN_22_2,
}
QUICK = "batch=32,directions=4,width=8,network=cnn"
_UNBOUNDED = "there the replay is unbounded: raise `replay`"
PRESETS = {
    "official": Preset("official code, CIFAR-10", _OFFICIAL, note=_UNBOUNDED),
    "official-fashion": Preset(
        "official code, FashionMNIST", {**_OFFICIAL, "generator_rate": 1e-3}, note=_UNBOUNDED
    ),
    "adaptive": Preset(
        "ours, against defenses that add noise", {"mu": 3.0, "repeats": 4, "clip": 1.0}
    ),
}


@stealer(
    source=SOURCE,
    planned=True,
    presets=PRESETS,
    examples=(f"[{QUICK}]", f"[{QUICK},repeats=2,clip=1]"),
)
@dataclass(kw_only=True)
class Maze(Stealer):
    """Brings the divergence of clone from victim up by the generator, down by the clone.

    An iteration: the generator makes a batch; the victim answers it and probes around it; the
    generator climbs the estimated gradient of the divergence (section 4 of the paper). Then the
    clone learns from that batch, from further ones and from a replay of earlier ones. The rates
    of both fall along a cosine over the iterations that the budget allows.

    Attributes:
        batch: Images B of a batch.
        directions: Probes m of each image.
        generator_steps: Steps of the generator in an iteration.
        clone_steps: Steps of the clone on made images in an iteration.
        replay_steps: Steps of the clone on earlier images in an iteration.
        mu: Length of a probe in all pixels together (l2), before the tanh that makes an image.
        repeats: Times that the base of the probes is asked, every time billed: against noise.
        clip: Largest norm of the generator's gradient; none means any.
        clone_rate: First learning rate of the clone.
        generator_rate: First learning rate of the generator.
        network: Architecture of the clone.
        width: Channels of the generator; 128 is the paper's, 64 takes a quarter of the time.
        latent: Numbers of noise for an image.
        replay: Images that the replay holds at most.
    """

    batch: Annotated[int, Field(gt=1)] = 128
    directions: Count = 10
    generator_steps: Count = 1
    clone_steps: Count = 5
    replay_steps: Annotated[int, Field(ge=0)] = 10
    mu: Rate = 1.0
    repeats: Count = 1
    clip: Rate | None = None
    clone_rate: Rate = 0.1
    generator_rate: Rate = 0.1
    network: CloneName = CloneName.USUAL
    width: Annotated[int, Field(gt=1, multiple_of=2)] = 128
    latent: Count = 100
    replay: Count = 100_000

    @property
    def cost(self) -> int:
        """Queries of an iteration."""
        asked = self.clone_steps - 1 + self.generator_steps * (self.repeats + self.directions)
        return self.batch * asked

    @property
    def upfront(self) -> int:
        """Queries before the first iteration."""
        return 0

    @property
    def iterations(self) -> int:
        """Iterations that the budget allows."""
        return (self.scene.budget - self.upfront) // self.cost

    def blank(self, channels: int, num_classes: int) -> nn.Module:
        """Build the clone's network with whatever weights."""
        return clone_of(self.network, channels, num_classes)

    def begin(self, scene: Scene) -> None:
        """Make both networks, their optimisers, an empty replay and the random streams.

        Raises:
            SpecError: If no iteration fits into the budget, or no generator makes such images.
        """
        super().begin(scene)
        if self.iterations < 1:
            raise SpecError(
                f"a budget of {scene.budget} queries: MAZE asks {self.upfront + self.cost} before "
                "its first iteration is over. Raise the budget, or lower batch or directions."
            )
        self.clone = scene.network(lambda: self.blank(scene.shape[0], scene.num_classes), "clone")
        self.generator = scene.network(
            lambda: Generator(self.latent, self.width, scene.shape), "generator"
        )
        self.clone_optimizer = sgd(self.clone, self.clone_rate)
        self.generator_optimizer = sgd(self.generator, self.generator_rate)
        room = min(self.replay, self.upfront + self.iterations * self.batch)
        self.kept = Replay(room, scene.shape, scene.num_classes, scene.device)
        self.latents, self.ways = scene.stream("latents"), scene.stream("directions")
        self.draws = scene.stream("replay")
        self.done = 0

    def step(self, left: int) -> Asking:
        """Improve the generator, then the clone on new and on earlier images."""
        if left < self.cost or self.done >= self.iterations:
            return
        self._set_rates()
        self.generator.train()
        for _ in range(self.generator_steps - 1):
            yield from self._improve()
        images, answers = yield from self._improve()
        self._take_in(images, answers)
        for _ in range(self.clone_steps - 1):
            images = self._made(self._noise(self.batch, self.latents))
            answers = yield images
            self._take_in(images, answers)
        self.kept.add(images, answers)
        for _ in range(self.replay_steps):
            self._fit(*self.kept.draw(self.batch, self.draws))
        self.done += 1

    def sample(self, count: int, stream: torch.Generator) -> Tensor:
        """Make images as it asks about them, (count, C, H, W) in [0, 1]."""
        self.generator.eval()
        parts = torch.split(self._noise(count, stream), self.batch)
        return torch.cat([self._made(part) for part in parts])

    def _improve(self) -> Routine[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Ask about a batch and its probes, take a step of the generator; return the batch."""
        activations = self.generator(self._noise(self.batch, self.latents))
        base = activations.detach()
        images = pixels(base)
        answers = yield images.repeat(self.repeats, 1, 1, 1)
        answers = answers.reshape(self.repeats, self.batch, -1)
        ways = units(self.directions, base, self.ways)
        probes = pixels(base + self.mu * ways)
        replies = yield probes.flatten(0, 1)
        replies = replies.reshape(self.directions, self.batch, -1)
        losses = torch.stack([self._loss(*each) for each in zip(probes, replies, strict=True)])
        slopes = forward_differences(losses, self._loss(images, answers).mean(0), ways, self.mu)
        self.generator_optimizer.zero_grad()
        slopes = (slopes + self._known_slopes(base)) / self.batch
        torch.autograd.backward([activations], [slopes])
        if self.clip:
            clip_grad_norm_(self.generator.parameters(), self.clip)
        self.generator_optimizer.step()
        return images, answers.mean(0)

    def _loss(self, images: Tensor, answers: Tensor) -> Tensor:
        """What the generator brings down: minus the divergence, of each image on its own."""
        self.clone.eval()
        with torch.no_grad():
            return -divergence(answers, self.clone(images))

    def _known_slopes(self, activations: Tensor) -> Tensor:
        """Gradient of what the generator brings down besides, known exactly; (n, C, H, W)."""
        return torch.zeros_like(activations)

    def _take_in(self, images: Tensor, answers: Tensor) -> None:
        """Learn from a batch that was just made."""
        self._fit(images, answers)

    def _fit(self, images: Tensor, answers: Tensor) -> None:
        """Take a step of the clone towards answers."""
        self.clone.train()
        self.clone_optimizer.zero_grad()
        torch.autograd.backward([divergence(answers, self.clone(images)).mean()])
        self.clone_optimizer.step()

    def _made(self, noise: Tensor) -> Tensor:
        with torch.no_grad():
            return pixels(self.generator(noise))

    def _noise(self, count: int, stream: torch.Generator) -> Tensor:
        return torch.randn((count, self.latent), generator=stream).to(self.scene.device)

    def _trained(self) -> Rates:
        """Each optimiser and its first rate."""
        return (
            (self.clone_optimizer, self.clone_rate),
            (self.generator_optimizer, self.generator_rate),
        )

    def _set_rates(self) -> None:
        share = (1 + math.cos(math.pi * self.done / self.iterations)) / 2
        for optimizer, rate in self._trained():
            for group in optimizer.param_groups:
                group["lr"] = rate * share


def sgd(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Make the optimiser of every network here."""
    return torch.optim.SGD(network.parameters(), rate, momentum=_MOMENTUM, weight_decay=_DECAY)
