"""Commands about reference results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.commands.options import Reference
from benchmark.late import Late

boards: Any = Late("benchmark.leaderboard")  # it draws


def leaderboard(
    *,
    reference: Reference = Path("results/reference"),
    out: Annotated[Path, typer.Option(help="Folder of leaderboards.")] = Path("leaderboards"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; compare.")] = False,
) -> None:
    """Make the leaderboards from reference results."""
    files = boards.build(reference)
    if not check:
        boards.write(files, out)
        typer.echo(f"{len(files)} files: {out / 'README.md'}")
        return
    lines = boards.differences(files, out)
    typer.echo("\n".join(lines) or "leaderboards are those of the reference results")
    if lines:
        raise typer.Exit(1)
