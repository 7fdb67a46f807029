"""What a run comes to, before anything runs."""

from __future__ import annotations

import typer

from benchmark.commands.running import Asked, with_options_of_run
from benchmark.forecast import forecast, page


@with_options_of_run
def plan(asked: Asked) -> None:
    """Tell what a run comes to: cells, shards, queries, time; nothing is run or trained."""
    found = forecast(asked.requests, asked.surroundings, asked.out)
    typer.echo(page(found, asked.workers, asked.surroundings))
