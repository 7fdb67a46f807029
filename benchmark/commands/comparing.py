"""Commands that hold results against those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark import api
from benchmark.commands.options import Out
from benchmark.side_by_side import side_by_side
from benchmark.stealing.reported import steals_side_by_side
from benchmark.suites import STEAL, task_of


def compare(
    suite: Annotated[str, typer.Argument(help="Suite, or a YAML file, with a field `reported`.")],
    *,
    out: Out = api.RESULTS,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of reference results: compare its SUITE instead.")
    ] = None,
) -> None:
    """Print what a paper reports next to what was measured, and what differs."""
    folder = out if reference is None else reference / Path(suite).stem
    lay_out = steals_side_by_side if task_of(suite) == STEAL else side_by_side
    typer.echo(lay_out(suite, folder))
