"""The command that steals victims."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from benchmark import api
from benchmark.backends import Workers
from benchmark.commands.options import (
    Batch,
    Cache,
    Checkpoint,
    ConfigFile,
    DataRoot,
    DatasetName,
    Device,
    Jobs,
    ModelName,
    Out,
    Plugins,
    WeightsRoot,
)
from benchmark.config import load_config
from benchmark.stealing.api import execute_steals
from benchmark.stealing.display import heading, summary
from benchmark.stealing.suites import make_steals
from benchmark.stealing.tables import NAME
from benchmark.surroundings import Surroundings, choose_device


def steal(
    suite: Annotated[str | None, typer.Argument(help="Suite, or a YAML file.")] = None,
    *,
    attacks: Annotated[
        str | None, typer.Option(help="For example knockoff,maze[directions=5].")
    ] = None,
    defenses: Annotated[str | None, typer.Option(help="For example unig,rnd[sigma=0.05].")] = None,
    dataset: DatasetName = None,
    model: ModelName = None,
    pool: Annotated[
        str | None, typer.Option(help="Data set the attacker has. [default: the victim's]")
    ] = None,
    pool_images: Annotated[
        int | None, typer.Option(help="How many of its images. [default: split train]")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Budget of a theft. [default: 5000]")] = None,
    budgets: Annotated[str | None, typer.Option(help="Checkpoints, for example 500,2000.")] = None,
    seeds: Annotated[str | None, typer.Option(help="A theft for each. [default: 0,1,2]")] = None,
    images: Annotated[
        int | None, typer.Option(help="Images to transfer to. [default: 1000]")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radius (linf), for example 8/255.")] = None,
    match_drop: Annotated[
        str | None, typer.Option(help="Points of clean accuracy a defense may cost: 1,2,4.")
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="log-probabilities (default), top-5, rounded-3, label, ...")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Answers averaged for S3.")] = None,
    device: Device = None,
    batch: Batch = None,
    jobs: Jobs = None,
    out: Out = api.RESULTS,
    data_root: DataRoot = None,
    weights_root: WeightsRoot = None,
    checkpoint: Checkpoint = None,
    cache: Cache = None,
    config: ConfigFile = None,
    plugin: Plugins = None,
) -> None:
    """Steal defended victims by their answers, and attack them by way of the clones."""
    places = load_config(data_root, weights_root, checkpoint, config, cache)
    surroundings = Surroundings(places, tuple(plugin or ()), choose_device(device or "cpu"), batch)
    surroundings.load_plugins()
    requests = make_steals(
        suite,
        attacks=attacks,
        defenses=defenses,
        dataset=dataset,
        model=model,
        pool=pool,
        pool_images=pool_images,
        queries=queries,
        budgets=budgets,
        seeds=seeds,
        images=images,
        eps=eps,
        match_drop=match_drop,
        scores=scores,
        draws=draws,
    )
    given = requests, surroundings, out, Workers(jobs), Console(stderr=True)
    for rows in execute_steals(*given):
        typer.echo(f"{heading(rows)}\n\n{summary(rows)}\n")
    typer.echo(f"Table: {out / NAME}")
