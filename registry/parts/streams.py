"""Streams of random numbers for defenses that draw many times for one query."""

from __future__ import annotations

from benchmark.defense import QueryContext
from benchmark.rng import RowRng, seed_from


def query_streams(context: QueryContext) -> RowRng:
    """Open a stream of its own for each query of a call, from one draw of its owner's.

    What a query draws then does not depend on which other queries of its owner are in the call.

    Returns:
        Streams with one row for each query.
    """
    drawn = context.rng.cube(context.rows, (8,)).tolist()
    return RowRng([seed_from(*numbers) for numbers in drawn], context.rng.device)
