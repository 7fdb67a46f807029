"""The decorators that put an entry into the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from benchmark.catalogue import ATTACKS, DATASETS, DEFENSES, MODELS, STEALERS
from benchmark.defense import Defense
from benchmark.entry import Member
from benchmark.errors import RegistryError
from benchmark.facts import (
    AttackFacts,
    DatasetFacts,
    DefenseFacts,
    Level,
    ModelFacts,
    Preset,
    Source,
    StealerFacts,
    Traits,
)
from benchmark.stealing.stealer import Stealer
from benchmark.types import Access, Aim, Goal, Norm

__all__ = [
    "AttackFacts",
    "Level",
    "Member",
    "Preset",
    "Source",
    "Traits",
    "attack",
    "dataset",
    "defense",
    "family",
    "model",
    "stealer",
]

C = TypeVar("C", bound=Callable[..., Any])
D = TypeVar("D", bound=type[Defense])
S = TypeVar("S", bound=type[Stealer])


def attack(  # noqa: PLR0913 - one argument a fact
    *,
    source: Source,
    access: Access,
    norms: tuple[Norm, ...],
    randomised: bool,
    goal: Goal = Goal.IN_BALL,
    probes: bool = False,
    aims: tuple[Aim, ...] = tuple(Aim),
    starts: bool = False,
    presets: Mapping[str, Preset] | None = None,
    examples: tuple[str, ...] = (),
    version: int = 1,
) -> Callable[[C], C]:
    """Register a generator function `name(problem, rng, *, parameters) -> Steps`.

    The arguments are the fields of `AttackFacts`. The file is named like the function.
    """
    facts = AttackFacts(
        source=source,
        access=access,
        norms=norms,
        randomised=randomised,
        goal=goal,
        probes=probes,
        aims=aims,
        starts=starts,
        presets=presets or {},
        examples=examples,
        version=version,
    )

    def register(build: C) -> C:
        _same_name("attack", build.__name__, build.__module__)
        ATTACKS.add(build.__name__, build, facts)
        return build

    return register


def family(
    *, source: Source, argument: str, members: Mapping[str, AttackFacts]
) -> Callable[[C], C]:
    """Register a function `name(argument) -> Member`: attacks of one library, `art:SquareAttack`.

    Args:
        source: Where the library comes from.
        argument: What follows the colon, in capitals.
        members: Facts of each attack, by what follows the colon.
    """
    access, norms = Access.SCORES, tuple(Norm)  # the most that one of them may need
    facts = AttackFacts(source, access, norms, True, argument=argument, members=members)

    def register(build: C) -> C:
        _same_name("attack", build.__name__, build.__module__)
        ATTACKS.add(build.__name__, build, facts)
        return build

    return register


def defense(  # noqa: PLR0913 - one argument a fact
    *,
    source: Source,
    level: Level,
    traits: Traits,
    strength: str = "",
    presets: Mapping[str, Preset] | None = None,
    examples: tuple[str, ...] = (),
    version: int = 1,
) -> Callable[[D], D]:
    """Register a subclass of `Defense`; its name is the name of its file.

    The arguments are the fields of `DefenseFacts`.

    Raises:
        RegistryError: If the class is no `Defense` or `strength` is none of its parameters.
    """
    facts = DefenseFacts(source, level, traits, strength, presets or {}, examples, version)

    def register(build: D) -> D:
        if not issubclass(build, Defense):
            raise RegistryError(f"'{build.__name__}' must inherit benchmark.defense.Defense")
        name = build.__module__.rpartition(".")[2].removeprefix("querybench_plugin_")
        if level is Level.NOWHERE and any(e.facts.level is Level.NOWHERE for e in DEFENSES):
            raise RegistryError(f"defense '{name}': level 'nowhere' is that of the bare victim")
        DEFENSES.add(name, build, facts)
        if strength and strength not in DEFENSES.get(name).parameters.model_fields:
            DEFENSES.remove(name)
            raise RegistryError(f"defense '{name}': strength '{strength}' is no parameter of it")
        build.traits = traits
        return build

    return register


def model(
    *, source: Source, argument: str = "", weights: str = "", version: int = 1
) -> Callable[[C], C]:
    """Register a function `name(request: ModelRequest, *, parameters) -> Victim`.

    The arguments are the fields of `ModelFacts`.
    """
    facts = ModelFacts(source, argument, weights, version)

    def register(build: C) -> C:
        MODELS.add(build.__name__, build, facts)
        return build

    return register


def dataset(
    *,
    source: Source,
    argument: str = "",
    model: str = "",
    eps: dict[Norm, float] | None = None,
    version: int = 1,
) -> Callable[[C], C]:
    """Register a function `name(request: DataRequest, *, parameters) -> Dataset`.

    The arguments are the fields of `DatasetFacts`.
    """
    facts = DatasetFacts(source, argument, model, eps or {}, version)

    def register(build: C) -> C:
        DATASETS.add(build.__name__, build, facts)
        return build

    return register


def stealer(
    *,
    source: Source,
    asks: bool = True,
    planned: bool = False,
    presets: Mapping[str, Preset] | None = None,
    examples: tuple[str, ...] = (),
    version: int = 1,
) -> Callable[[S], S]:
    """Register a subclass of `Stealer`; its name is the name of its file.

    The arguments are the fields of `StealerFacts`.

    Raises:
        RegistryError: If the class is no `Stealer`.
    """
    facts = StealerFacts(source, asks, planned, presets or {}, examples, version)

    def register(build: S) -> S:
        if not issubclass(build, Stealer):
            raise RegistryError(
                f"'{build.__name__}' must inherit benchmark.stealing.stealer.Stealer"
            )
        name = build.__module__.rpartition(".")[2].removeprefix("querybench_plugin_")
        STEALERS.add(name, build, facts)
        return build

    return register


def _same_name(kind: str, name: str, module: str) -> None:
    stem = module.rpartition(".")[2].removeprefix("querybench_plugin_")
    if stem not in {name, "__main__"}:
        raise RegistryError(
            f"{kind} '{name}' is defined in module '{stem}'. "
            f"Name the file '{name}.py', or rename the function."
        )
