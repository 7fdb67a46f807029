"""Measures what each strength of a defense costs, and finds those that cost a given drop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import joblib
import torch
from torch import Tensor

from benchmark.audit import clean_hits
from benchmark.calibration import Curve, Match, Point
from benchmark.data import Dataset, Samples, Split
from benchmark.defended import Defended
from benchmark.errors import StoreError
from benchmark.files import place
from benchmark.fitting import attach
from benchmark.loading import load_dataset, load_victim
from benchmark.machine import settle, threads_kept
from benchmark.spec import digest
from benchmark.stack import DefenseChoice, undefended
from benchmark.streams import defense_streams
from benchmark.surroundings import Surroundings
from benchmark.victim import Victim

LOOKED_AT = 1000  # images at most
_DRAWS = 5  # answers of a randomised defense to each
_KNOWN = 0.02  # so much better on `calibrate` than on `eval`: the victim was trained on it
_BENT = 2.0  # standard errors that a curve may leave the nearest monotone one by
_MISSED = 0.0025  # so far from the target, a drop was not found
_VERSION = 1  # of cached measurements; raised when their meaning changes


@dataclass(frozen=True)
class Subject:
    """What defenses are calibrated on.

    Attributes:
        dataset: Data set as a user writes it.
        model: Victim as a user writes it.
        seed: Seed of the noise.
        company: Images that a coupled defense sees together.
    """

    dataset: str
    model: str
    seed: int
    company: int


@dataclass(frozen=True)
class Calibration:
    """What was found out about one defense.

    Attributes:
        defense: The defense as it was asked for.
        points: Every strength measured, ascending.
        matches: One for each target; empty if there is no strength to look for.
        split: Split whose clean images were looked at.
        images: Images looked at.
        draws: Answers of a randomised defense to each.
    """

    defense: DefenseChoice
    points: tuple[Point, ...]
    matches: tuple[Match, ...]
    split: Split
    images: int
    draws: int = _DRAWS

    def choices(self) -> list[DefenseChoice]:
        """The defense at every strength found; as it was asked for if none was looked for."""
        found = [self.defense.at(match.point.strength) for match in self.matches]
        return found or [self.defense]

    def doubts(self) -> list[str]:
        """What a user should know of the strengths found, a line each."""
        lines = []
        for match in self.matches:
            asked = f"{self.defense} at a drop of {100 * match.target:g} points"
            if match.saturated:
                lines.append(
                    f"{asked}: saturated, {self.defense.knob}={match.point.strength:g} costs "
                    f"the most, {100 * match.point.drop:.2f} points"
                )
            elif abs(match.point.drop - match.target) > _MISSED:
                lines.append(
                    f"{asked}: missed, the nearest is {self.defense.knob}="
                    f"{match.point.strength:g} at {100 * match.point.drop:.2f} points"
                )
            elif match.bend > _BENT:
                lines.append(f"{asked}: its curve is not monotone ({match.bend:.1f} errors)")
        return lines


def borrowed(calibrations: Sequence[Calibration]) -> list[str]:
    """Say, in a line, that strengths were not set on split `calibrate`, if so."""
    if any(one.matches and one.split is not Split.CALIBRATE for one in calibrations):
        return ["the victim knows split 'calibrate': clean images of split 'eval' set strengths"]
    return []


class _Looks(NamedTuple):
    samples: Samples
    dataset: Dataset
    victim: Victim
    subject: Subject
    split: Split
    surroundings: Surroundings


def calibrate(
    defenses: Sequence[DefenseChoice],
    targets: Sequence[float],
    subject: Subject,
    surroundings: Surroundings,
    jobs: int | None = None,
) -> list[Calibration]:
    """Find the strength of each defense for each target; measurements are cached.

    Args:
        defenses: Defenses; those without a strength, or with one written out, get no match.
        targets: Drops of clean accuracy, fractions, > 0.
        subject: Data, victim and split.
        surroundings: Where.
        jobs: Processes; None means one a core, and one on a GPU.
    """
    split = _split_for(subject, surroundings)
    on_cpu = torch.device(surroundings.device).type == "cpu"
    processes = jobs or (joblib.cpu_count() if on_cpu else 1)
    runner = joblib.Parallel(n_jobs=max(1, min(processes, len(defenses))), batch_size=1)
    call = joblib.delayed(_calibrate_one)
    calls = (call(one, tuple(targets), subject, split, surroundings) for one in defenses)
    with threads_kept():
        return list(runner(calls))


def _split_for(subject: Subject, surroundings: Surroundings) -> Split:
    """Choose the split whose clean images set strengths.

    It is `calibrate`, unless the victim was trained on it, which shows in its accuracy: a drop
    measured on images it knows by heart says little of others (docs/protocol.md).
    """
    shares = {}
    for split in (Split.CALIBRATE, Split.EVAL):
        looks = _looks(subject, split, surroundings)
        shares[split] = float(_right(undefended(), looks).mean())
    known = shares[Split.CALIBRATE] - shares[Split.EVAL] > _KNOWN
    return Split.EVAL if known else Split.CALIBRATE


def _looks(subject: Subject, split: Split, surroundings: Surroundings) -> _Looks:
    config, device = surroundings.config, surroundings.device
    dataset = load_dataset(subject.dataset, config)
    victim = load_victim(subject.model, subject.dataset, config, device)
    samples = dataset.take(split, min(LOOKED_AT, len(dataset.splits[split])))
    return _Looks(samples, dataset, victim, subject, split, surroundings)


def _calibrate_one(
    defense: DefenseChoice,
    targets: tuple[float, ...],
    subject: Subject,
    split: Split,
    surroundings: Surroundings,
) -> Calibration:
    settle()
    surroundings.load_plugins()
    looks = _looks(subject, split, surroundings)
    count = len(looks.samples.ids)
    if defense.fixed or not defense.knob:
        return Calibration(defense, (), (), split, count)
    path = _path(defense, looks)
    known = _read(path)
    curve = _curve(defense, looks, known)
    matches = tuple(curve.match(target) for target in targets)
    points = tuple(curve.known[strength] for strength in sorted(curve.known))
    if len(curve.known) > len(known):
        place(path, json.dumps([astuple(point) for point in points]).encode())
    return Calibration(defense, points, matches, split, count)


def _curve(defense: DefenseChoice, looks: _Looks, known: dict[float, Point]) -> Curve:
    base: list[Tensor] = []

    def measure(strength: float) -> Point:
        if not base:
            base.append(_right(defense.at(0.0), looks))
        lost = base[0] - _right(defense.at(strength), looks)
        return Point(strength, float(lost.mean()), float(lost.std() / len(lost) ** 0.5))

    return Curve(measure, defense.strength or 0.0, defense.limit, dict(known))


def _right(defense: DefenseChoice, looks: _Looks) -> Tensor:
    """Share of right answers to each image, (n,), with the same noise at every strength."""
    surroundings, device = looks.surroundings, torch.device(looks.surroundings.device)
    built, victim = attach(defense, looks.victim, looks.dataset, surroundings.config.cache_folder)
    images = looks.samples.images.to(device)
    batch = surroundings.batch_for(images[0].numel())
    defended = Defended(victim, built, batch, looks.subject.company)
    ids = looks.samples.ids.tolist()
    name = defense.record()["name"]
    streams = defense_streams("calibrate", name, looks.subject.seed, ids, device)
    draws = 1 if defended.steady else _DRAWS
    labels = looks.samples.labels.to(device)
    return clean_hits(defended, images, labels, draws, streams).double() / draws


def _path(defense: DefenseChoice, looks: _Looks) -> Path:
    content = {
        "version": _VERSION,
        "defense": defense.at(0.0).record(),
        "data": looks.dataset.fingerprint,
        "victim": looks.victim.fingerprint,
        "split": str(looks.split),
        "images": len(looks.samples.ids),
        "seed": looks.subject.seed,
        "company": looks.subject.company,
        "device": torch.device(looks.surroundings.device).type,
    }
    folder = looks.surroundings.config.cache_folder / "calibrations"
    return folder / f"{defense.record()['name']}-{digest(content)}.json"


def _read(path: Path) -> dict[float, Point]:
    if not path.is_file():
        return {}
    try:
        return {p[0]: Point(*p) for p in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise StoreError(f"calibration '{path}' is damaged ({error}): delete it") from None
