"""The command `bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmark import __version__, api, inspection, store_check
from benchmark import leaderboard as boards
from benchmark.backends import Workers
from benchmark.config import load_config
from benchmark.devices import read_devices
from benchmark.display import curves, heading, listing, strengths, summary
from benchmark.errors import BenchError, SpecError
from benchmark.plots import draw_strengths
from benchmark.request import make_request
from benchmark.suites import make_requests
from benchmark.surroundings import Surroundings

app = typer.Typer(
    name="bench",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Query-based black-box attacks against defenses, at matched clean accuracy.",
)

# Newer versions of typer carry their own click: its base of all usage errors, by way of a child.
_UsageError: type[BaseException] = typer.BadParameter.__mro__[2]

Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="File with entries of your own; repeatable.")
]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="Data set. [default: mnist]")]
ModelName = Annotated[str | None, typer.Option("--model", help="Victim. [default: the data set's]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [default: cpu]")]
Devices = Annotated[
    str | None, typer.Option(help="A list for one job each: cuda:0,cuda:1; repeat one for more.")
]
Backend = Annotated[str, typer.Option(help="loky (processes), threading, dask or ray.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a Dask scheduler: tcp://...")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Images in a forward pass.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Processes of one thread. [default: one a core]")
]
Out = Annotated[Path, typer.Option(help="Folder of results.")]
Folder = Annotated[Path, typer.Argument(help="Folder of results.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of data sets.")]
WeightsRoot = Annotated[Path | None, typer.Option(help="Folder of weights.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights of the victim.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of what was trained and calibrated.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Config file (TOML).")]


@app.callback(invoke_without_command=True)
def about(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Measure defenses against query-based black-box attacks."""
    if version:
        typer.echo(f"querybench {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
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
) -> None:
    """Cross attacks with defenses; what is done already is not done again."""
    places = load_config(data_root, weights_root, checkpoint, config, cache)
    surroundings = Surroundings(places, tuple(plugin or ()), device or "cpu", batch)
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
    for cells in api.execute_requests(requests, surroundings, out, workers, Console(stderr=True)):
        typer.echo(f"{heading(cells)}\n\n{summary(cells)}\n")
    typer.echo(f"Tables: {out / 'cells.csv'}, shards.csv, images.parquet")


@app.command()
def calibrate(
    *,
    defenses: Annotated[str, typer.Option(help="For example unig,at+rnd.")],
    match_drop: Annotated[str, typer.Option(help="Points of clean accuracy to lose.")] = "1,2,4",
    dataset: DatasetName = None,
    model: ModelName = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise. [default: 0]")] = None,
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
        seed=seed,
        shard=shard,
    )
    places = load_config(data_root, weights_root, checkpoint, config, cache)
    surroundings = Surroundings(places, tuple(plugin or ()), device or "cpu", batch)
    found = api.find_strengths(request, surroundings, out, jobs, Console(stderr=True))
    picture = out / "calibrations.svg"
    draw_strengths(found, picture)
    typer.echo(f"{curves(found)}\n\n{strengths(found)}")
    typer.echo(f"\nTable: {out / 'calibrations.csv'}, curves: {picture}")


@app.command()
def leaderboard(
    *,
    reference: Annotated[Path, typer.Option(help="Folder of reference results.")] = Path(
        "results/reference"
    ),
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


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="attacks, defenses, models, datasets or suites.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    plugin: Plugins = None,
) -> None:
    """List what is registered."""
    rows = inspection.rows(kind, plugin or ())
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        short = [{"name": row["name"], "what": row["what"]} for row in rows]
        typer.echo(listing(short))


@app.command()
def show(name: str, *, plugin: Plugins = None) -> None:
    """Show facts, parameters and source of an entry or suite."""
    typer.echo(inspection.describe(name, plugin or ()))


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Entry, with parameters, or a plug-in file.")],
    *,
    data_root: DataRoot = None,
    weights_root: WeightsRoot = None,
    config: ConfigFile = None,
    plugin: Plugins = None,
) -> None:
    """Run the contract suite on an entry, ours or yours."""
    places = load_config(data_root, weights_root, None, config)
    verdicts = inspection.check(name, plugin or (), places)
    typer.echo(listing(verdicts))
    failed = sum(row["result"] == "failed" for row in verdicts)
    if failed:
        raise BenchError(f"{failed} checks failed")
    if all(row["result"] == "skipped" for row in verdicts):
        raise BenchError(f"no check could run: {verdicts[0]['detail']}")


@app.command()
def status(out: Out = api.RESULTS) -> None:
    """Tell what a folder of results holds: done, missing, damaged, failed."""
    typer.echo(inspection.status(out))


@app.command()
def collect(out: Folder = api.RESULTS) -> None:
    """Rebuild the tables of a folder from what is there, also while a run goes on."""
    typer.echo(inspection.collect(out))


@app.command()
def verify(out: Folder = api.RESULTS) -> None:
    """Check files, keys and tables of a folder and of all folders in it."""
    found = store_check.verify(out)
    if found:
        typer.echo("\n".join(found))
        raise typer.Exit(1)
    typer.echo("nothing wrong found")


def main() -> None:
    """Run the command; mistakes in the input are one line and exit code 2."""
    sys.exit(_guarded())


def _guarded() -> int:
    try:
        outcome: Any = app(standalone_mode=False)
    except api.ShardsFailedError as error:
        return _say(str(error), 2 if error.only_input else 1)
    except BenchError as error:
        return _say(str(error), 2)
    except _UsageError as error:
        return _say(getattr(error, "format_message", error.__str__)(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; finished shards are kept, the same command goes on", 130)
    return outcome if isinstance(outcome, int) else 0


def _say(message: str, code: int) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
