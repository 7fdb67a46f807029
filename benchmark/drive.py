"""The loop between one attack and one oracle."""

from __future__ import annotations

from dataclasses import replace

from benchmark.entry import Choice
from benchmark.eot import PARAMETERS, Repeated
from benchmark.errors import QueryError
from benchmark.facts import AttackFacts
from benchmark.oracle import Oracle
from benchmark.rng import RowRng
from benchmark.types import Problem, Steps

_PATIENCE = 1000  # rounds without an answered query before an attack counts as stuck


def play(choice: Choice[AttackFacts], problem: Problem, rng: RowRng, oracle: Oracle) -> None:
    """Let a chosen attack loose on an oracle, its questions repeated as its `eot` says.

    Raises:
        QueryError: If it breaks a rule.
    """
    common = {name: choice.values[name] for name in PARAMETERS}
    own = {name: value for name, value in choice.values.items() if name not in common}
    posed = replace(problem, repeats=common["eot"])
    asked = Repeated(oracle, common["eot"], common["reduce"])
    drive(choice.entry.build(posed, rng, **own), asked)


def drive(steps: Steps, oracle: Oracle | Repeated) -> None:
    """Pass queries and replies until every image is finished or the attack has no more.

    Raises:
        QueryError: If the attack keeps asking about finished images only.
    """
    idle = 0
    try:
        queries = next(steps)
        while True:
            replies = oracle.ask(queries)
            if bool(oracle.finished.all()):
                return
            idle = 0 if bool(replies.answered.any()) else idle + 1
            if idle > _PATIENCE:
                waiting = int((~oracle.finished).sum())
                raise QueryError(
                    f"attack '{oracle.terms.name}' asked {idle} rounds about finished images "
                    f"only, while {waiting} images wait"
                )
            queries = steps.send(replies)
    except StopIteration:
        return
    finally:
        steps.close()
