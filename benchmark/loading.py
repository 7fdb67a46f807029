"""Loads data sets and victims once in each thread that asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from benchmark.catalogue import DATASETS, MODELS
from benchmark.checkpoints import fingerprint
from benchmark.config import Config
from benchmark.data import DataRequest, Dataset, Split
from benchmark.errors import DataError, SpecError, VictimError
from benchmark.graphs import Graphs
from benchmark.rng import alone
from benchmark.spec import Part
from benchmark.victim import ModelRequest, Victim

P = ParamSpec("P")
T = TypeVar("T")

_mine = threading.local()


def _once(build: Callable[P, T]) -> Callable[P, T]:
    """Remember the last two results in each thread: a victim carries the edits of its user."""

    @wraps(build)
    def remembered(*given: P.args, **named: P.kwargs) -> T:
        caches: dict[str, Any] = _mine.__dict__
        cache = caches.setdefault(build.__name__, lru_cache(maxsize=2)(build))
        with alone:  # networks draw their first weights from the one global stream
            found: T = cache(*given, **named)
        return found

    return remembered


@_once
def load_dataset(text: str, config: Config) -> Dataset:
    """Load a data set.

    Raises:
        BenchError: If it is unknown, missing or damaged.
    """
    choice = DATASETS.choose(text)
    request = DataRequest(choice.argument, config.data_root)
    dataset: Dataset = choice.entry.build(request, **choice.values)
    return dataset


@_once
def load_victim(text: str, data_text: str, config: Config, device: str) -> Victim:
    """Load a victim for a data set and check that both have the same classes.

    Raises:
        BenchError: If it is unknown, its weights are missing or damaged, or it does not fit.
    """
    choice, dataset = MODELS.choose(text), load_dataset(data_text, config)
    image = dataset.take(Split.EVAL, 1).images
    shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    checkpoint = config.checkpoint or _shipped(choice.entry.facts.weights, config)
    request = ModelRequest(choice.argument, checkpoint, dataset.num_classes, shape, config)
    victim: Victim = choice.entry.build(request, **choice.values)
    if victim.num_classes != dataset.num_classes:
        raise SpecError(
            f"model '{text}' has {victim.num_classes} classes, "
            f"data set '{dataset.name}' has {dataset.num_classes}"
        )
    victim = victim.to(device)
    if victim.remote is None:  # what is shown to an endpoint costs, and it has said what it takes
        _try_out(victim, image, f"model '{text}'")
        victim.graphs = Graphs() if torch.device(device).type == "cuda" else None
    victim.fingerprint = fingerprint(victim)
    return victim


def _try_out(victim: Victim, image: Tensor, who: str) -> None:
    with torch.no_grad():
        logits = _laid_out(victim, image)(image.to(victim.mean.device))
    if logits.shape != (1, victim.num_classes):
        raise VictimError(
            f"{who} answers one image with shape {tuple(logits.shape)}, "
            f"expected {(1, victim.num_classes)}"
        )


def _laid_out(victim: Victim, image: Tensor) -> Victim:
    """Lay weights out with channels last on a CPU, which is faster, unless the network objects."""
    if victim.mean.device.type == "cpu":
        try:
            victim.to(memory_format=torch.channels_last)(image)
        except RuntimeError:  # it views what then is not contiguous
            victim.to(memory_format=torch.contiguous_format)
    return victim


class Planned(Protocol):
    """Something that is to be done to a victim."""

    @property
    def dataset(self) -> Part:
        """Data set."""

    @property
    def model(self) -> Part:
        """Victim."""


def forget() -> None:
    """Load everything anew when this thread next asks for it."""
    _mine.__dict__.clear()


def load_for(work: Planned, config: Config, device: str) -> tuple[Dataset, Victim]:
    """Load data set and victim of a piece of work and check that they are what its key says.

    Raises:
        DataError: If the files changed after the run was planned.
    """
    dataset, victim = _load(work, config, device)
    if not _matches(work, dataset, victim):
        forget()  # a worker that outlived an earlier run remembers what was there then
        dataset, victim = _load(work, config, device)
    if not _matches(work, dataset, victim):
        raise DataError("data or weights changed while the run was going: start it again")
    return dataset, victim


def _load(work: Planned, config: Config, device: str) -> tuple[Dataset, Victim]:
    dataset = load_dataset(work.dataset.text, config)
    return dataset, load_victim(work.model.text, work.dataset.text, config, device)


def _matches(work: Planned, dataset: Dataset, victim: Victim) -> bool:
    wanted = work.dataset.record["fingerprint"], work.model.record["fingerprint"]
    return wanted == (dataset.fingerprint, victim.fingerprint)


def _shipped(name: str, config: Config) -> Path | None:
    if not name or config.weights_root is None:
        return None
    path = config.weights_root / name
    return path if path.is_file() else None
