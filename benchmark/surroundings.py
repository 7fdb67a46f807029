"""Where a run happens, and whether that place exists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmark.catalogue import load_file
from benchmark.config import Config
from benchmark.errors import SpecError, VictimError


@dataclass(frozen=True)
class Surroundings:
    """Where a run happens; none of it changes a result on a CPU.

    Attributes:
        config: Where data and weights are.
        plugins: Plug-in files.
        device: "cpu", "cuda", "cuda:1", ...
        batch: Images in one forward pass, or None for the device's usual size.
        halvings: How often that number was halved because memory ran out.
    """

    config: Config
    plugins: tuple[Path, ...] = ()
    device: str = "cpu"
    batch: int | None = None
    halvings: int = 0

    def load_plugins(self) -> None:
        """Import the plug-ins, once in each process."""
        for plugin in self.plugins:
            load_file(plugin)

    def absolute(self) -> Surroundings:
        """Return the same place with full paths, for workers that started in another folder."""
        config = self.config.model_copy(update={"cache": self.config.cache_folder})
        plugins = tuple(p.absolute() for p in self.plugins)
        return replace(self, config=config.each_path(Path.absolute), plugins=plugins)

    def batch_for(self, pixels: int) -> int:
        """Images in one forward pass for images of so many values.

        Raises:
            VictimError: If memory ran out with a single one.
        """
        batch = (self.batch or usual_batch(torch.device(self.device), pixels)) >> self.halvings
        if batch == 0:
            raise VictimError(
                f"the memory of '{self.device}' does not hold one forward pass of a single image "
                "and what the attack keeps of its shard: fewer images in a shard (--shard) may help"
            )
        return batch


def usual_batch(device: torch.device, pixels: int) -> int:
    """Images in one forward pass: what keeps a CPU's cache or a GPU's units busy.

    A function of the device and the image size alone, so that it cannot differ between jobs.
    """
    if device.type != "cpu":
        return max(1, 2**23 // pixels)
    return max(4, min(64, 100_000 // pixels))


def choose_device(name: str) -> str:
    """Return a device by name; `auto` is the first GPU, or the CPU if there is none."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        SpecError: With the devices that are.
    """
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if cards else []), *cards]
    if name not in here:
        raise SpecError(f"device '{name}' is not available. Allowed: auto, {', '.join(here)}.")
