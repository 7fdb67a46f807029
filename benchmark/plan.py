"""From a request to cells and shards, in a stable order, with everything checked first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmark.catalogue import ATTACKS, DATASETS
from benchmark.choices import attack_choices
from benchmark.errors import SpecError
from benchmark.fitting import Told
from benchmark.matching import Calibration
from benchmark.muster import Known, muster, part_of, subject_parts
from benchmark.protocol import Protocol
from benchmark.request import Request
from benchmark.spec import Cell, Look, Part, Shard
from benchmark.surroundings import Surroundings
from benchmark.types import Aim, Goal, Threat


@dataclass(frozen=True)
class Plan:
    """What a request comes to.

    Attributes:
        shards: Work to do.
        looks: Defenses whose clean answers are to be looked at.
        left_out: Combinations that make no sense, a line each.
        calibrations: What strengths were found, if drops were to be matched.
    """

    shards: tuple[Shard, ...]
    looks: tuple[Look, ...] = ()
    left_out: tuple[str, ...] = ()
    calibrations: tuple[Calibration, ...] = ()


def plan(
    request: Request,
    surroundings: Surroundings,
    jobs: int | None = None,
    told: Told | None = None,
) -> Plan:
    """Resolve a request into shards; train and calibrate what that needs.

    Args:
        request: What is wanted.
        surroundings: Where.
        jobs: Processes that look for strengths; None means one a core.
        told: Called now and then while a defense is trained.

    Raises:
        BenchError: For anything that cannot run, before anything runs.
    """
    dataset, model = subject_parts(request, surroundings)
    attacks = _attacks(request)
    threats, kind = _threats(request, dataset), torch.device(surroundings.device).type
    found = muster(request, dataset, model, surroundings, jobs, told)
    pairs, left_out = _pairs(found.defenses, attacks, request)
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
    return Plan(tuple(shards), found.looks, tuple(left_out), found.calibrations)


class _Attacker(NamedTuple):
    """An attack, and every way in which it was asked for."""

    part: Part
    asked: tuple[str, ...]


def _attacks(request: Request) -> list[_Attacker]:
    """Resolve every attack, without repetitions, in their order."""
    found: dict[str, _Attacker] = {}
    for text in request.attackers():
        for choice in attack_choices(text, request):
            name = str(choice)
            texts = found[name].asked if name in found else ()
            found[name] = _Attacker(part_of(choice, name), (*texts, text))
    return list(found.values())


def _pairs(
    known: Sequence[Known], attacks: Sequence[_Attacker], request: Request
) -> tuple[list[tuple[Part, Part]], list[str]]:
    """Tell which defenses meet which attacks, and say why others do not.

    Raises:
        SpecError: If nothing is left.
    """
    pairs, left_out = [], []
    for place, one in enumerate(known):
        senseless: list[str] = []
        for part, texts in attacks:
            names = list(itertools.product(texts, one.asked))
            # The first is the undefended victim, which meets them all.
            if place and not any(request.meets(*name) for name in names):
                continue
            if reason := next(filter(None, (request.excluded(*name) for name in names)), ""):
                left_out.append(f"'{part.name}' against '{one.part.name}': {reason}")
            elif one.steady and part.record["parameters"]["eot"] > 1:
                senseless.append(part.name)
            else:
                pairs.append((one.part, part))
        if senseless:
            left_out.append(
                f"against '{one.part.name}' a repeated question (eot > 1) has the same answer "
                f"every time, so these are not run: {', '.join(senseless)}"
            )
    if not pairs:
        raise SpecError(f"nothing is left to run: {left_out[0]}")
    return pairs, left_out


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
