"""The loop between one attack and one oracle."""

from __future__ import annotations

from benchmark.errors import QueryError
from benchmark.oracle import Oracle
from benchmark.types import Steps

_PATIENCE = 1000  # rounds without an answered query before an attack counts as stuck


def drive(steps: Steps, oracle: Oracle) -> None:
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
