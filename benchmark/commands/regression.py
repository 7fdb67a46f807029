"""Commands about reported numbers: whether they hold, and new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark import acceptance, rerun
from benchmark.backends import Workers
from benchmark.commands.options import (
    Cache,
    ConfigFile,
    DataRoot,
    Jobs,
    Plugins,
    Reference,
    WeightsRoot,
)
from benchmark.config import load_config
from benchmark.surroundings import Surroundings

MOVED = 3  # exit code


def regress(
    suite: Annotated[str, typer.Argument(help="Suite with a reference, or a YAML file.")] = "smoke",
    *,
    reference: Reference = Path("results/reference"),
    out: Annotated[
        Path | None, typer.Option(help="New folder that keeps the rerun. [default: none is kept]")
    ] = None,
    jobs: Jobs = None,
    data_root: DataRoot = None,
    weights_root: WeightsRoot = None,
    cache: Cache = None,
    config: ConfigFile = None,
    plugin: Plugins = None,
) -> None:
    """Run a suite again and compare it with its reference; exit code 3 if a number moved."""
    places = load_config(data_root, weights_root, None, config, cache)
    surroundings = Surroundings(places, tuple(plugin or ()))
    surroundings.load_plugins()
    verdict = rerun.regress(suite, reference, surroundings, Workers(jobs), out)
    typer.echo("\n".join([verdict.how, *(verdict.moved or [verdict.still])]))
    if verdict.moved:
        raise typer.Exit(MOVED)


def accept(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    name: Annotated[str, typer.Argument(help="Reference folder, for example smoke.")],
    *,
    why: Annotated[str, typer.Option(help="Reason, kept in accepted.csv.")],
    images: Annotated[
        bool, typer.Option("--images", help="Take images.parquet, which `bench regress` needs.")
    ] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Take defense_timings.csv, which leaderboards show.")
    ] = False,
    joins: Annotated[
        bool, typer.Option("--join", help="Add to what the folder has, instead of replacing it.")
    ] = False,
    reference: Reference = Path("results/reference"),
) -> None:
    """Take the tables of a run among the reference results, and record why."""
    more = (*["images.parquet"] * images, *["defense_timings.csv"] * timings)
    row = acceptance.accept(run, name, why, reference, more, joins=joins)
    typer.echo(
        f"{reference / name}: {row.added} cells added, {row.moved} moved, {row.removed} removed, "
        f"{row.same} as they were; recorded in {reference / acceptance.LOG}"
    )
