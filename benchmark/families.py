"""Which defenses are compared with each other, and against which attacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from benchmark.ref import Ref

KEEPS_LABEL = "keeps_label"


def families(
    drops: Mapping[str, Collection[str]], free: Collection[str]
) -> dict[str | None, list[str]]:
    """Group the defenses of one setting by the drop that they were set to cost.

    Args:
        drops: For each defense the points of clean accuracy its strength was set for, as text;
            empty for a strength as written.
        free: Defenses that cost nothing by construction: they belong beside every drop.

    Returns:
        Sorted defenses for each drop, ascending; under None, last, those with a strength as
        written, if there are any besides the free ones or no drop was matched.
    """
    marks = sorted({mark for some in drops.values() for mark in some}, key=float)
    found: dict[str | None, list[str]] = {
        mark: sorted(name for name, some in drops.items() if mark in some or name in free)
        for mark in marks
    }
    written = sorted(name for name, some in drops.items() if not some)
    if not marks or not set(written) <= set(free):
        found[None] = written
    return found


def lacking(attacks: Collection[str], every: Collection[str]) -> list[str]:
    """Attacks of a family that one of its defenses was not run against.

    Repeated questions (EOT) are not asked where answers never vary, so a defense that has none
    of them lacks none.

    Args:
        attacks: Attacks that the defense was run against.
        every: Attacks that any defense of the family was run against.
    """
    steady = not any(map(repeats, attacks))
    return sorted(name for name in set(every) - set(attacks) if not (steady and repeats(name)))


def repeats(attack: str) -> bool:
    """Whether an attack, as tables name it, asks each question more than once."""
    return Ref.parse(attack).parameters.get("eot", "1") != "1"
