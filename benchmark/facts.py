"""What entries declare about themselves: typed, and each fact is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from benchmark.types import Access, Aim, Goal, Norm, Probes


@dataclass(frozen=True)
class Source:
    """Where a method comes from.

    Attributes:
        paper: Authors and title.
        url: Address of the paper.
        year: Year of publication.
        code: Address of the authors' code, if any.
        differences: Every known deviation from the paper or its code; empty means none known.
    """

    paper: str
    url: str
    year: int
    code: str = ""
    differences: tuple[str, ...] = ()


class Level(StrEnum):
    """Where a defense acts: the one hook that it overrides."""

    NOWHERE = "nowhere"
    WEIGHTS = "weights"  # it is trained, and answers like any victim
    IMAGES = "images"
    FEATURES = "features"
    PENULTIMATE = "penultimate"
    LOGITS = "logits"
    ANSWER = "answer"


@dataclass(frozen=True)
class Preset:
    """Settings of a paper or code base, so that a number is compared like with like.

    Attributes:
        origin: Whose settings: paper or code, data set.
        values: Parameters that differ from our defaults.
        norm: Norm they are meant for; None for any.
        note: What of the original no parameter reproduces.
    """

    origin: str
    values: Mapping[str, object]
    norm: Norm | None = None
    note: str = ""


@dataclass(frozen=True)
class AttackFacts:
    """Facts of an attack.

    Attributes:
        source: Where it comes from.
        access: The least it has to see.
        norms: Norms it supports.
        randomised: Two seeds give different questions.
        goal: What it looks for.
        probes: It asks on purpose outside the ball, as the probe policy allows.
        aims: What it can aim at.
        starts: Aimed at a target it needs an image of its class.
        presets: Settings of papers and code bases, by name.
        examples: Parameters under which the contract tests it besides the defaults, for
            example "[basis=pixel]".
        free: Its questions may lie anywhere: code of others, which nobody here can correct. Those
            outside ball or box are charged and never count as hits.
        argument: What follows the colon in the name of a family of attacks, empty of others.
        members: Facts of each attack of a family, by argument.
        version: Raised when its behaviour changes; part of every result's key.
    """

    source: Source
    access: Access
    norms: tuple[Norm, ...]
    randomised: bool
    goal: Goal = Goal.IN_BALL
    probes: bool = False
    aims: tuple[Aim, ...] = tuple(Aim)
    starts: bool = False
    presets: Mapping[str, Preset] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    free: bool = False
    argument: str = ""
    members: Mapping[str, AttackFacts] = field(default_factory=dict)
    version: int = 1

    def region(self, probes: Probes) -> Probes:
        """Where its questions may lie under a probe policy."""
        if self.free:
            return Probes.FREE
        if self.goal is not Goal.IN_BALL:
            return Probes.BOX
        return probes if self.probes else Probes.BALL


@dataclass(frozen=True)
class Traits:
    """How a defense behaves with the parameters it was given.

    Attributes:
        randomised: Two identical queries may get different answers.
        coupled: An answer may depend on the other queries of the same call.
        stateful: An answer may depend on earlier queries of the same owner.
        keeps_label: The predicted label is always the undefended victim's.
    """

    randomised: bool = False
    coupled: bool = False
    stateful: bool = False
    keeps_label: bool = False

    @property
    def steady(self) -> bool:
        """Identical queries always get identical answers, whatever else is asked."""
        return not (self.randomised or self.coupled or self.stateful)


@dataclass(frozen=True)
class DefenseFacts:
    """Facts of a defense.

    Attributes:
        source: Where it comes from.
        level: Where it acts.
        traits: How it behaves with its default parameters.
        strength: Name of the parameter that calibration turns (0 = vanilla), empty if none.
        presets: Settings of papers and code bases, by name.
        examples: Parameters under which the contract tests it besides the defaults, for
            example "[variant=official]".
        version: Raised when its behaviour changes; part of every result's key.
    """

    source: Source
    level: Level
    traits: Traits = field(default_factory=Traits)
    strength: str = ""
    presets: Mapping[str, Preset] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    version: int = 1


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a victim.

    Attributes:
        source: Where it comes from.
        argument: What follows the colon in its name, empty if nothing does.
        weights: File looked for in the weights folder when no checkpoint is given.
        version: Raised when its behaviour changes; part of every result's key.
    """

    source: Source
    argument: str = ""
    weights: str = ""
    version: int = 1


@dataclass(frozen=True)
class DatasetFacts:
    """Facts of a data set.

    Attributes:
        source: Where it comes from.
        argument: What follows the colon in its name, empty if nothing does.
        model: Victim attacked when none is named, empty if there is no usual one.
        eps: Usual radius for each norm.
        version: Raised when its behaviour changes; part of every result's key.
    """

    source: Source
    argument: str = ""
    model: str = ""
    eps: dict[Norm, float] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True)
class StealerFacts:
    """Facts of a stealing attack.

    Attributes:
        source: Where it comes from.
        asks: It asks the victim; one that does not is a line of reference.
        planned: Its schedule is stretched to the budget: at earlier checkpoints it is on the way.
        presets: Settings of papers and code bases, by name.
        examples: Parameters under which the contract tests it, quick ones such as "[epochs=1]"; the
            defaults if there are none.
        version: Raised when its behaviour changes; part of every result's key.
    """

    source: Source
    asks: bool = True
    planned: bool = False
    presets: Mapping[str, Preset] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    version: int = 1
