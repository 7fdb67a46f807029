"""What shards wait for, made on the workers: first defenses are trained, then strengths found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from rich.console import Console

from benchmark.backends import Workers
from benchmark.display import told_of
from benchmark.errors import StoreError
from benchmark.fitting import attach, untrained
from benchmark.loading import load_dataset, load_for, load_victim
from benchmark.matching import known_matches, searched
from benchmark.measuring import Points, Search, Subject, choose_split, search
from benchmark.muster import Known, Roster, trained
from benchmark.scheduler import execute
from benchmark.spec import digest
from benchmark.stack import DefenseChoice
from benchmark.store import Store
from benchmark.surroundings import Surroundings
from benchmark.work import Report, Work


@dataclass(frozen=True)
class Training:
    """The training of one member of a defense, on what those before it were trained to.

    Attributes:
        subject: Data and victim.
        defense: What builds the members up to this one.
        title: The same as messages name it.
        file: Name of the file that keeps the weights.
    """

    subject: Subject
    defense: str
    title: str
    file: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"training of {self.title} on {self.subject.model.name}"

    @property
    def label(self) -> str:
        """Name that stays the same when code or data are repaired: 16 hex digits."""
        return digest({"step": self.name, "dataset": self.subject.dataset.name})

    def run(self, surroundings: Surroundings) -> None:
        """Train, and keep the weights; how far it is, the worker says where it runs.

        Raises:
            BenchError: If the defense does not fit the victim, or the cache cannot be written.
        """
        surroundings.load_plugins()
        data, victim = load_for(self.subject, surroundings.config, surroundings.device)
        told = told_of(Console(stderr=True), "training")
        cache = surroundings.config.cache_folder
        attach(DefenseChoice.parse(self.defense), victim, data, cache, told)


@dataclass
class Prepared:
    """What came of it.

    Attributes:
        fresh: What searches measured, by their files.
        failed: Steps that failed twice, by their files.
        repaired: Steps that failed once and then did not.
    """

    fresh: dict[str, Points] = field(default_factory=dict)
    failed: dict[str, Report] = field(default_factory=dict)
    repaired: list[Report] = field(default_factory=list)


def prepare(
    rosters: Sequence[Roster],
    surroundings: Surroundings,
    store: Store,
    workers: Workers,
    console: Console,
) -> Prepared:
    """Train and calibrate what the defenses of several requests need, each thing once.

    A member that is trained on a trained one waits for it, and a search for all trainings. What
    fails twice is told of at the end; what does not need it goes on.

    Args:
        rosters: The defenses.
        surroundings: Where.
        store: Where tracebacks go.
        workers: Who does it; none are started if nothing is to be done.
        console: Where it is said what is done.

    Raises:
        BenchError: If what is cached is damaged, or nothing can be written.
    """
    done = Prepared()
    team = _Team(surroundings, store, workers, console, done)
    tried: set[str] = set()
    while steps := _trainings(rosters, surroundings, done):
        if lost := next((one for one in steps if one.label in tried), None):
            raise StoreError(
                f"{lost.name} is done, but its weights are not in "
                f"'{surroundings.config.cache_folder}': workers must see the same --cache"
            )
        tried |= {one.label for one in steps}
        team.do(steps)
    team.do(_searches(rosters, surroundings))
    return done


def needed(called: Roster, surroundings: Surroundings) -> list[tuple[str, str]]:
    """Name what has to be done before the defenses of a request can be attacked.

    Returns:
        Pairs such as ("training on resnet20", "at+rnd").
    """
    model = called.subject.model.name
    found: list[tuple[str, str]] = []
    for one in called.defenses:
        titles = _to_train(one, called, surroundings)
        found += [(f"training on {model}", title) for title in titles]
        if called.targets and searched(one.choice):
            given = one.choice, called.targets, called.subject, surroundings
            if not one.trained or known_matches(*given, {}) is None:
                found.append((f"calibration on {model}", str(one.choice)))
    return found


def _to_train(one: Known, called: Roster, surroundings: Surroundings) -> list[str]:
    """Members of a defense that are to be trained, each with those before it."""
    next_ = _untrained(one, called, surroundings)
    if next_ is None:
        return []
    done, members = len(next_[0].members) - 1, one.choice.members
    built = one.choice.build().members
    places = [place for place in range(done, len(members)) if built[place].recipe()]
    return [str(DefenseChoice(members[: place + 1])) for place in places]


@dataclass(frozen=True)
class _Team:
    surroundings: Surroundings
    store: Store
    workers: Workers
    console: Console
    done: Prepared

    def do(self, steps: Sequence[Training | Search]) -> None:
        """Do steps that do not depend on each other; keep what comes of them."""
        if not steps:
            return
        self._say(f"first: {'; '.join(one.name for one in steps)}")
        ended = 0

        def told(one: Work, report: Report) -> None:
            nonlocal ended
            if not isinstance(one, Training | Search):
                return
            if report.fault:
                self.done.failed[one.file] = report
                self._say(f"failed: {one.name}: {report.error}")
                return
            ended += 1
            self._say(f"{ended} of {len(steps)} done: {one.name}")
            self.done.failed.pop(one.file, None)
            if isinstance(one, Search):
                self.done.fresh[one.file] = cast(Points, report.found)

        work: list[Work] = [*steps]
        done = execute(work, self.surroundings, self.store, self.workers, told)
        self.done.repaired.extend(done.repaired)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _trainings(
    rosters: Sequence[Roster], surroundings: Surroundings, done: Prepared
) -> list[Training]:
    """What can be trained now, each thing once."""
    found: dict[str, Training] = {}
    for called in rosters:
        for one in called.defenses:
            if next_ := _untrained(one, called, surroundings):
                choice, path = next_
                step = Training(called.subject, choice.spelled(), str(choice), path.name)
                found.setdefault(path.name, step)
    return [one for one in found.values() if one.file not in done.failed]


def _untrained(
    one: Known, called: Roster, surroundings: Surroundings
) -> tuple[DefenseChoice, Path] | None:
    if one.trained:
        return None
    subject, config = called.subject, surroundings.config
    data = load_dataset(subject.dataset.text, config)
    victim = load_victim(subject.model.text, subject.dataset.text, config, surroundings.device)
    return untrained(one.choice, victim, data, config.cache_folder)


def _searches(rosters: Sequence[Roster], surroundings: Surroundings) -> list[Search]:
    """What is to be calibrated, each thing once, for the drops that any request asks for."""
    found: dict[str, Search] = {}
    for called in (one for one in rosters if one.targets):
        split = choose_split(called.subject, surroundings)  # also where nothing is searched
        ready = [one.choice for one in trained(called, surroundings) if one.trained]
        for choice in filter(searched, ready):
            step = search(choice, called.targets, called.subject, split, surroundings)
            if known_matches(choice, called.targets, called.subject, surroundings, {}):
                continue
            before = found[step.file].targets if step.file in found else ()
            targets = tuple(dict.fromkeys((*before, *step.targets)))
            found[step.file] = replace(step, targets=targets)
    return list(found.values())
