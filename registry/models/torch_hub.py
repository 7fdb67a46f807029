"""Any network that a repository or a folder offers through torch.hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from benchmark.checkpoints import check_input, load_into, read_state
from benchmark.errors import DataError, SpecError
from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim

_NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


@model(
    source=Source(
        paper="PyTorch: torch.hub",
        url="https://docs.pytorch.org/docs/stable/hub.html",
        year=2019,
        differences=("images keep the size of the data set: nothing is resized or cropped",),
    ),
    argument="REPO:MODEL",
)
def hub(
    request: ModelRequest,
    *,
    pretrained: bool | None = True,
    normalisation: Literal["imagenet", "half", "none"] = "imagenet",
) -> Victim:
    """Network MODEL of a repository OWNER/NAME, or of a folder, that has a hubconf.py.

    The code of the repository runs, so torch.hub asks once whether it is trusted.

    Args:
        request: Its argument is the repository, a colon, and the network.
        pretrained: Handed to the repository's function, but false with a checkpoint; none if
            the function has no such parameter.
        normalisation: What the network wants: ImageNet's mean and deviation, values from -1 to 1,
            or images as they are.

    Raises:
        SpecError: If the argument has another form, or the network does not fit the data set.
        DataError: If the repository, its network or the weights cannot be had.
    """
    who = f"model 'hub:{request.argument}'"
    if request.image_shape[0] != 3:
        raise SpecError(f"{who} takes images of 3 channels, not {request.image_shape[0]}")
    network = _fetch(who, request, pretrained)
    if request.checkpoint is not None:
        load_into(network, read_state(request.checkpoint), request.checkpoint)
    mean, std = _NORMALISATIONS[normalisation]
    victim = Victim(network, mean=mean, std=std, num_classes=request.num_classes)
    check_input(victim, request.image_shape, who)
    return victim


def _fetch(who: str, request: ModelRequest, pretrained: bool | None) -> torch.nn.Module:
    place, _, name = request.argument.rpartition(":")
    if not place or not name:
        raise SpecError(f"{who} should be written hub:REPO:MODEL")
    local = Path(place).expanduser()
    given: dict[str, Any] = {"source": "local"} if local.is_dir() else {"verbose": False}
    if pretrained is not None:
        given["pretrained"] = pretrained and request.checkpoint is None
    try:
        load: Callable[..., object] = torch.hub.load
        network = load(str(local) if local.is_dir() else place, name, **given)
    except EOFError as error:  # nobody is there to answer torch.hub's question
        raise DataError(
            f"{who}: torch.hub does not trust '{place}' yet: load it once in a terminal"
        ) from error
    except (Exception, SystemExit) as error:  # code of others may fail in any way
        reason = " ".join(str(error).split())
        raise DataError(
            f"{who} cannot be loaded ({type(error).__name__}: {reason}). "
            "A function without the parameter 'pretrained' wants [pretrained=none]."
        ) from error
    if not isinstance(network, torch.nn.Module):
        kind = type(network).__name__
        raise DataError(f"{who} gives an object of type {kind}, not a network")
    return network
