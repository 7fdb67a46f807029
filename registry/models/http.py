"""A classifier that runs elsewhere: any endpoint that keeps the contract of docs/endpoints.md."""

from __future__ import annotations

import hashlib

from benchmark.endpoints import Endpoint, find_endpoint
from benchmark.errors import SpecError
from benchmark.facts import Traits
from benchmark.registry import Source, model
from benchmark.serving.client import Caller, Line
from benchmark.serving.pace import Pace
from benchmark.victim import ModelRequest, Remote, Victim


@model(
    source=Source(paper="the endpoint's owner", url="", year=2026),
    argument="NAME",
)
def http(request: ModelRequest) -> Victim:
    """Endpoint NAME of the config file, or a URL: `http:shop`, `http:http://127.0.0.1:8000`."""
    endpoint = find_endpoint(request.argument, request.config.endpoints)
    if request.checkpoint is not None:
        raise SpecError(f"{endpoint} has weights of its own: leave --checkpoint out")
    line = Line(endpoint, _pace(endpoint, request))
    about = line.about
    if about.num_classes != request.num_classes or about.shape != request.image_shape:
        own, wanted = (_size(shape) for shape in (about.shape, request.image_shape))
        raise SpecError(
            f"{endpoint} tells {about.num_classes} classes of images of {own}, the data set has "
            f"{request.num_classes} classes and images of {wanted}"
        )
    traits = Traits(randomised=about.randomised, stateful=about.stateful)
    remote = Remote(about.name, about.scores, traits, endpoint.price, endpoint.rate)
    channels = about.shape[0]
    zero, one = (0.0,) * channels, (1.0,) * channels
    return Victim(Caller(line), mean=zero, std=one, num_classes=about.num_classes, remote=remote)


def _pace(endpoint: Endpoint, request: ModelRequest) -> Pace | None:
    if endpoint.rate is None:
        return None
    name = hashlib.sha256(endpoint.url.encode()).hexdigest()[:16]
    return Pace(request.config.cache_folder / "endpoints" / name, endpoint.rate)


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(str(side) for side in shape)
