"""Commands that ask victims."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from benchmark import api
from benchmark.backends import Workers
from benchmark.commands.options import (
    Address,
    Backend,
    Batch,
    Cache,
    Checkpoint,
    ConfigFile,
    DataRoot,
    DatasetName,
    Device,
    Devices,
    Jobs,
    ModelName,
    Out,
    Plugins,
    Scheduler,
    WeightsRoot,
)
from benchmark.config import load_config
from benchmark.devices import read_devices
from benchmark.display import curves, heading, strengths, summary
from benchmark.errors import SpecError
from benchmark.late import Late
from benchmark.request import Request, make_request
from benchmark.suites import make_requests
from benchmark.surroundings import Surroundings, choose_device

plots: Any = Late("benchmark.plots")


@dataclass(frozen=True)
class Asked:
    """What the options of `bench run` come to."""

    requests: list[Request]
    surroundings: Surroundings
    workers: Workers
    out: Path


def _read(
    suite: Annotated[str | None, typer.Argument(help="Suite, or a YAML file.")] = None,
    *,
    attacks: Annotated[str | None, typer.Option(help="For example square,nes[pairs=10].")] = None,
    defenses: Annotated[str | None, typer.Option(help="For example unig,rnd[sigma=0.05].")] = None,
    dataset: DatasetName = None,
    model: ModelName = None,
    images: Annotated[int | None, typer.Option(help="Images to attack. [default: 200]")] = None,
    queries: Annotated[int | None, typer.Option(help="Budget per image. [default: 300]")] = None,
    budgets: Annotated[str | None, typer.Option(help="Checkpoints, for example 50,100.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2. [default: linf]")] = None,
    eps: Annotated[str | None, typer.Option(help="Radii, for example 4/255,8/255.")] = None,
    run_to_budget: Annotated[
        bool | None,
        typer.Option("--run-to-budget", help="Attack on inside the ball, for distances."),
    ] = None,
    match_drop: Annotated[
        str | None, typer.Option(help="Points of clean accuracy a defense may cost: 1,2,4.")
    ] = None,
    targeted: Annotated[
        bool | None, typer.Option("--targeted", help="Aim at one label, drawn for each image.")
    ] = None,
    eot: Annotated[str | None, typer.Option(help="Queries a question, for example 1,5,10.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every stream. [default: 0]")] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="log-probabilities (default), logits, top-5, rounded-3, label, ..."),
    ] = None,
    probes: Annotated[
        str | None, typer.Option(help="Where estimators may ask: box (default), ball, free.")
    ] = None,
    votes: Annotated[int | None, typer.Option(help="Answers that verify a hit, odd.")] = None,
    draws: Annotated[int | None, typer.Option(help="Answers averaged for S3.")] = None,
    shard: Annotated[int | None, typer.Option(help="Images in a shard. [default: 100]")] = None,
    device: Device = None,
    devices: Devices = None,
    batch: Batch = None,
    jobs: Jobs = None,
    backend: Backend = "loky",
    scheduler: Scheduler = None,
    address: Address = None,
    out: Out = api.RESULTS,
    data_root: DataRoot = None,
    weights_root: WeightsRoot = None,
    checkpoint: Checkpoint = None,
    cache: Cache = None,
    config: ConfigFile = None,
    plugin: Plugins = None,
) -> Asked:
    places = load_config(data_root, weights_root, checkpoint, config, cache)
    surroundings = Surroundings(places, tuple(plugin or ()), choose_device(device or "cpu"), batch)
    surroundings.load_plugins()
    requests = make_requests(
        suite,
        attacks=attacks,
        defenses=defenses,
        dataset=dataset,
        model=model,
        images=images,
        queries=queries,
        budgets=budgets,
        norm=norm,
        eps=eps,
        run_to_budget=run_to_budget,
        match_drop=match_drop,
        targeted=targeted,
        eot=eot,
        seed=seed,
        scores=scores,
        probes=probes,
        votes=votes,
        draws=draws,
        shard=shard,
    )
    if device and devices is not None:
        raise SpecError("--device does not go with --devices: give one of them")
    lent = () if devices is None else read_devices(devices)
    workers = Workers(jobs, backend, scheduler, address, lent)
    surroundings = replace(surroundings, device=lent[0]) if lent else surroundings
    return Asked(requests, surroundings, workers, out)


def with_options_of_run(command: Callable[[Asked], None]) -> Callable[..., None]:
    """Give a command the options of `bench run`, read and checked."""

    def called(*given: Any, **named: Any) -> None:
        command(_read(*given, **named))

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = get_type_hints(_read, include_extras=True)
    vars(called)["__signature__"] = inspect.signature(_read, eval_str=True)
    return called


@with_options_of_run
def run(asked: Asked) -> None:
    """Cross attacks with defenses; what is done already is not done again."""
    given = asked.requests, asked.surroundings, asked.out, asked.workers
    for cells in api.execute_requests(*given, Console(stderr=True)):
        typer.echo(f"{heading(cells)}\n\n{summary(cells)}\n")
    typer.echo(f"Tables: {asked.out / 'cells.csv'}, shards.csv, images.parquet")


def calibrate(
    *,
    defenses: Annotated[str, typer.Option(help="For example unig,at+rnd.")],
    match_drop: Annotated[str, typer.Option(help="Points of clean accuracy to lose.")] = "1,2,4",
    dataset: DatasetName = None,
    model: ModelName = None,
    shard: Annotated[int | None, typer.Option(help="Images that coupled defenses see.")] = None,
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
    """Find the strengths at which defenses cost given drops, and draw what each strength costs."""
    request = make_request(
        attacked=False,
        defenses=defenses,
        match_drop=match_drop,
        dataset=dataset,
        model=model,
        shard=shard,
    )
    places = load_config(data_root, weights_root, checkpoint, config, cache)
    surroundings = Surroundings(places, tuple(plugin or ()), choose_device(device or "cpu"), batch)
    found = api.find_strengths(request, surroundings, out, jobs, Console(stderr=True))
    picture = out / "calibrations.svg"
    plots.draw_strengths(found, picture)
    typer.echo(f"{curves(found)}\n\n{strengths(found)}")
    typer.echo(f"\nTable: {out / 'calibrations.csv'}, curves: {picture}")
