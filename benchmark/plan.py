"""From a request to cells and shards, in a stable order, with everything checked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmark.catalogue import ATTACKS, DATASETS, DEFENSES, MODELS, Choice, load_file
from benchmark.config import Config
from benchmark.data import Split
from benchmark.errors import SpecError
from benchmark.facts import Level
from benchmark.loading import build_defense, forget, load_dataset, load_victim
from benchmark.protocol import Protocol
from benchmark.request import Request
from benchmark.spec import Cell, Part, Shard
from benchmark.types import Threat


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


def plan(request: Request, surroundings: Surroundings) -> list[Shard]:
    """Resolve a request into shards.

    Raises:
        BenchError: For anything that cannot run, before anything runs.
    """
    for plugin in surroundings.plugins:
        load_file(plugin)
    forget()  # files may have changed since an earlier run in this process
    check_device(surroundings.device)
    dataset, model = _victim(request, surroundings)
    attacks = [_attack(text, request) for text in request.attacks]
    victim = load_victim(model.text, dataset.text, surroundings.config, surroundings.device)
    defenses = [DEFENSES.choose(text) for text in _with_undefended(request.defenses)]
    data = load_dataset(dataset.text, surroundings.config)
    companies: dict[str, int] = {}
    for choice in defenses:
        defense = build_defense(str(choice), victim)
        defense.prepare(victim, data)
        if defense.traits.coupled:  # its answers depend on the images it shares a shard with
            companies[str(choice)] = request.shard
    threat, kind = _threat(request, dataset), torch.device(surroundings.device).type
    protocol = Protocol(
        request.checkpoints(), request.scores, request.probes, request.votes, request.draws
    )
    cells = [
        Cell(dataset, model, defense, attack, threat, protocol, request.images, request.seed, kind)
        for defense in _unique(defenses, companies)
        for attack in _unique(attacks, {})
    ]
    return [
        Shard(cell, first, min(request.shard, request.images - first))
        for cell in cells
        for first in range(0, request.images, request.shard)
    ]


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        SpecError: With the devices that are.
    """
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if cards else []), *cards]
    if name not in here:
        raise SpecError(f"device '{name}' is not available. Allowed: {', '.join(here)}.")


def _victim(request: Request, surroundings: Surroundings) -> tuple[Part, Part]:
    config = surroundings.config
    chosen = DATASETS.choose(request.dataset)
    usual = request.model or chosen.entry.facts.model
    if not usual:
        raise SpecError(f"data set '{request.dataset}' has no usual victim: give --model NAME")
    model_choice = MODELS.choose(usual)
    data = load_dataset(request.dataset, config)
    if request.images > len(data.splits[Split.EVAL]):
        raise SpecError(
            f"--images {request.images}: split 'eval' of data set '{data.name}' has only "
            f"{len(data.splits[Split.EVAL])} images"
        )
    victim = load_victim(usual, request.dataset, config, surroundings.device)
    return (
        _part(chosen, request.dataset, fingerprint=data.fingerprint),
        _part(model_choice, usual, fingerprint=victim.fingerprint),
    )


def _attack(text: str, request: Request) -> Choice[Any]:
    choice = ATTACKS.choose(text)
    if request.norm not in choice.entry.facts.norms:
        allowed = ", ".join(choice.entry.facts.norms)
        raise SpecError(
            f"attack '{choice.entry.name}' does not support --norm {request.norm}. "
            f"Allowed: {allowed}."
        )
    return choice


def _threat(request: Request, dataset: Part) -> Threat:
    usual = DATASETS.choose(dataset.text).entry.facts.eps.get(request.norm)
    eps = request.eps if request.eps is not None else usual
    if eps is None:
        raise SpecError(f"data set '{dataset.name}' has no usual {request.norm} radius: give --eps")
    return Threat(request.norm, eps, request.queries)


def _with_undefended(defenses: Sequence[str]) -> list[str]:
    """Put the bare victim first: the row that stands beside every defense."""
    bare = next(entry.name for entry in DEFENSES if entry.facts.level is Level.NOWHERE)
    return [bare, *(text for text in defenses if text != bare)]


def _unique(choices: Sequence[Choice[Any]], companies: Mapping[str, int]) -> list[Part]:
    """Parts of the choices without repetitions, in their order."""
    parts: dict[str, Part] = {}
    for choice in choices:
        text = str(choice)
        more = {"company": companies[text]} if text in companies else {}
        parts[text] = _part(choice, text, **more)
    return list(parts.values())


def _part(choice: Choice[Any], text: str, **more: str | int) -> Part:
    return Part(text, str(choice), {**choice.record(), **more})
