"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="File with entries of your own; repeatable.")
]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="Data set. [default: mnist]")]
ModelName = Annotated[str | None, typer.Option("--model", help="Victim. [default: the data set's]")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ... [default: cpu]")]
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
Reference = Annotated[Path, typer.Option(help="Folder of reference results.")]
Folder = Annotated[Path, typer.Argument(help="Folder of results.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of data sets.")]
WeightsRoot = Annotated[Path | None, typer.Option(help="Folder of weights.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights of the victim.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of what was trained and calibrated.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Config file (TOML).")]
