"""The most images that a run can show to a victim that runs elsewhere, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from benchmark.catalogue import ATTACKS
from benchmark.errors import BenchError
from benchmark.spec import Look, Part, Shard
from benchmark.stack import DefenseChoice
from benchmark.targets import TRIES
from benchmark.tasks.look import TRIALS
from benchmark.types import Aim
from benchmark.victim import Remote
from benchmark.work import Costs, Work


def most_line(work: Iterable[Work], costs: Costs, remote: Remote, more: int) -> str:
    """Say the most that work can cost, `more` images for what defenses ask included."""
    images = most_images(work, costs, remote) + more
    price = f", price {images * remote.price:,.2f}" if remote.price else ""
    return (
        f"endpoint {remote.name}: at most {images:,} images{price}, verification and audits "
        "included; calibrations, looks at what they find, and shards that are run again come on top"
    )


def most_images(work: Iterable[Work], costs: Costs, remote: Remote) -> int:
    """Count the images that work can show at most; what steps ask comes on top.

    Args:
        work: Shards and looks that are to be done.
        costs: Images shown for a query behind each defense, as far as it was measured.
        remote: The victim.
    """
    total = 0.0
    for one in work:
        if isinstance(one, Look):
            draws = 1 if _steady(one.defense, remote) else one.draws
            asked = 2 * draws * one.images + TRIALS
            total += one.images + asked * costs.get(one.defense.text, 1.0)
        elif isinstance(one, tuple):
            asked = one[0].count * _of_image(one, remote)
            total += asked * costs.get(one[0].cell.defense.text, 1.0) + _starts(one[0])
    return ceil(total)


def _of_image(shards: tuple[Shard, ...], remote: Remote) -> int:
    """Answers about one image: clean, counted, and where they vary to verify and submit."""
    cell = shards[0].cell
    protocol, budget = cell.protocol, cell.threat.budget
    if _steady(cell.defense, remote):
        return 1 + budget
    audits = budget * protocol.votes + len(protocol.budgets) * protocol.draws
    return protocol.votes + budget + len(shards) * audits


def _starts(shard: Shard) -> int:
    """Images of the target's class that are tried, for an attack that starts from one."""
    cell = shard.cell
    needed: bool = ATTACKS.choose(cell.attack.text).entry.facts.starts
    return TRIES * shard.count if needed and cell.threat.aim is Aim.TARGETED else 0


def _steady(defense: Part, remote: Remote) -> bool:
    """Whether answers never vary; a defense whose strength is not known yet may vary."""
    try:
        traits = DefenseChoice.parse(defense.text).build().traits
    except BenchError:
        return False
    return remote.traits.steady and traits.steady
