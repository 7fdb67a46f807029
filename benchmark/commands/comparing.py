"""Commands that hold results against those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark import api
from benchmark.commands.options import Out
from benchmark.side_by_side import side_by_side
from benchmark.stealing.reported import steals_side_by_side
from benchmark.suites import STEAL, load_suite


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
    stolen = load_suite(suite).data.get("task") == STEAL
    typer.echo((steals_side_by_side if stolen else side_by_side)(suite, folder))
