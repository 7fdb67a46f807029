"""From a request to cells and shards, in a stable order, with everything checked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmark.catalogue import ATTACKS, DATASETS, DEFENSES, MODELS, Choice, load_file
from benchmark.choices import attack_choices
from benchmark.config import Config
from benchmark.data import Split
from benchmark.errors import SpecError
from benchmark.facts import Level
from benchmark.loading import build_defense, forget, load_dataset, load_victim
from benchmark.protocol import Protocol
from benchmark.request import Request
from benchmark.spec import Cell, Part, Shard
from benchmark.types import Aim, Goal, Threat


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


@dataclass(frozen=True)
class Plan:
    """What a request comes to.

    Attributes:
        shards: Work to do.
        left_out: Combinations that make no sense, a line each.
    """

    shards: tuple[Shard, ...]
    left_out: tuple[str, ...] = ()


def plan(request: Request, surroundings: Surroundings) -> Plan:
    """Resolve a request into shards.

    Raises:
        BenchError: For anything that cannot run, before anything runs.
    """
    for plugin in surroundings.plugins:
        load_file(plugin)
    forget()  # files may have changed since an earlier run in this process
    check_device(surroundings.device)
    dataset, model = _victim(request, surroundings)
    attacks = [choice for text in request.attacks for choice in attack_choices(text, request)]
    victim = load_victim(model.text, dataset.text, surroundings.config, surroundings.device)
    defenses = [DEFENSES.choose(text) for text in _with_undefended(request.defenses)]
    data = load_dataset(dataset.text, surroundings.config)
    companies: dict[str, int] = {}
    steady: set[str] = set()
    for choice in defenses:
        defense = build_defense(str(choice), victim)
        defense.prepare(victim, data)
        if defense.traits.coupled:  # its answers depend on the images it shares a shard with
            companies[str(choice)] = request.shard
        if defense.traits.steady:
            steady.add(str(choice))
    threats, kind = _threats(request, dataset), torch.device(surroundings.device).type
    pairs, left_out = _pairs(_parts(defenses, companies), _parts(attacks, {}), steady)
    more = request.images, request.seed, kind
    cells = [
        Cell(dataset, model, defense, attack, threat, _protocol(request, attack), *more)
        for defense, attack in pairs
        for threat in threats
    ]
    shards = [
        Shard(cell, first, min(request.shard, request.images - first))
        for cell in cells
        for first in range(0, request.images, request.shard)
    ]
    return Plan(tuple(shards), tuple(left_out))


def _pairs(
    defenses: Sequence[Part], attacks: Sequence[Part], steady: set[str]
) -> tuple[list[tuple[Part, Part]], list[str]]:
    """Cross defenses with attacks, without repeats of questions that always get one answer.

    Raises:
        SpecError: If nothing is left.
    """
    pairs, left_out = [], []
    for defense in defenses:
        repeat = [a for a in attacks if a.record["parameters"]["eot"] > 1]
        senseless = repeat if defense.name in steady else []
        pairs += [(defense, attack) for attack in attacks if attack not in senseless]
        if senseless:
            names = ", ".join(attack.name for attack in senseless)
            left_out.append(
                f"against '{defense.name}' a repeated question (eot > 1) has the same answer "
                f"every time, so these are not run: {names}"
            )
    if not pairs:
        raise SpecError(f"nothing is left to run: {left_out[0]}")
    return pairs, left_out


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


def _threats(request: Request, dataset: Part) -> list[Threat]:
    """One threat for each radius."""
    usual = DATASETS.choose(dataset.text).entry.facts.eps.get(request.norm)
    radii = request.eps if request.eps is not None else (usual,)
    if None in radii:
        raise SpecError(f"data set '{dataset.name}' has no usual {request.norm} radius: give --eps")
    aim = Aim.TARGETED if request.targeted else Aim.UNTARGETED
    found = [eps for eps in dict.fromkeys(radii) if eps is not None]
    return [Threat(request.norm, eps, request.queries, aim) for eps in found]


def _protocol(request: Request, attack: Part) -> Protocol:
    nearest = ATTACKS.choose(attack.text).entry.facts.goal is Goal.NEAREST
    return Protocol(
        request.checkpoints(),
        request.scores,
        request.probes,
        request.votes,
        request.draws,
        request.run_to_budget and nearest,
    )


def _with_undefended(defenses: Sequence[str]) -> list[str]:
    """Put the bare victim first: the row that stands beside every defense."""
    bare = next(entry.name for entry in DEFENSES if entry.facts.level is Level.NOWHERE)
    return [bare, *(text for text in defenses if text != bare)]


def _parts(choices: Sequence[Choice[Any]], companies: Mapping[str, int]) -> list[Part]:
    """Parts of the choices without repetitions, in their order."""
    parts: dict[str, Part] = {}
    for choice in choices:
        text = str(choice)
        more = {"company": companies[text]} if text in companies else {}
        parts[text] = _part(choice, text, **more)
    return list(parts.values())


def _part(choice: Choice[Any], text: str, **more: str | int) -> Part:
    return Part(text, str(choice), {**choice.record(), **more})
