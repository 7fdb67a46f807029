"""Images that an attacker asks about, one after the other, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmark import philox
from benchmark.stealing.pool import Pool
from benchmark.stealing.stealer import Scene

_SHIFT = 8  # a blended copy moves by up to this part of its side


class TransferSet:
    """A sequence of images without end, and the targets of those that were asked about.

    First come all images of the pool, in an order of the seed alone. Then come blended copies:
    the pool again in that order, each image mixed with another and shifted. An image is determined
    by seed and number, so that no image has to be kept.

    Args:
        scene: What the attacker knows.
    """

    def __init__(self, scene: Scene) -> None:
        self._pool = scene.pool
        self._order = torch.randperm(len(scene.pool), generator=scene.stream("order"))
        self._key = torch.randint(2**32, (1, 2), generator=scene.stream("blends"))
        self._numbers = [torch.zeros(0, dtype=torch.int64)]
        self._targets = [torch.zeros(0, scene.num_classes)]
        self._count = 0

    def __len__(self) -> int:
        """Number of images that were asked about."""
        return self._count

    @property
    def numbers(self) -> Tensor:
        """Numbers of the images that were asked about, (n,), in the order of asking."""
        self._numbers = [torch.cat(self._numbers)]
        return self._numbers[0]

    @property
    def targets(self) -> Tensor:
        """What was learned about these, (n, K)."""
        self._targets = [torch.cat(self._targets)]
        return self._targets[0]

    @property
    def labels(self) -> Tensor:
        """Classes of the images of the pool, by number."""
        return self._pool.labels[self._order]

    def add(self, numbers: Tensor, targets: Tensor) -> None:
        """Keep what was learned, (m, K), about images of these numbers, (m,)."""
        self._numbers.append(numbers)
        self._targets.append(targets)
        self._count += len(numbers)

    def again(self, places: Tensor) -> Tensor:
        """Make images again that were asked about, by their place in the order of asking."""
        return self.images(self.numbers[places])

    def images(self, numbers: Tensor) -> Tensor:
        """Make the images of these numbers, (m,); (m, C, H, W) in [0, 1]."""
        size = len(self._pool)
        places = numbers % size
        found = self._pool.read(self._order[places])
        copies = numbers >= size
        if copies.any():
            drawn = philox.uniforms(self._key, numbers[copies], 4)
            others = _others(places[copies], drawn[:, 0], size)
            partners = self._pool.read(self._order[others])
            found[copies] = blend(found[copies], partners, drawn[:, 1:])
        return found

    def fresh(self, count: int, stream: torch.Generator) -> Tensor:
        """Draw images that were not asked about, (count, C, H, W): of the pool, then blended."""
        waiting = torch.ones(len(self._pool), dtype=torch.bool)
        waiting[self.numbers[self.numbers < len(waiting)]] = False
        numbers = waiting.nonzero().flatten()
        numbers = numbers[torch.randperm(len(numbers), generator=stream)[:count]]
        parts = [self.images(numbers)] if len(numbers) else []
        if len(numbers) < count:
            parts.append(blended(self._pool, count - len(numbers), stream))
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Tensor]:
        """What was asked and learned."""
        return {"numbers": self.numbers, "targets": self.targets}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up where another of the same scene stood."""
        self._numbers, self._targets = [state["numbers"]], [state["targets"]]
        self._count = len(state["numbers"])


def blended(pool: Pool, count: int, stream: torch.Generator) -> Tensor:
    """Draw blended copies of a pool's images, (count, C, H, W)."""
    places = torch.randint(len(pool), (count,), generator=stream)
    drawn = torch.rand(count, 4, generator=stream)
    others = _others(places, drawn[:, 0], len(pool))
    return blend(pool.read(places), pool.read(others), drawn[:, 1:])


def blend(one: Tensor, other: Tensor, drawn: Tensor) -> Tensor:
    """Mix images and shift each mixture by up to an eighth of its side; zeros come in.

    Args:
        one: (n, C, H, W).
        other: (n, C, H, W).
        drawn: (n, 3) uniform in [0, 1]: the share of the first image, and how far to shift down
            and to the right.

    Returns:
        (n, C, H, W).
    """
    height, width = one.shape[2:]
    far = max(height, width) // _SHIFT
    wide = pad(torch.lerp(other, one, drawn[:, :1, None, None]), (far, far, far, far))
    first = (drawn[:, 1:] * (2 * far + 1)).long().clamp_max(2 * far)
    rows = first[:, :1] + torch.arange(height)
    columns = first[:, 1:] + torch.arange(width)
    image = torch.arange(len(one))[:, None, None]
    return wide[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _others(places: Tensor, drawn: Tensor, size: int) -> Tensor:
    """Choose another place below `size` for each, (n,), given uniform numbers in [0, 1], (n,)."""
    ahead = (drawn.double() * (size - 1)).long().clamp_max(max(0, size - 2))
    return (places + 1 + ahead) % size
