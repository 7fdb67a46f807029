"""Where a run happens, and whether that place exists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmark.catalogue import load_file
from benchmark.config import Config
from benchmark.errors import SpecError


@dataclass(frozen=True)
class Surroundings:
    """Where a run happens; none of it changes a result on a CPU.

    Attributes:
        config: Where data and weights are.
        plugins: Plug-in files.
        device: "cpu", "cuda", "cuda:1", ...
        batch: Images in one forward pass, or None for the device's usual size.
    """

    config: Config
    plugins: tuple[Path, ...] = ()
    device: str = "cpu"
    batch: int | None = None

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
        """Images in one forward pass for images of so many values."""
        return self.batch or usual_batch(torch.device(self.device), pixels)


def usual_batch(device: torch.device, pixels: int) -> int:
    """Images in one forward pass: what keeps a CPU's cache or a GPU's units busy.

    A function of the device and the image size alone, so that it cannot differ between jobs.
    """
    if device.type != "cpu":
        return max(1, 2**23 // pixels)
    return max(4, min(64, 100_000 // pixels))


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        SpecError: With the devices that are.
    """
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if cards else []), *cards]
    if name not in here:
        raise SpecError(f"device '{name}' is not available. Allowed: {', '.join(here)}.")
