"""Commands about what is registered."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from benchmark import inspection
from benchmark.commands.options import ConfigFile, DataRoot, Plugins, WeightsRoot
from benchmark.config import load_config
from benchmark.display import listing
from benchmark.errors import BenchError


def list_(
    kind: Annotated[
        str, typer.Argument(help="attacks, defenses, models, datasets, stealing or suites.")
    ],
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


def show(name: str, *, plugin: Plugins = None) -> None:
    """Show facts, parameters and source of an entry or suite."""
    typer.echo(inspection.describe(name, plugin or ()))


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
