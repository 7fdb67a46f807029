"""Puts a defense in front of a victim: trains what has to be trained, once, and prepares it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from benchmark.checkpoints import fingerprint
from benchmark.data import Dataset
from benchmark.defense import Defense
from benchmark.entry import Choice
from benchmark.errors import DataError, SpecError, StoreError
from benchmark.facts import Level
from benchmark.files import place
from benchmark.rng import alone
from benchmark.spec import Part, digest
from benchmark.stack import DefenseChoice
from benchmark.victim import Victim

Told = Callable[[str, float], None]  # what is being trained, and the share done

_INSIDE = {Level.WEIGHTS, Level.FEATURES, Level.PENULTIMATE}
_VICTIM, _OWN = "victim.", "own."


def attach(
    choice: DefenseChoice, victim: Victim, data: Dataset, cache: Path, told: Told | None = None
) -> tuple[Defense, Victim]:
    """Make a defense, trained and prepared, and the victim that stands behind it.

    Args:
        choice: The defense.
        victim: The undefended victim; it is not changed.
        data: Where images to train and to calibrate come from.
        cache: Folder of trained weights.
        told: Called now and then while something is trained.

    Raises:
        BenchError: If the defense does not fit the victim, or the cache cannot be written.
    """
    with alone:
        bare, name = victim, choice.spelled()
        if name in bare.prepared:
            defense, behind = bare.prepared[name]
            return copy.deepcopy(defense), behind
        defense = choice.build()
        for one, member in zip(choice.members, defense.members, strict=True):
            _check(one, member, victim)
            if member.recipe():
                victim = _trained(one, member, victim, data, cache, told)
            member.prepare(victim, data)
        if bare.remote:  # what a defense asks to prepare itself costs, so it asks once
            bare.prepared[name] = copy.deepcopy(defense), victim
    return defense, victim


def _check(choice: Choice[Any], defense: Defense, victim: Victim) -> None:
    """Refuse a victim that a defense cannot be attached to."""
    if victim.remote and (defense.inside or choice.entry.facts.level in _INSIDE):
        raise SpecError(
            f"defense '{choice}' needs weights, features or gradients of its victim, and "
            f"'{victim.remote.name}' runs elsewhere: use one that acts on images, logits or answers"
        )
    defense.check(victim)


def untrained(
    choice: DefenseChoice, victim: Victim, data: Dataset, cache: Path
) -> tuple[DefenseChoice, Path] | None:
    """Tell what has to be trained next, before a defense can stand before a victim.

    Args:
        choice: The defense; its members are checked as far as they can be.
        victim: The undefended victim.
        data: Where images to train come from.
        cache: Folder of trained weights.

    Returns:
        The first members, of which the last is to be trained, and where its weights will be; None
        if every member is trained that has to be.

    Raises:
        BenchError: If a member does not fit the victim.
    """
    with alone:
        members = choice.build().members
        for place, (one, member) in enumerate(zip(choice.members, members, strict=True)):
            _check(one, member, victim)
            if member.recipe():
                path = _path(one, member, victim, data, cache)
                if not path.is_file():
                    return DefenseChoice(choice.members[: place + 1]), path
                victim = _loaded(path, member, victim)
    return None


def attach_part(part: Part, victim: Victim, data: Dataset, cache: Path) -> tuple[Defense, Victim]:
    """Attach the defense of a piece of work, and check that it is trained as its key says.

    Raises:
        DataError: If the trained weights are not those of the plan.
    """
    defense, behind = attach(DefenseChoice.parse(part.text), victim, data, cache)
    if part.record.get("trained", behind.fingerprint) != behind.fingerprint:
        raise DataError("trained weights changed while the run was going: start it again")
    return defense, behind


def train(
    defense: Defense, victim: Victim, data: Dataset, told: Callable[[float], None] | None = None
) -> Victim:
    """Train a copy of a victim as the defense's recipe says; the victim is not changed."""
    victim = copy.deepcopy(victim)
    with torch.random.fork_rng():  # dropout draws from the global stream
        torch.manual_seed(0)
        for done in defense.fit(victim, data):
            if told:
                told(done)
    victim.eval().requires_grad_(requires_grad=False).zero_grad(set_to_none=True)
    victim.fingerprint = fingerprint(victim)
    return victim


def _trained(
    choice: Choice[Any],
    defense: Defense,
    victim: Victim,
    data: Dataset,
    cache: Path,
    told: Told | None,
) -> Victim:
    path = _path(choice, defense, victim, data, cache)
    if not path.is_file():
        name = str(choice)
        fresh = train(defense, victim, data, (lambda done: told(name, done)) if told else None)
        state = {_VICTIM + k: v for k, v in fresh.state_dict().items()}
        state |= {_OWN + k: v for k, v in defense.learned.items()}
        place(path, save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}))
    return _loaded(path, defense, victim)


def _path(
    choice: Choice[Any], defense: Defense, victim: Victim, data: Dataset, cache: Path
) -> Path:
    record = {k: v for k, v in choice.record().items() if k in {"name", "version", "code"}}
    behind = {"victim": victim.fingerprint, "data": data.fingerprint}
    key = digest({**record, **behind, "recipe": dict(defense.recipe())})
    return cache / "trained" / f"{choice.entry.name}-{key}.safetensors"


def _loaded(path: Path, defense: Defense, victim: Victim) -> Victim:
    """Read a trained victim; also where it was just trained, so that both ways are one."""
    try:
        state = load_file(path, device=str(victim.mean.device))
    except (SafetensorError, OSError) as error:
        raise StoreError(f"trained weights '{path}' are damaged ({error}): delete them") from None
    if own := {k.removeprefix(_OWN): v for k, v in state.items() if k.startswith(_OWN)}:
        defense.learned = own
    found = copy.deepcopy(victim)
    found.load_state_dict(
        {k.removeprefix(_VICTIM): v for k, v in state.items() if k.startswith(_VICTIM)}
    )
    found.fingerprint = fingerprint(found)
    return found
