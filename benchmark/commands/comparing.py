"""Commands that hold results against those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark import api
from benchmark.commands.options import Out
from benchmark.side_by_side import side_by_side


def compare(
    suite: Annotated[str, typer.Argument(help="Suite, or a YAML file, with a field `reported`.")],
    *,
    out: Out = api.RESULTS,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of reference results: compare its SUITE instead.")
    ] = None,
) -> None:
    """Print what a paper reports next to what was measured, and what differs."""
    typer.echo(side_by_side(suite, out if reference is None else reference / Path(suite).stem))
