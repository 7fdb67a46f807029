"""One defense, or several on top of each other: `at+rnd[sigma=0.05]`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmark import params
from benchmark.catalogue import DEFENSES
from benchmark.data import Dataset
from benchmark.defense import Defense, QueryContext
from benchmark.entry import Choice
from benchmark.errors import SpecError
from benchmark.facts import DefenseFacts, Level, Traits
from benchmark.ref import Ref
from benchmark.victim import Victim


class Stack(Defense):
    """Defenses on top of each other: each hook passes through all members, in order.

    A member that overrides `answer` stands between the hooks on images and those on logits.

    Args:
        members: At least two, at most one of which overrides `answer`.
    """

    def __init__(self, members: Sequence[Defense]) -> None:
        self._members = tuple(members)
        whole = [m for m in members if type(m).answer is not Defense.answer]
        self._whole = whole[0] if whole else None

    @property
    def traits(self) -> Traits:  # type: ignore[override]  # computed, where others declare
        """The label is kept if every member keeps it; the rest holds if any member has it."""
        each = [member.traits for member in self._members]
        return Traits(
            randomised=any(t.randomised for t in each),
            coupled=any(t.coupled for t in each),
            stateful=any(t.stateful for t in each),
            keeps_label=all(t.keeps_label for t in each),
        )

    @property
    def members(self) -> Sequence[Defense]:
        """The defenses this one is made of."""
        return self._members

    @property
    def flagged_queries(self) -> int:
        """Queries that any member took for parts of an attack."""
        return sum(member.flagged_queries for member in self._members)

    @property
    def splits(self) -> bool:
        """Some member acts on penultimate features."""
        return any(member.splits for member in self._members)

    def check(self, victim: Victim) -> None:
        """Refuse a victim that some member cannot be attached to."""
        for member in self._members:
            member.check(victim)

    def prepare(self, victim: Victim, data: Dataset) -> None:
        """Prepare every member."""
        for member in self._members:
            member.prepare(victim, data)

    def on_images(self, images: Tensor, context: QueryContext) -> Tensor:
        """Change the images, (n, C, H, W)."""
        for member in self._members:
            images = member.on_images(images, context)
        return images

    @contextmanager
    def editing(self, victim: Victim, context: QueryContext) -> Iterator[None]:
        """Change the outputs of the stages of every member."""
        with ExitStack() as open_:
            for member in self._members:
                open_.enter_context(member.editing(victim, context))
            yield

    def on_penultimate(self, features: Tensor, victim: Victim, context: QueryContext) -> Tensor:
        """Change the penultimate features, (n, d)."""
        for member in self._members:
            features = member.on_penultimate(features, victim, context)
        return features

    def on_logits(self, logits: Tensor, context: QueryContext) -> Tensor:
        """Change the logits, (n, K)."""
        for member in self._members:
            logits = member.on_logits(logits, context)
        return logits

    def answer(self, victim: Victim, images: Tensor, context: QueryContext) -> Tensor:
        """Answer queries with logits, (n, K)."""
        if self._whole is None:
            return super().answer(victim, images, context)
        images = self.on_images(images, context)
        with self.editing(victim, context):
            logits = self._whole.answer(victim, images, context)
        return self.on_logits(logits, context)


@dataclass(frozen=True)
class DefenseChoice:
    """What a user wrote as a defense, every parameter resolved.

    Attributes:
        members: The entries, from the first to act to the last.
        fixed: The strength was written out, by parameter or preset, so it is not to be matched.
    """

    members: tuple[Choice[DefenseFacts], ...]
    fixed: bool = False

    @classmethod
    def parse(cls, text: str) -> DefenseChoice:
        """Read `name[key=value]`, or several joined by "+".

        Raises:
            RegistryError: If a name or a preset is unknown.
            SpecError: If a parameter is wrong, or the members cannot stand on each other.
        """
        names = re.split(r"\+(?![^\[]*\])", text)
        members = tuple(DEFENSES.choose(name) for name in names)
        if len(members) > 1:
            _check_stack(text, members)
        choice = cls(members)
        if choice._turned is None:
            return choice
        member, ref = members[choice._turned], Ref.parse(names[choice._turned])
        preset = member.entry.facts.presets[ref.preset].values if ref.preset else {}
        return replace(choice, fixed=choice.knob in {**preset, **ref.parameters})

    def __str__(self) -> str:
        """Write the choice as tables show it."""
        return "+".join(str(member) for member in self.members)

    def spelled(self) -> str:
        """Write the choice so that it can be resolved again, with whole paths."""
        return "+".join(member.spelled() for member in self.members)

    def record(self) -> dict[str, Any]:
        """Return what identifies the choice in a stored result."""
        if len(self.members) == 1:
            return self.members[0].record()
        names = "+".join(member.entry.name for member in self.members)
        return {"name": names, "stack": [member.record() for member in self.members]}

    def build(self) -> Defense:
        """Make a new instance."""
        built = [member.entry.build(**member.values) for member in self.members]
        return Stack(built) if len(built) > 1 else built[0]

    @property
    def knob(self) -> str:
        """The parameter that calibration turns, of the last member that has one; or empty."""
        place = self._turned
        return self.members[place].entry.facts.strength if place is not None else ""

    @property
    def strength(self) -> float | None:
        """The value of the knob."""
        place = self._turned
        return None if place is None else float(self.members[place].values[self.knob])

    @property
    def limit(self) -> float:
        """Largest value of the knob that its parameter allows."""
        place = self._turned
        if place is None:
            return 0.0
        schema = self.members[place].entry.parameters.model_fields[self.knob]
        bounds = [float(m.le) for m in schema.metadata if getattr(m, "le", None) is not None]
        return min(bounds, default=float("inf"))

    def at(self, strength: float) -> DefenseChoice:
        """Return the same defense with its knob turned to a value."""
        place = self._turned
        if place is None:
            raise SpecError(f"defense '{self}' has no strength to turn")
        member = self.members[place]
        given = {**member.values, self.knob: strength}
        who = f"defense '{member.entry.name}'"
        turned = replace(member, values=params.resolve(member.entry.parameters, given, who))
        return DefenseChoice((*self.members[:place], turned, *self.members[place + 1 :]), True)

    @property
    def _turned(self) -> int | None:
        knobs = [i for i, member in enumerate(self.members) if member.entry.facts.strength]
        return knobs[-1] if knobs else None


def undefended() -> DefenseChoice:
    """The bare victim: the row that stands beside every defense."""
    return DefenseChoice.parse(next(e.name for e in DEFENSES if e.facts.level is Level.NOWHERE))


def _check_stack(text: str, members: Sequence[Choice[DefenseFacts]]) -> None:
    names = [member.entry.name for member in members]
    levels = [member.entry.facts.level for member in members]
    if Level.NOWHERE in levels:
        raise SpecError(f"'{text}': '{names[levels.index(Level.NOWHERE)]}' adds nothing to a stack")
    if len(set(names)) < len(names):
        raise SpecError(f"'{text}' names a defense twice")
    whole = [n for n, level in zip(names, levels, strict=True) if level is Level.ANSWER]
    split = [n for n, level in zip(names, levels, strict=True) if level is Level.PENULTIMATE]
    if len(whole) > 1 or (whole and split):
        together = " and ".join(f"'{name}'" for name in (*whole, *split))
        raise SpecError(f"'{text}': {together} both answer by themselves and cannot be stacked")
