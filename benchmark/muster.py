"""Brings the defenses of a request before its victim: checked, then at the strengths asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmark.catalogue import DATASETS, MODELS
from benchmark.data import Split
from benchmark.entry import Choice
from benchmark.errors import SpecError
from benchmark.fitting import attach, untrained
from benchmark.loading import load_dataset, load_victim
from benchmark.matching import Calibration, known_matches, searched
from benchmark.measuring import LOOKED_AT, Points, Subject
from benchmark.request import Request
from benchmark.spec import Look, Part
from benchmark.stack import DefenseChoice, undefended
from benchmark.surroundings import Surroundings, check_device
from benchmark.victim import Victim


@dataclass(frozen=True)
class Known:
    """A defense that has met its victim.

    Attributes:
        asked: Every way in which it was asked for.
        choice: The defense at one strength.
        part: The same as an ingredient of cells.
        steady: A repeated question always gets the same answer.
        trained: Everything is trained that has to be; else `part` is no ingredient yet.
    """

    asked: tuple[str, ...]
    choice: DefenseChoice
    part: Part
    steady: bool
    trained: bool = True


@dataclass(frozen=True)
class Roster:
    """The victim of a request, and its defenses as they were asked for, the bare victim first."""

    request: Request
    subject: Subject
    defenses: tuple[Known, ...]

    @property
    def targets(self) -> list[float]:
        """Drops of clean accuracy to look strengths for, fractions."""
        return [points / 100 for points in self.request.match_drop or ()]


@dataclass(frozen=True)
class Muster:
    """The defenses of a request, the bare victim first.

    Attributes:
        defenses: Each at every strength that is to be run.
        looks: What is to be measured of each on clean images.
        calibrations: What strengths were found, if drops were to be matched.
        waiting: Those that are not trained, or whose strength is not known.
    """

    defenses: tuple[Known, ...]
    looks: tuple[Look, ...]
    calibrations: tuple[Calibration, ...] = ()
    waiting: tuple[Known, ...] = ()


def roster(request: Request, surroundings: Surroundings) -> Roster:
    """Attach every defense that needs no training any more, and check the others.

    Raises:
        BenchError: If the victim is not there, or a defense does not fit it.
    """
    dataset, model = subject_parts(request, surroundings)
    subject = Subject(dataset, model, request.shard)
    texts = (str(undefended()), *request.opponents())
    asked = [(text, DefenseChoice.parse(text)) for text in texts]
    return Roster(request, subject, tuple(_known(asked, subject, surroundings)))


def muster(called: Roster, surroundings: Surroundings, fresh: Mapping[str, Points]) -> Muster:
    """Put every defense at the strengths that are asked for; nothing is trained or measured.

    Args:
        called: The defenses.
        surroundings: Where.
        fresh: What searches of this run measured, by their files.

    Raises:
        BenchError: If a defense does not fit the victim.
    """
    known: list[Known] = []
    waiting: list[Known] = []
    for one in trained(called, surroundings):
        (known if one.trained else waiting).append(one)
    calibrations: list[Calibration] = []
    if targets := called.targets:
        waiting = [late for one in waiting for late in _late(one, targets)]
        matched: list[tuple[str, DefenseChoice]] = []
        for one in known:
            found = known_matches(one.choice, targets, called.subject, surroundings, fresh)
            if found is None and searched(one.choice):
                waiting += _late(one, targets)
                continue
            calibrations += [found] if found else []
            choices = found.choices() if found else [one.choice]
            matched += [(text, choice) for text in one.asked for choice in choices]
        known = _known(matched, called.subject, surroundings)
    looks = tuple(_looks(known, called, surroundings))
    return Muster(tuple(known), looks, tuple(calibrations), tuple(waiting))


def subject_parts(request: Request, surroundings: Surroundings) -> tuple[Part, Part]:
    """Resolve data set and victim.

    Raises:
        BenchError: If they or the device are not there, or do not fit.
    """
    surroundings.load_plugins()
    check_device(surroundings.device)
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
        part_of(chosen, request.dataset, fingerprint=data.fingerprint),
        part_of(_named(model_choice, victim), usual, fingerprint=victim.fingerprint),
    )


def _named(choice: Choice[Any], victim: Victim) -> Choice[Any]:
    """Name a victim that runs elsewhere as it names itself: no address stands in a table."""
    return replace(choice, argument=victim.remote.name) if victim.remote else choice


def part_of(choice: Choice[Any], text: str, **more: str | int) -> Part:
    """Make the ingredient of a cell that a choice is."""
    return Part(text, str(choice), {**choice.record(), **more})


def trained(called: Roster, surroundings: Surroundings) -> list[Known]:
    """Return the defenses as asked for; those trained since the roster was made, attached."""
    found = []
    for one in called.defenses:
        asked = [(text, one.choice) for text in one.asked]
        found += [one] if one.trained else _known(asked, called.subject, surroundings)
    return found


def _late(one: Known, targets: Sequence[float]) -> list[Known]:
    """Stand-ins for a defense at strengths that are not known yet."""
    if not searched(one.choice):
        return [one]
    names = [f"{one.part.name} at a drop of {100 * target:g} points" for target in targets]
    parts = [Part(name, name, {**one.part.record, "drop": name}) for name in names]
    return [replace(one, part=part) for part in parts]


def _known(
    choices: Sequence[tuple[str, DefenseChoice]], subject: Subject, surroundings: Surroundings
) -> list[Known]:
    """Attach every defense that is trained once, without repetitions, so that mistakes show."""
    config = surroundings.config
    data = load_dataset(subject.dataset.text, config)
    victim = load_victim(subject.model.text, subject.dataset.text, config, surroundings.device)
    known: dict[str, Known] = {}
    for asked, choice in choices:
        record: dict[str, Any] = choice.record()
        trained = untrained(choice, victim, data, config.cache_folder) is None
        if trained:
            defense, behind = attach(choice, victim, data, config.cache_folder)
            if behind is not victim:
                record["trained"] = behind.fingerprint
        else:
            defense = choice.build()
        if defense.traits.coupled:  # its answers depend on the images it shares a shard with
            record["company"] = subject.company
        part = Part(choice.spelled(), str(choice), record)
        texts = known[part.text].asked if part.text in known else ()
        steady = defense.traits.steady and victim.steady
        known[part.text] = Known((*texts, asked), choice, part, steady, trained)
    return list(known.values())


def _looks(known: Sequence[Known], called: Roster, surroundings: Surroundings) -> list[Look]:
    request, subject = called.request, called.subject
    available = len(load_dataset(subject.dataset.text, surroundings.config).splits[Split.EVAL])
    images = min(LOOKED_AT, available) if request.match_drop else request.images
    more = images, request.votes, request.seed, torch.device(surroundings.device).type
    return [Look(subject.dataset, subject.model, one.part, *more) for one in known]
