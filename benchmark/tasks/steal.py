"""The task `steal`: one stealing attack on one defended victim, to the last of its checkpoints."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor

from benchmark.catalogue import STEALERS
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.display import told_of
from benchmark.errors import QueryError, StoreError
from benchmark.files import place
from benchmark.fitting import attach_part
from benchmark.loading import load_dataset, load_for
from benchmark.rng import RowRng
from benchmark.stealing.meter import COMPANY, Meter, drain
from benchmark.stealing.pool import image_shape, open_pool
from benchmark.stealing.quality import answers, likeness, logits_of
from benchmark.stealing.spec import Theft
from benchmark.stealing.stealer import Scene, Stealer
from benchmark.streams import defense_streams
from benchmark.surroundings import Surroundings

CLONES = "clones"  # folder of their weights, beside the tables


@dataclass(frozen=True)
class TheftStep:
    """A theft as a piece of work; what was done up to a checkpoint is not done again.

    Attributes:
        theft: What is to be done.
        folder: Folder of results, where the clones' weights go.
    """

    theft: Theft
    folder: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.theft.title

    @property
    def label(self) -> str:
        """Name of its traceback, 16 hex digits."""
        return self.theft.label

    def run(self, surroundings: Surroundings) -> dict[str, Any]:
        """Steal; the result is what its file holds, provenance aside.

        Raises:
            BenchError: If attack, defense or victim break a rule, or nothing can be written.
        """
        surroundings.load_plugins()
        return _Run(self, surroundings).finish()


def clone_file(folder: Path, theft: str, budget: int) -> Path:
    """Where the weights of a clone are."""
    return folder / CLONES / f"{theft}-{budget}.safetensors"


def state_file(cache: Path, theft: str) -> Path:
    """Where a theft that is going on is put away; whoever stores its result deletes it."""
    return cache / "thefts" / f"{theft}.pt"


class _Looked(NamedTuple):
    """Images on which clones are compared with the victim, and its mean answers to them."""

    images: Tensor
    labels: Tensor
    mean: Tensor


class _Run:
    """A theft that is going on."""

    def __init__(self, step: TheftStep, surroundings: Surroundings) -> None:
        theft, device = step.theft, torch.device(surroundings.device)
        data, bare = load_for(theft, surroundings.config, surroundings.device)
        defense, victim = attach_part(theft.defense, bare, data, surroundings.config.cache_folder)
        pool = load_dataset(theft.pool.text, surroundings.config)
        sample = data.take(Split.EVAL, theft.images)
        shape = image_shape(sample.images)
        images_had = open_pool(pool, theft.pool_images, shape)
        scene = Scene(shape, data.num_classes, theft.budgets[-1], theft.seed, images_had, device)
        choice = STEALERS.choose(theft.attack.text)
        self._theft, self._folder, self._device = theft, step.folder, device
        self._asks = choice.entry.facts.asks
        self._attack: Stealer = choice.entry.build(**choice.values)
        self._attack.begin(scene)
        batch = surroundings.batch_for(sample.images[0].numel())
        # What is asked to compare must not touch what the attack meets.
        self._desk = Defended(victim, defense, batch, COMPANY).fresh
        self._counted = self._desk()
        images, labels = sample.images.to(device), sample.labels.to(device)
        noise = self._streams("look", len(images))
        mean = answers(self._desk(), images, labels, theft.draws, noise).mean
        self._looked = _Looked(images, labels, mean)
        self._rows: list[dict[str, Any]] = []
        self._used, self._seconds = 0, 0.0
        self._path = state_file(surroundings.config.cache_folder, theft.key)
        self._told = told_of(Console(stderr=True), "stealing")

    def finish(self) -> dict[str, Any]:
        """Go on to the last checkpoint."""
        self._resume()
        for number, budget in enumerate(self._theft.budgets[len(self._rows) :], len(self._rows)):
            began = time.perf_counter()
            self._ask(number, budget)
            for done in self._attack.learn():
                self._tell(number, (1 + done) / 2)
            self._rows.append(self._measured(number, budget))
            self._seconds += time.perf_counter() - began
            self._put_away()
        return {"rows": self._rows, "timing": {"seconds": round(self._seconds, 3)}}

    def _ask(self, number: int, budget: int) -> None:
        """Let the attack ask up to a checkpoint."""
        # Streams of their own for each checkpoint: a run that goes on there draws the same.
        streams = self._streams(f"steal-{number}", COMPANY)
        scores, shape = self._theft.scores, self._attack.scene.shape
        meter = Meter(self._theft.attack.name, self._counted, streams, scores, shape)
        while (asked := drain(self._attack, meter, budget - self._used)) > 0:
            self._used += asked
            self._tell(number, self._used / budget / 2)
        if not self._used and self._asks and budget == self._theft.budgets[-1]:
            raise QueryError(
                f"stealing attack '{self._theft.attack.name}' asks nothing with a budget of "
                f"{budget} queries: its first step costs more"
            )

    def _tell(self, number: int, done: float) -> None:
        """Tell how far it is, as if every checkpoint took as long, half of it to ask."""
        self._told(self._theft.title, (number + done) / len(self._theft.budgets))

    def _measured(self, number: int, budget: int) -> dict[str, Any]:
        """Compare the clone with the victim, and keep its weights."""
        clone, looked = self._attack.clone, self._looked
        state = {k: v.detach().cpu().contiguous() for k, v in clone.state_dict().items()}
        place(clone_file(self._folder, self._theft.key, budget), save(state))
        right = logits_of(clone, looked.images).argmax(1) == looked.labels
        agreement, apart = likeness(clone, looked.images, looked.mean)
        asked = self._attack.sample(len(looked.images), self._attack.scene.stream("sample", number))
        asked = asked.to(self._device)
        noise = self._streams(f"sample-{number}", len(asked))
        mean = answers(self._desk(), asked, None, self._theft.draws, noise).mean
        agreement_asked, apart_asked = likeness(clone, asked, mean)
        return {
            "budget": budget,
            "queries": self._used,
            "clone_accuracy": float(right.double().mean()),
            "agreement": agreement,
            "divergence": apart,
            "agreement_asked": agreement_asked,
            "divergence_asked": apart_asked,
        }

    def _streams(self, purpose: str, count: int) -> RowRng:
        name = self._theft.defense.record["name"]
        return defense_streams(purpose, name, self._theft.seed, range(count), self._device)

    def _put_away(self) -> None:
        if self._counted.defense.traits.stateful:
            return  # what it remembers of the queries cannot be put away: begun again if killed
        state = {
            "rows": self._rows,
            "used": self._used,
            "seconds": self._seconds,
            "attack": self._attack.state(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        place(self._path, buffer.getvalue())

    def _resume(self) -> None:
        if not self._path.is_file():
            return
        try:
            # To the CPU, where random streams are; what the attack made knows its own device.
            state: Mapping[str, Any] = torch.load(self._path, "cpu", weights_only=True)
            files = [clone_file(self._folder, self._theft.key, r["budget"]) for r in state["rows"]]
            if not all(file.is_file() for file in files):
                return  # another folder of results has its clones
            self._attack.resume(state["attack"])
        except Exception as error:  # a damaged file may fail in any way
            reason = " ".join(str(error).split())[:200]
            raise StoreError(f"'{self._path}' is damaged ({reason}): delete it") from error
        self._rows, self._used = list(state["rows"]), state["used"]
        self._seconds = state["seconds"]
