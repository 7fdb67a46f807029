"""Measures what each strength of a defense costs, and keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmark.audit import clean_hits
from benchmark.calibration import Curve, Point
from benchmark.data import Dataset, Samples, Split
from benchmark.defended import Defended
from benchmark.errors import StoreError
from benchmark.files import place
from benchmark.fitting import attach
from benchmark.loading import load_dataset, load_for
from benchmark.room import within_memory
from benchmark.spec import Part, digest
from benchmark.stack import DefenseChoice, undefended
from benchmark.streams import defense_streams
from benchmark.surroundings import Surroundings
from benchmark.victim import Victim

LOOKED_AT = 1000  # images at most
DRAWS = 5  # answers of a randomised defense to each
_KNOWN = 0.02  # so much better on `calibrate` than on `eval`: the victim was trained on it
_VERSION = 1  # of cached measurements; raised when their meaning changes

Points = dict[float, Point]  # what strengths cost


@dataclass(frozen=True)
class Subject:
    """What defenses are calibrated on.

    Attributes:
        dataset: Data set.
        model: Victim.
        company: Images that a coupled defense sees together.
    """

    dataset: Part
    model: Part
    company: int


class _Looks(NamedTuple):
    samples: Samples
    dataset: Dataset
    victim: Victim
    subject: Subject
    surroundings: Surroundings


@dataclass(frozen=True)
class Search:
    """A search for the strengths of one defense; what it measures is cached.

    Attributes:
        subject: Data and victim.
        defense: What builds the defense again.
        title: The defense as messages name it.
        targets: Drops of clean accuracy, fractions, > 0.
        split: Split whose clean images are looked at.
        file: Name of the file that keeps what strengths cost.
    """

    subject: Subject
    defense: str
    title: str
    targets: tuple[float, ...]
    split: Split
    file: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"calibration of {self.title} on {self.subject.model.name}"

    @property
    def label(self) -> str:
        """Name that stays the same when code or data are repaired: 16 hex digits."""
        names = {"step": self.name, "dataset": self.subject.dataset.name}
        return digest({**names, "company": self.subject.company})

    def run(self, surroundings: Surroundings) -> Points:
        """Measure the strengths that the search comes by, and keep them.

        Raises:
            BenchError: If the defense breaks a rule, or the cache cannot be written.
        """
        surroundings.load_plugins()
        return within_memory(self._found, surroundings)

    def _found(self, surroundings: Surroundings) -> Points:
        looks = _looks(self.subject, self.split, surroundings)
        known = read(self.file, surroundings)
        curve = _curve(DefenseChoice.parse(self.defense), looks, known)
        for target in self.targets:
            curve.match(target)
        if len(curve.known) > len(known):
            points = [astuple(curve.known[strength]) for strength in sorted(curve.known)]
            place(_folder(surroundings) / self.file, json.dumps(points).encode())
        return curve.known


def search(
    defense: DefenseChoice,
    targets: Sequence[float],
    subject: Subject,
    split: Split,
    surroundings: Surroundings,
) -> Search:
    """Make the search for the strengths of a defense."""
    content = {
        "defense": defense.at(0.0).record(),
        **_on(subject, surroundings),
        "split": str(split),
        "images": looked_at(subject, split, surroundings),
        "company": subject.company,
    }
    file = f"{defense.record()['name']}-{digest(content)}.json"
    return Search(subject, defense.spelled(), str(defense), tuple(targets), split, file)


def read(file: str, surroundings: Surroundings) -> Points:
    """Read what strengths cost, as far as it was measured.

    Raises:
        StoreError: If the file is damaged.
    """
    path = _folder(surroundings) / file
    if not path.is_file():
        return {}
    try:
        return {p[0]: Point(*p) for p in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise StoreError(f"calibration '{path}' is damaged ({error}): delete it") from None


def choose_split(subject: Subject, surroundings: Surroundings) -> Split:
    """Choose the split whose clean images set strengths, once for each victim and data set.

    It is `calibrate`, unless the victim was trained on it, which shows in its accuracy: a drop
    measured on images it knows by heart says little of others (docs/protocol.md).
    """
    found = known_split(subject, surroundings)
    if found is None:
        shares = {}
        for split in (Split.CALIBRATE, Split.EVAL):
            bare = undefended()
            shares[split] = float(_right(bare, _looks(subject, split, surroundings)).mean())
        known = shares[Split.CALIBRATE] - shares[Split.EVAL] > _KNOWN
        found = Split.EVAL if known else Split.CALIBRATE
        place(_split_path(subject, surroundings), json.dumps(str(found)).encode())
    return found


def known_split(subject: Subject, surroundings: Surroundings) -> Split | None:
    """Tell which split sets strengths, None if it was not chosen yet.

    Raises:
        StoreError: If the file that says so is damaged.
    """
    path = _split_path(subject, surroundings)
    if not path.is_file():
        return None
    try:
        return Split(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StoreError(f"calibration '{path}' is damaged ({error}): delete it") from None


def _split_path(subject: Subject, surroundings: Surroundings) -> Path:
    content = {
        **_on(subject, surroundings),
        "split": [looked_at(subject, split, surroundings) for split in Split],
        "known": _KNOWN,
    }
    return _folder(surroundings) / f"split-{digest(content)}.json"


def looked_at(subject: Subject, split: Split, surroundings: Surroundings) -> int:
    """Count the images of a split that strengths are set on."""
    dataset = load_dataset(subject.dataset.text, surroundings.config)
    return min(LOOKED_AT, len(dataset.splits[split]))


def _looks(subject: Subject, split: Split, surroundings: Surroundings) -> _Looks:
    dataset, victim = load_for(subject, surroundings.config, surroundings.device)
    samples = dataset.take(split, looked_at(subject, split, surroundings))
    return _Looks(samples, dataset, victim, subject, surroundings)


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
    streams = defense_streams("calibrate", name, 0, ids, device)  # whatever the seed of a run
    draws = 1 if defended.steady else DRAWS
    labels = looks.samples.labels.to(device)
    return clean_hits(defended, images, labels, draws, streams).double() / draws


def _on(subject: Subject, surroundings: Surroundings) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "data": subject.dataset.record["fingerprint"],
        "victim": subject.model.record["fingerprint"],
        "device": torch.device(surroundings.device).type,
    }


def _folder(surroundings: Surroundings) -> Path:
    return surroundings.config.cache_folder / "calibrations"
