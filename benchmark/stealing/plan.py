"""From a request to thefts and transfers, in a stable order, with everything checked first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmark.catalogue import DATASETS, STEALERS
from benchmark.choices import check_shown
from benchmark.data import Split
from benchmark.entry import Choice
from benchmark.errors import SpecError
from benchmark.facts import StealerFacts
from benchmark.loading import load_dataset, load_victim
from benchmark.matching import Calibration
from benchmark.measuring import Points
from benchmark.muster import Roster, muster, part_of, roster
from benchmark.spec import Look, Part
from benchmark.stealing.pool import image_shape, open_pool
from benchmark.stealing.request import StealRequest
from benchmark.stealing.spec import Origin, Theft, Transfer
from benchmark.stealing.stealer import Scene, Stealer
from benchmark.surroundings import Surroundings
from benchmark.types import Norm


@dataclass(frozen=True)
class StealDraft:
    """A request whose names are resolved and whose mistakes were told.

    Attributes:
        request: What was asked for.
        roster: Victim and defenses.
        attacks: Stealing attacks.
        references: Those that ask nothing: lines of reference.
        pool: Data set of the attacker's images.
        eps: Radius of transfers.
        inside: The victim's own gradients are known: it does not run elsewhere.
    """

    request: StealRequest
    roster: Roster
    attacks: tuple[Part, ...]
    references: tuple[Part, ...]
    pool: Part
    eps: float
    inside: bool


@dataclass(frozen=True)
class StealPlan:
    """What a request comes to.

    Attributes:
        thefts: What is stolen; transfers need it first.
        transfers: What is shown to the victim then.
        looks: Defenses whose clean answers are to be looked at.
        calibrations: What strengths were found, if drops were to be matched.
        waiting: Names of defenses that are not trained or whose strength is not known.
    """

    thefts: tuple[Theft, ...]
    transfers: tuple[Transfer, ...]
    looks: tuple[Look, ...]
    calibrations: tuple[Calibration, ...]
    waiting: tuple[str, ...]


def draft(request: StealRequest, surroundings: Surroundings) -> StealDraft:
    """Resolve and check a request; nothing is trained, measured or stolen.

    Raises:
        BenchError: For anything that cannot run.
    """
    called = roster(request.defended(), surroundings)
    check_shown(called.request, called.subject, surroundings)
    request.checkpoints()
    choices = {str(choice): choice for choice in map(STEALERS.choose, _with_lines(request))}
    usual = DATASETS.choose(request.dataset).entry.facts.eps.get(Norm.LINF)
    eps = request.eps or usual
    if eps is None:
        raise SpecError(f"data set '{request.dataset}' has no usual linf radius: give --eps")
    parts = {name: part_of(choice, choice.spelled()) for name, choice in choices.items()}
    asking = [parts[name] for name, choice in choices.items() if choice.entry.facts.asks]
    others = [parts[name] for name, choice in choices.items() if not choice.entry.facts.asks]
    pool = _pool(request, surroundings)
    names = called.subject.model.text, request.dataset
    victim = load_victim(*names, surroundings.config, surroundings.device)
    _try_out(choices.values(), request, surroundings)
    inside = victim.remote is None
    return StealDraft(request, called, tuple(asking), tuple(others), pool, eps, inside)


def _try_out(
    choices: Iterable[Choice[StealerFacts]], request: StealRequest, surroundings: Surroundings
) -> None:
    """Let every attack begin, so that what it cannot do shows before anything is stolen."""
    config = surroundings.config
    data = load_dataset(request.dataset, config)
    shape = image_shape(data.take(Split.EVAL, 1).images)
    pool_data = load_dataset(request.pool or request.dataset, config)
    had = open_pool(pool_data, request.pool_images, shape)
    own = open_pool(data, None, shape)
    for choice in choices:
        pool = had if choice.entry.facts.asks else own
        attack: Stealer = choice.entry.build(**choice.values)
        seed = request.seeds[0]
        scene = Scene(
            shape, data.num_classes, request.checkpoints()[-1], seed, pool, torch.device("cpu")
        )
        attack.begin(scene)


def _with_lines(request: StealRequest) -> list[str]:
    """The attacks of a request, and every line of reference that it does not name."""
    named = {STEALERS.choose(text).entry.name for text in request.attacks}
    lines = [one.name for one in STEALERS if not one.facts.asks and one.name not in named]
    return [*request.attacks, *lines]


def _pool(request: StealRequest, surroundings: Surroundings) -> Part:
    """The data set of the attacker's images, opened once so that mistakes show."""
    text = request.pool or request.dataset
    data = load_dataset(text, surroundings.config)
    open_pool(data, request.pool_images, (1, 1, 1))
    return part_of(DATASETS.choose(text), text, fingerprint=data.fingerprint)


def plan(
    drafted: StealDraft, surroundings: Surroundings, fresh: Mapping[str, Points] | None = None
) -> StealPlan:
    """Resolve a request into thefts and transfers, by what is trained and calibrated.

    Args:
        drafted: What is wanted.
        surroundings: Where.
        fresh: What searches of this run measured, by their files.

    Raises:
        BenchError: If a defense does not fit the victim.
    """
    found = muster(drafted.roster, surroundings, fresh or {})
    maker = _Maker(drafted, torch.device(surroundings.device).type)
    defenses = [one.part for one in found.defenses]
    thefts = [theft for part in defenses for theft in maker.thefts(part)]
    bare = defenses[0]
    references = [maker.reference(attack, bare) for attack in drafted.references]
    transfers = [one for part in defenses for one in maker.transfers(part, thefts, references)]
    waiting = tuple(one.part.name for one in found.waiting)
    every = (*thefts, *references)
    return StealPlan(every, tuple(transfers), found.looks, found.calibrations, waiting)


@dataclass(frozen=True)
class _Maker:
    drafted: StealDraft
    device: str

    def thefts(self, defense: Part) -> list[Theft]:
        """One for each attack and seed."""
        request = self.drafted.request
        return [
            self._theft(attack, defense, self.drafted.pool, request.pool_images, seed)
            for attack in self.drafted.attacks
            for seed in request.seeds
        ]

    def reference(self, attack: Part, bare: Part) -> Theft:
        """What asks nothing learns from the victim's own data set; one seed will do."""
        subject = self.drafted.roster.subject
        return self._theft(attack, bare, subject.dataset, None, self.drafted.request.seeds[0])

    def _theft(
        self, attack: Part, defense: Part, pool: Part, pool_images: int | None, seed: int
    ) -> Theft:
        request, subject = self.drafted.request, self.drafted.roster.subject
        asks = attack in self.drafted.attacks
        return Theft(
            subject.dataset,
            subject.model,
            defense,
            attack,
            pool,
            pool_images,
            request.checkpoints() if asks else (0,),
            request.scores,
            request.images,
            request.draws,
            seed,
            self.device,
        )

    def transfers(
        self, defense: Part, thefts: Sequence[Theft], references: Sequence[Theft]
    ) -> list[Transfer]:
        """Reference lines, every clone at every checkpoint, and ensembles over seeds."""
        found = [self._line(defense, Origin.NOTHING)]
        if self.drafted.inside:
            found.append(self._line(defense, Origin.VICTIM))
        found += [self._of([one], defense, 0) for one in references]
        for attack in self.drafted.attacks:
            mine = [one for one in thefts if one.defense == defense and one.attack == attack]
            groups = [[one] for one in mine] + ([mine] if len(mine) > 1 else [])
            found += [
                self._of(group, defense, budget) for budget in mine[0].budgets for group in groups
            ]
        return found

    def _of(self, thefts: Sequence[Theft], defense: Part, budget: int) -> Transfer:
        keys, seeds = tuple(one.key for one in thefts), tuple(one.seed for one in thefts)
        return self._transfer(defense, Origin.CLONES, thefts[0].attack, keys, seeds, budget)

    def _line(self, defense: Part, origin: Origin) -> Transfer:
        name = Part(str(origin), str(origin), {"name": str(origin)})
        return self._transfer(defense, origin, name, (), self.drafted.request.seeds[:1], 0)

    def _transfer(
        self,
        defense: Part,
        origin: Origin,
        attack: Part,
        thefts: tuple[str, ...],
        seeds: tuple[int, ...],
        budget: int,
    ) -> Transfer:
        request, subject = self.drafted.request, self.drafted.roster.subject
        return Transfer(
            subject.dataset,
            subject.model,
            defense,
            origin,
            thefts,
            attack,
            budget,
            self.drafted.eps,
            request.images,
            request.draws,
            seeds,
            self.device,
        )
