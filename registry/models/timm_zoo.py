"""Every architecture of the timm library, with its weights or with a checkpoint."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmark.checkpoints import check_input, load_into, read_state
from benchmark.errors import DataError, RegistryError, SpecError, suggestion
from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim

_HUB = "hf_hub:"


@model(
    source=Source(
        paper="Wightman, PyTorch Image Models",
        url="https://doi.org/10.5281/zenodo.4414861",
        year=2019,
        code="https://github.com/huggingface/pytorch-image-models",
        differences=(
            "images keep the size of the data set: nothing is resized or cropped",
            "for other than 3 channels the mean over channels normalises each of them",
        ),
    ),
    argument="NAME",
)
def timm(request: ModelRequest, *, pretrained: bool = True) -> Victim:
    """Model NAME of timm; without a checkpoint its own weights are downloaded.

    `hf_hub:OWNER/NAME` is a network that somebody saved at the Hugging Face hub.
    """
    library = importlib.import_module("timm")
    name = request.argument
    if name.startswith(_HUB):
        network = _shared(library, request)
    elif not library.is_model(name):
        raise RegistryError(
            f"timm has no model '{name}'. {suggestion(name, library.list_models())}"
        )
    elif request.checkpoint is not None:
        network = _build(library, request, pretrained=False)
        load_into(network, read_state(request.checkpoint), request.checkpoint)
    else:
        _check_pretrained(library, request, pretrained=pretrained)
        network = _build(library, request, pretrained=True)
    mean, std = _normalisation(library, network, request.image_shape[0])
    victim = Victim(network, mean=mean, std=std, num_classes=request.num_classes)
    check_input(victim, request.image_shape, f"model 'timm:{name}'")
    return victim


def _shared(library: Any, request: ModelRequest) -> Any:
    """Fetch a network of the Hugging Face hub: its description from there, its head as it is."""
    try:
        network = library.create_model(request.argument, pretrained=False)
        path = request.checkpoint or _weights_at_hub(request.argument.removeprefix(_HUB))
    except Exception as error:  # each way of downloading fails with errors of its own
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"model 'timm:{request.argument}' cannot be downloaded "
            f"({type(error).__name__}: {reason})"
        ) from error
    if network.num_classes != request.num_classes:
        raise SpecError(
            f"model 'timm:{request.argument}' has {network.num_classes} classes, the data set "
            f"{request.num_classes}"
        )
    load_into(network, read_state(path), path)
    return network


def _weights_at_hub(name: str) -> Path:
    """Download the weights; of a repository's files only this kind holds nothing but tensors."""
    hub = importlib.import_module("huggingface_hub")
    repository, _, revision = name.partition("@")
    return Path(hub.hf_hub_download(repository, "model.safetensors", revision=revision or None))


def _check_pretrained(library: Any, request: ModelRequest, *, pretrained: bool) -> None:
    name = request.argument
    if not pretrained:
        raise SpecError(f"model 'timm:{name}' has random weights: give --checkpoint FILE")
    architecture, _, tag = name.partition(".")
    known = library.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in known:
        raise RegistryError(f"timm has no weights '{name}'. {suggestion(name, known)}")
    if not library.models.is_model_pretrained(name):
        raise DataError(f"timm has no weights for '{name}': give them by --checkpoint FILE")
    config = library.get_pretrained_cfg(name)
    if config.num_classes != request.num_classes:
        raise SpecError(
            f"model 'timm:{name}' has {config.num_classes} classes, the data set "
            f"{request.num_classes}: give weights for the data set by --checkpoint FILE"
        )


def _build(library: Any, request: ModelRequest, *, pretrained: bool) -> Any:
    try:
        return library.create_model(
            request.argument,
            pretrained=pretrained,
            num_classes=request.num_classes,
            in_chans=request.image_shape[0],
        )
    except Exception as error:  # each way of downloading fails with errors of its own
        if not pretrained:
            line = str(error).partition("\n")[0]
            raise SpecError(f"model 'timm:{request.argument}' cannot be built: {line}") from error
        raise DataError(
            f"the weights of 'timm:{request.argument}' cannot be downloaded "
            f"({type(error).__name__}): give them by --checkpoint FILE"
        ) from error


def _normalisation(
    library: Any, network: Any, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = library.data.resolve_data_config({}, model=network)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if len(mean) != channels:
        mean = (sum(mean) / len(mean),) * channels
        std = (sum(std) / len(std),) * channels
    return mean, std
