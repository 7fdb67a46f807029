"""The command that puts a defended victim on the network."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from benchmark.commands.options import (
    Batch,
    Cache,
    Checkpoint,
    ConfigFile,
    DataRoot,
    DatasetName,
    Device,
    ModelName,
    Plugins,
    WeightsRoot,
)
from benchmark.config import load_config
from benchmark.extras import load_extra
from benchmark.request import make_request
from benchmark.surroundings import Surroundings, choose_device


def serve(
    *,
    model: ModelName = None,
    defense: Annotated[str, typer.Option(help="For example rnd[sigma=0.02].")] = "none",
    dataset: DatasetName = None,
    scores: Annotated[
        str | None, typer.Option(help="What answers show: log-probabilities (default), label, ...")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any.")] = 8000,
    max_images: Annotated[int, typer.Option(min=1, max=10_000, help="Images in a request.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Seed of every stream. [default: 0]")] = None,
    device: Device = None,
    batch: Batch = None,
    data_root: DataRoot = None,
    weights_root: WeightsRoot = None,
    checkpoint: Checkpoint = None,
    cache: Cache = None,
    config: ConfigFile = None,
    plugin: Plugins = None,
) -> None:
    """Answer clients over HTTP from a defended victim, until Ctrl-C (docs/endpoints.md)."""
    for package in ("starlette", "uvicorn"):
        load_extra(package, "serve", "bench serve")
    places = load_config(data_root, weights_root, checkpoint, config, cache)
    where = Surroundings(places, tuple(plugin or ()), choose_device(device or "cpu"), batch)
    where.load_plugins()
    request = make_request(
        attacked=False, model=model, dataset=dataset, scores=scores, seed=seed, defenses=defense
    )
    _serve(request, where, (host, port), max_images)


def _serve(request: Any, where: Surroundings, at: tuple[str, int], most: int) -> None:
    server: Any = importlib.import_module("benchmark.serving.server")
    opened = importlib.import_module("benchmark.serving.opening").opened
    service, about = opened(request, where, most)
    with server.listening(*at) as door:
        typer.echo(f"listening on {server.address(door)}: {about}; stop with Ctrl-C")
        server.run(service.application(), door)
    counts = service.count()
    service.close()
    clients = "1 client" if len(counts["clients"]) == 1 else f"{len(counts['clients'])} clients"
    typer.echo(f"answered {counts['answered']:,} images to {clients}")
