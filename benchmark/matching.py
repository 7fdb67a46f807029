"""The strengths at which a defense costs given drops, by what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.calibration import Curve, Match, Point
from benchmark.data import Split
from benchmark.measuring import DRAWS, Points, Subject, known_split, looked_at, read, search
from benchmark.stack import DefenseChoice
from benchmark.surroundings import Surroundings

_BENT = 2.0  # standard errors that a curve may leave the nearest monotone one by
_MISSED = 0.0025  # so far from the target, a drop was not found


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
    draws: int = DRAWS

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


class _UnmeasuredError(Exception):
    """A strength is needed that was not measured."""


def known_matches(
    defense: DefenseChoice,
    targets: Sequence[float],
    subject: Subject,
    surroundings: Surroundings,
    fresh: Mapping[str, Points],
) -> Calibration | None:
    """Find the strengths of a defense by what was measured already.

    Args:
        defense: The defense; without a strength, or with one written out, it gets no match.
        targets: Drops of clean accuracy, fractions, > 0.
        subject: Data and victim.
        surroundings: Where.
        fresh: What searches of this run measured, by their files.

    Returns:
        None if something has to be measured first.
    """
    split = known_split(subject, surroundings)
    if split is None:
        return None
    count = looked_at(subject, split, surroundings)
    if not searched(defense):
        return Calibration(defense, (), (), split, count)
    file = search(defense, targets, subject, split, surroundings).file
    # Not from the cache alone, which another run may have written meanwhile.
    known = {**read(file, surroundings), **fresh.get(file, {})}

    def refuse(_strength: float) -> Point:
        raise _UnmeasuredError

    curve = Curve(refuse, defense.strength or 0.0, defense.limit, known)
    try:
        matches = tuple(curve.match(target) for target in targets)
    except _UnmeasuredError:
        return None
    points = tuple(curve.known[strength] for strength in sorted(curve.known))
    return Calibration(defense, points, matches, split, count)


def searched(defense: DefenseChoice) -> bool:
    """Tell whether a defense has a strength that is not written out."""
    return bool(defense.knob) and not defense.fixed
