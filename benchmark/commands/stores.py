"""Commands about folders of results."""

from __future__ import annotations

import typer

from benchmark import api, inspection, store_check
from benchmark.commands.options import Folder, Out


def status(out: Out = api.RESULTS) -> None:
    """Tell what a folder of results holds: done, missing, damaged, failed."""
    typer.echo(inspection.status(out))


def collect(out: Folder = api.RESULTS) -> None:
    """Rebuild the tables of a folder from what is there, also while a run goes on."""
    typer.echo(inspection.collect(out))


def verify(out: Folder = api.RESULTS) -> None:
    """Check files, keys and tables of a folder and of all folders in it."""
    found = store_check.verify(out)
    if found:
        typer.echo("\n".join(found))
        raise typer.Exit(1)
    typer.echo("nothing wrong found")
