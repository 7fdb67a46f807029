"""Brings the defenses of a request before its victim: trained, calibrated, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmark.catalogue import DATASETS, MODELS
from benchmark.data import Split
from benchmark.entry import Choice
from benchmark.errors import SpecError
from benchmark.fitting import Told, attach
from benchmark.loading import forget, load_dataset, load_victim
from benchmark.matching import LOOKED_AT, Calibration, Subject, calibrate
from benchmark.request import Request
from benchmark.spec import Look, Part
from benchmark.stack import DefenseChoice, undefended
from benchmark.surroundings import Surroundings, check_device


@dataclass(frozen=True)
class Known:
    """A defense that has met its victim.

    Attributes:
        asked: Every way in which it was asked for.
        choice: The defense at one strength.
        part: The same as an ingredient of cells.
        steady: A repeated question always gets the same answer.
    """

    asked: tuple[str, ...]
    choice: DefenseChoice
    part: Part
    steady: bool


@dataclass(frozen=True)
class Muster:
    """The defenses of a request, the bare victim first.

    Attributes:
        defenses: Each at every strength that is to be run.
        looks: What is to be measured of each on clean images.
        calibrations: What strengths were found, if drops were to be matched.
    """

    defenses: tuple[Known, ...]
    looks: tuple[Look, ...]
    calibrations: tuple[Calibration, ...] = ()


def muster(
    request: Request,
    dataset: Part,
    model: Part,
    surroundings: Surroundings,
    jobs: int | None,
    told: Told | None,
) -> Muster:
    """Attach every defense, train what has to be trained, find the strengths that are asked for.

    Raises:
        BenchError: If a defense does not fit the victim.
    """
    bare = undefended()
    asked = {text: DefenseChoice.parse(text) for text in (str(bare), *request.opponents())}
    known = _prepared([*asked.items()], dataset, model, request, surroundings, told)
    calibrations: list[Calibration] = []
    if request.match_drop:
        subject = Subject(dataset.text, model.text, request.seed, request.shard)
        targets = [points / 100 for points in request.match_drop]
        calibrations = calibrate([k.choice for k in known], targets, subject, surroundings, jobs)
        matched = [
            (text, choice)
            for one, found in zip(known, calibrations, strict=True)
            for text in one.asked
            for choice in found.choices()
        ]
        known = _prepared(matched, dataset, model, request, surroundings, told)
    looks = _looks(known, dataset, model, request, surroundings)
    return Muster(tuple(known), tuple(looks), tuple(calibrations))


def subject_parts(request: Request, surroundings: Surroundings) -> tuple[Part, Part]:
    """Resolve data set and victim.

    Raises:
        BenchError: If they or the device are not there, or do not fit.
    """
    surroundings.load_plugins()
    forget()  # files may have changed since an earlier run in this process
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
        part_of(model_choice, usual, fingerprint=victim.fingerprint),
    )


def part_of(choice: Choice[Any], text: str, **more: str | int) -> Part:
    """Make the ingredient of a cell that a choice is."""
    return Part(text, str(choice), {**choice.record(), **more})


def _prepared(
    choices: Sequence[tuple[str, DefenseChoice]],
    dataset: Part,
    model: Part,
    request: Request,
    surroundings: Surroundings,
    told: Told | None,
) -> list[Known]:
    """Attach every defense once, without repetitions: mistakes show, training is done."""
    config = surroundings.config
    data = load_dataset(dataset.text, config)
    victim = load_victim(model.text, dataset.text, config, surroundings.device)
    known: dict[str, Known] = {}
    for asked, choice in choices:
        defense, behind = attach(choice, victim, data, config.cache_folder, told)
        record: dict[str, Any] = choice.record()
        if behind is not victim:
            record["trained"] = behind.fingerprint
        if defense.traits.coupled:  # its answers depend on the images it shares a shard with
            record["company"] = request.shard
        part = Part(choice.spelled(), str(choice), record)
        texts = known[part.text].asked if part.text in known else ()
        known[part.text] = Known((*texts, asked), choice, part, defense.traits.steady)
    return list(known.values())


def _looks(
    known: Sequence[Known],
    dataset: Part,
    model: Part,
    request: Request,
    surroundings: Surroundings,
) -> list[Look]:
    available = len(load_dataset(dataset.text, surroundings.config).splits[Split.EVAL])
    images = min(LOOKED_AT, available) if request.match_drop else request.images
    kind = torch.device(surroundings.device).type
    return [
        Look(dataset, model, one.part, images, request.votes, request.seed, kind) for one in known
    ]
