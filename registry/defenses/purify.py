"""DiffPure: noise drowns the perturbation, a diffusion model takes the noise out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmark.checkpoints import load_into, read_state
from benchmark.data import Dataset, Split
from benchmark.defense import Defense, QueryContext
from benchmark.errors import SpecError
from benchmark.registry import Level, Preset, Source, Traits, defense
from benchmark.victim import Victim
from registry.parts.denoiser import Denoiser
from registry.parts.diffusion import SOLVERS, noised, reverse
from registry.parts.streams import query_streams
from registry.parts.training import Schedule, Trainer, file_hash

_LONGEST = 0.2  # the latest time that the network learns
_ASKED = {"level", "steps", "solver"}  # what training does not depend on
_NOTE = "their score network has to be given by a plug-in"


@defense(
    source=Source(
        paper="Nie et al.: Diffusion Models for Adversarial Purification (ICML)",
        url="https://arxiv.org/abs/2205.07460",
        year=2022,
        code="https://github.com/NVlabs/DiffPure",
        differences=(
            "a small network trained on split train, where they take published diffusion models: "
            "give one by a plug-in",
            "by default 5 steps of ancestral sampling with the estimated image clipped to "
            "[-1, 1]; solver=sde is their Euler-Maruyama solver, with steps of level / steps",
            "the time t* is not randomised, and images are not resized",
        ),
    ),
    level=Level.IMAGES,
    traits=Traits(randomised=True),
    strength="level",
    presets={
        "diffpure": Preset(
            "paper, CIFAR-10 linf", {"level": 0.1, "solver": "sde", "steps": 100}, note=_NOTE
        ),
        "diffpure-l2": Preset(
            "paper, CIFAR-10 l2", {"level": 0.075, "solver": "sde", "steps": 75}, note=_NOTE
        ),
        "diffpure-imagenet": Preset(
            "paper, ImageNet linf",
            {"level": 0.15, "solver": "sde", "steps": 150},
            note=f"{_NOTE}; they resize images to 256x256 and back",
        ),
    },
    examples=(
        "[width=4,depth=2,epochs=1,steps=2,solver=ddim]",
        "[width=4,depth=3,epochs=1,steps=3,solver=sde]",
    ),
)
@dataclass(kw_only=True)
class Purify(Defense):
    """Answers f(x'), where x' is the image noised up to time t* and denoised again (section 3).

    Times run from 0, the image, to 1, pure noise; the noise at time t has the variance
    1 - exp(-9.95 t^2 - 0.1 t) in images that lie in [-1, 1].

    For a network of your own, subclass this in a plug-in file and override `network`:

        @defense(source=..., level=Level.IMAGES, traits=Traits(randomised=True), strength="level")
        @dataclass(kw_only=True)
        class MyPurify(Purify):
            def network(self, shape):
                return MyNetwork(shape)

    It is trained like ours, except weights with `requires_grad` off: with all of them off it is
    used as it is. Parameters that the subclass adds are part of its recipe.

    Attributes:
        level: The time t*; 0.1 is noise of standard deviation 0.32 in images in [-1, 1].
        steps: Equal steps back to 0, each one pass of the network.
        solver: "ancestral" draws fresh noise in each step but the last; "ddim" draws none (one
            step is one-shot denoising); "sde" is Euler-Maruyama for the reverse SDE.
        width: Channels of the network's inner layers.
        depth: Convolutions of the network.
        epochs: Times that every image of split `train` is shown.
        rate: Largest learning rate of Adam.
        checkpoint: Weights of the network; nothing is trained then.
    """

    level: Annotated[float, Field(ge=0, le=_LONGEST)] = 0.1
    steps: Annotated[int, Field(ge=1)] = 5
    solver: Literal["ancestral", "ddim", "sde"] = "ancestral"
    width: Annotated[int, Field(ge=1)] = 48
    depth: Annotated[int, Field(ge=2)] = 6
    epochs: Annotated[int, Field(ge=1)] = 10
    rate: Annotated[float, Field(gt=0)] = 3e-3
    checkpoint: Path | None = None
    _network: nn.Module = field(default_factory=nn.Identity, init=False, repr=False)

    def network(self, shape: tuple[int, int, int]) -> nn.Module:
        """Build the network that predicts the noise in an image.

        It is only used in evaluation mode, and cast to the victim's type and device. Random
        initial weights are the same every time.

        Args:
            shape: Shape of an image, (C, H, W).

        Returns:
            A module whose `forward` maps x_t, (n, C, H, W), and times in [0, 1], (n,), to the
            noise, (n, C, H, W). A network made for 1,000 discrete times wants 999 t.
        """
        return Denoiser(shape[0], self.width, self.depth)

    def recipe(self) -> Mapping[str, object]:
        """Return what training depends on: of a checkpoint its content."""
        names = [one.name for one in fields(self) if one.init and one.name not in _ASKED]
        recipe = {name: getattr(self, name) for name in names}
        return recipe | {"checkpoint": file_hash(self.checkpoint) if self.checkpoint else None}

    def fit(self, victim: Victim, data: Dataset) -> Iterator[float]:
        """Train the network, or load the checkpoint; the victim stays as it is."""
        network = self._built(victim, data)
        if self.checkpoint is not None:
            load_into(network, read_state(self.checkpoint), self.checkpoint)
            yield 1.0
        elif any(weight.requires_grad for weight in network.parameters()):
            yield from self._train(network, victim, data)
        self.learned = dict(network.state_dict())

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Put the network together from what was learned."""
        self._network = self._built(victim, data).requires_grad_(requires_grad=False)
        origin = self.checkpoint or Path(f"trained for {type(self).__name__}")
        load_into(self._network, self.learned, origin)

    def on_images(self, images: Tensor, context: QueryContext) -> Tensor:
        """Add noise to each query and take it out again, (n, C, H, W) in [0, 1]."""
        if self.level == 0:
            return images
        streams, each = query_streams(context), torch.arange(len(images), device=images.device)

        def draw() -> Tensor:
            return streams.normal(each, images.shape[1:]).to(images)

        start = images.new_full((len(images),), self.level)
        noisy = noised(2 * images - 1, start, draw())
        grid = torch.linspace(self.level, 0, self.steps + 1, dtype=torch.float64)
        pure = reverse(noisy, self._network, grid, SOLVERS[self.solver], draw)
        return (pure.clamp(-1.0, 1.0) + 1) / 2

    def _train(self, network: nn.Module, victim: Victim, data: Dataset) -> Iterator[float]:
        """Descend the squared error of the noise at times drawn from (0, 0.2]."""
        trainer = Trainer(victim, data, Schedule(self.epochs, 64, self.rate), network=network)
        for images, _ in trainer.batches():
            times = _LONGEST * (1 - trainer.uniform(images[:, 0, 0, 0])) / 2
            noise = trainer.normal(images)
            guess = network(noised(2 * images - 1, times, noise), times)
            yield trainer.step(mse_loss(guess, noise))

    def _built(self, victim: Victim, data: Dataset) -> nn.Module:
        """Build the network and try it on one black image."""
        _, channels, height, width = data.take(Split.TRAIN, 1).images.shape
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = self.network((channels, height, width)).to(victim.mean).eval()
        black = victim.mean.new_full((1, channels, height, width), -1.0)
        with torch.no_grad():
            answer = network(black, black.new_full((1,), _LONGEST))
        if answer.shape != black.shape:
            raise SpecError(
                f"the network of {type(self).__name__} answers {tuple(answer.shape)} for an image "
                f"of {tuple(black.shape)}; both must be the same"
            )
        return network
