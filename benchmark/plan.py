"""From a request to cells and shards, in a stable order, with everything checked first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmark.catalogue import ATTACKS, DATASETS
from benchmark.choices import attack_choices, check_shown
from benchmark.errors import SpecError
from benchmark.matching import Calibration
from benchmark.measuring import Points
from benchmark.muster import Known, Roster, muster, part_of, roster
from benchmark.protocol import Protocol
from benchmark.request import Request
from benchmark.spec import Cell, Look, Part, Shard
from benchmark.surroundings import Surroundings
from benchmark.types import Aim, Goal, Threat


class Attacker(NamedTuple):
    """An attack, and every way in which it was asked for."""

    part: Part
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A request whose names are resolved and whose mistakes were told.

    Attributes:
        roster: Victim and defenses.
        attacks: Attacks.
        threats: One for each radius.
    """

    roster: Roster
    attacks: tuple[Attacker, ...]
    threats: tuple[Threat, ...]


@dataclass(frozen=True)
class Plan:
    """What a request comes to.

    Attributes:
        shards: Work to do.
        looks: Defenses whose clean answers are to be looked at.
        left_out: Combinations that make no sense, a line each.
        calibrations: What strengths were found, if drops were to be matched.
        waiting: Stand-ins, with keys that mean nothing, for shards against defenses that are not
            trained or whose strength is not known.
    """

    shards: tuple[Shard, ...]
    looks: tuple[Look, ...] = ()
    left_out: tuple[str, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    waiting: tuple[Shard, ...] = ()


def draft(request: Request, surroundings: Surroundings) -> Draft:
    """Resolve and check a request; nothing is trained or measured.

    Raises:
        BenchError: For anything that cannot run.
    """
    called = roster(request, surroundings)
    check_shown(request, called.subject, surroundings)
    found = Draft(
        called, tuple(_attacks(request)), tuple(_threats(request, called.subject.dataset))
    )
    _pairs(called.defenses, found.attacks, request)
    return found


def plan(
    drafted: Draft, surroundings: Surroundings, fresh: Mapping[str, Points] | None = None
) -> Plan:
    """Resolve a request into shards, by what is trained and calibrated.

    Args:
        drafted: What is wanted.
        surroundings: Where.
        fresh: What searches of this run measured, by their files.

    Raises:
        BenchError: If a defense does not fit the victim.
    """
    request = drafted.roster.request
    found = muster(drafted.roster, surroundings, fresh or {})
    defenses = (*found.defenses, *found.waiting)
    pairs, left_out = _pairs(defenses, drafted.attacks, request)
    late = {one.part.text for one in found.waiting}
    cells = _cells(pairs, drafted, torch.device(surroundings.device).type)
    shards: list[Shard] = []
    waiting: list[Shard] = []
    for cell in cells:
        mine = waiting if cell.defense.text in late else shards
        for first in range(0, request.images, request.shard):
            mine.append(Shard(cell, first, min(request.shard, request.images - first)))
    return Plan(tuple(shards), found.looks, tuple(left_out), found.calibrations, tuple(waiting))


def _cells(pairs: Sequence[tuple[Part, Part]], drafted: Draft, device: str) -> list[Cell]:
    """One cell for each pair and threat."""
    request, subject = drafted.roster.request, drafted.roster.subject
    protocols = {one.part.name: _protocol(request, one.part) for one in drafted.attacks}
    more = request.images, request.seed, device
    return [
        Cell(subject.dataset, subject.model, defense, attack, threat, protocols[attack.name], *more)
        for defense, attack in pairs
        for threat in drafted.threats
    ]


def _attacks(request: Request) -> list[Attacker]:
    """Resolve every attack, without repetitions, in their order."""
    found: dict[str, Attacker] = {}
    for text in request.attackers():
        for choice in attack_choices(text, request):
            name = str(choice)
            texts = found[name].asked if name in found else ()
            found[name] = Attacker(part_of(choice, name), (*texts, text))
    return list(found.values())


def _pairs(
    known: Sequence[Known], attacks: Sequence[Attacker], request: Request
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
