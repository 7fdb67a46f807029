"""What a stealing attack is: it asks about images of its own, and trains a clone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from benchmark.rng import alone, seed_from
from benchmark.stealing.pool import Pool

Asking = Generator[Tensor, Tensor, None]  # images, (n, C, H, W) -> probabilities, (n, K)
N = TypeVar("N", bound=nn.Module)

_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Scene:
    """What a stealing attack knows before it asks.

    Attributes:
        shape: Shape of one image, (C, H, W).
        num_classes: Number of classes K.
        budget: Queries it has in all.
        seed: Seed of the run; the same for every defense, so that comparisons are paired.
        pool: Images the attacker has, of the victim's size; labels are of their own classes.
        device: Where its networks compute.
    """

    shape: tuple[int, int, int]
    num_classes: int
    budget: int
    seed: int
    pool: Pool
    device: torch.device

    def stream(self, *names: object) -> torch.Generator:
        """Open a random stream of that name, on the CPU."""
        seed = seed_from("steal", self.seed, *names) % 2**63
        return torch.Generator().manual_seed(seed)

    def network(self, build: Callable[[], N], *names: object) -> N:
        """Build a network whose first weights depend on seed and names alone."""
        with alone, torch.random.fork_rng(devices=[]):  # first weights come from the one stream
            torch.manual_seed(seed_from("network", self.seed, *names) % 2**63)
            built = build()
        return built.to(self.device)


class Stealer:
    """Base of stealing attacks; a subclass is a dataclass whose keyword-only fields are parameters.

    The engine calls `begin` once, then `step` again and again. Whenever the queries of a checkpoint
    are spent it calls `learn`, looks at `clone`, and puts the attack away by `state`. All that
    lasts from one step to the next stands in attributes that are made in `begin`: networks,
    optimisers, generators, tensors, numbers, or objects with `state_dict` and `load_state_dict`.

    Attributes:
        scene: What it knows.
        clone: What it made, a network from images in [0, 1] to logits, in evaluation mode after
            `learn`.
    """

    scene: Scene
    clone: nn.Module

    def blank(self, channels: int, num_classes: int) -> nn.Module:
        """Build the clone's network with whatever weights: those of a clone are loaded into it."""
        raise NotImplementedError

    def begin(self, scene: Scene) -> None:
        """Make everything that lasts; nothing is asked."""
        self.scene = scene

    def step(self, left: int) -> Asking:
        """Ask and learn for one iteration.

        Args:
            left: Queries until the next checkpoint.

        Yields:
            Images in [0, 1], (n, C, H, W), without gradient, at most `left` in all; none at all
            if an iteration costs more.
        """
        raise NotImplementedError

    def learn(self) -> Iterator[float]:
        """Make `clone` what can be learned from all answers so far; yield the share done.

        It must not change what later steps do: a run to a small budget is a prefix of a longer one
        unless the attack plans its schedule by the budget.
        """
        self.clone.eval()
        yield 1.0

    def sample(self, count: int, stream: torch.Generator) -> Tensor:
        """Make images as it asks about them, but new ones, (count, C, H, W) in [0, 1]."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Put everything that lasts into plain data and tensors."""
        return {name: _put_away(value) for name, value in self._lasting().items()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take out what `state` put away, after `begin` of the same scene."""
        for name, value in self._lasting().items():
            if isinstance(value, torch.Generator):
                value.set_state(state[name])
            elif hasattr(value, "load_state_dict"):
                value.load_state_dict(state[name])
            elif isinstance(value, Tensor):
                setattr(self, name, state[name].to(value.device))
            else:
                setattr(self, name, state[name])

    def _lasting(self) -> dict[str, Any]:
        given = {"scene", *(field.name for field in fields(cast(Any, self)))}  # parameters
        return {name: value for name, value in vars(self).items() if name not in given}


def _put_away(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if hasattr(value, "state_dict"):
        return value.state_dict()
    if isinstance(value, (*_PLAIN, Tensor)):
        return value
    raise TypeError(f"a stealing attack keeps a {type(value).__name__}, which cannot be put away")
