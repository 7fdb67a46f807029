"""The task `transfer`: images made on clones are shown to the victim they were stolen from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from benchmark.catalogue import STEALERS
from benchmark.data import Samples, Split
from benchmark.defended import Defended
from benchmark.errors import StoreError
from benchmark.fitting import attach_part
from benchmark.loading import load_for
from benchmark.rng import RowRng
from benchmark.stealing.meter import COMPANY
from benchmark.stealing.quality import Answers, answers, logits_of
from benchmark.stealing.spec import Method, Origin, Transfer
from benchmark.stealing.stealer import Stealer
from benchmark.stealing.whitebox import adversarial
from benchmark.streams import defense_streams, named_streams
from benchmark.surroundings import Surroundings
from benchmark.tasks.steal import clone_file
from benchmark.victim import Victim


@dataclass(frozen=True)
class TransferStep:
    """A transfer as a piece of work.

    Attributes:
        transfer: What is to be done.
        folder: Folder of results, where the clones' weights are.
    """

    transfer: Transfer
    folder: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.transfer.title

    @property
    def label(self) -> str:
        """Name of its traceback, 16 hex digits."""
        return self.transfer.label

    def run(self, surroundings: Surroundings) -> dict[str, Any]:
        """Make the images and show them; the result is what its file holds, provenance aside.

        Raises:
            BenchError: If the defense breaks a rule, or a clone's weights are missing.
        """
        surroundings.load_plugins()
        job, device = self.transfer, torch.device(surroundings.device)
        data, bare = load_for(job, surroundings.config, surroundings.device)
        defense, victim = attach_part(job.defense, bare, data, surroundings.config.cache_folder)
        samples = data.take(Split.EVAL, job.images)
        images, labels = samples.images.to(device), samples.labels.to(device)
        networks = self._networks(victim, samples, device)
        batch = surroundings.batch_for(samples.images[0].numel())
        desk = Defended(victim, defense, batch, COMPANY).fresh

        def shown(purpose: str, of: torch.Tensor) -> Answers:
            noise = self._noise(purpose, samples, device)
            return answers(desk(), of, labels, job.draws, noise)

        clean = shown("clean", images)
        rows = [_row("clean", clean, labels)]
        for method in job.methods:
            rng = self._starts(method, samples, device)
            made = adversarial(method, networks, images, labels, job.eps, rng)
            rows.append(_row(method, shown("transfer", made), labels))
        right = logits_of(bare, images).argmax(1) == labels
        return {"rows": rows, "victim_accuracy": float(right.double().mean())}

    def _networks(self, victim: Victim, samples: Samples, device: torch.device) -> list[nn.Module]:
        job = self.transfer
        if job.origin is Origin.NOTHING:
            return []
        if job.origin is Origin.VICTIM:
            return [victim]
        choice = STEALERS.choose(job.attack.text)
        found = []
        for theft in job.thefts:
            attack: Stealer = choice.entry.build(**choice.values)
            network = attack.blank(int(samples.images.shape[1]), victim.num_classes)
            _load(network, clone_file(self.folder, theft, job.budget))
            found.append(network.to(device).eval().requires_grad_(requires_grad=False))
        return found

    def _starts(self, method: Method, samples: Samples, device: torch.device) -> RowRng:
        """Streams of random starts; not of the defense, so that comparisons are paired."""
        names = ("transfer", str(method), self.transfer.seeds[0])
        return named_streams(names, samples.ids.tolist(), device)

    def _noise(self, purpose: str, samples: Samples, device: torch.device) -> RowRng:
        name, seed = self.transfer.defense.record["name"], self.transfer.seeds[0]
        return defense_streams(purpose, name, seed, samples.ids.tolist(), device)


def _row(method: str, said: Answers, labels: torch.Tensor) -> dict[str, Any]:
    return {
        "method": str(method),
        "single": float(said.right.double().mean()),
        "right": said.expected(labels).tolist(),
    }


def _load(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"weights of a clone '{path}' cannot be read: {reason}") from None
