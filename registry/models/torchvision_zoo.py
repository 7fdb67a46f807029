"""Every classifier of the torchvision library, with its weights or with a checkpoint."""

from __future__ import annotations

import importlib
from typing import Any

from benchmark.checkpoints import check_input, load_into, read_state
from benchmark.errors import DataError, RegistryError, SpecError, suggestion
from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@model(
    source=Source(
        paper="Marcel and Rodriguez, Torchvision the machine-vision package of torch",
        url="https://doi.org/10.1145/1873951.1874254",
        year=2010,
        code="https://github.com/pytorch/vision",
        differences=(
            "images keep the size of the data set: nothing is resized or cropped",
            "a checkpoint is taken to be trained with ImageNet's normalisation",
        ),
    ),
    argument="NAME",
)
def torchvision(request: ModelRequest, *, pretrained: bool = True) -> Victim:
    """Model NAME of torchvision; without a checkpoint its own weights are downloaded."""
    zoo = importlib.import_module("torchvision.models")
    name = request.argument
    known = zoo.list_models(module=zoo)
    if name not in known:
        raise RegistryError(f"torchvision has no model '{name}'. {suggestion(name, known)}")
    if request.image_shape[0] != 3:
        raise SpecError(
            f"model 'torchvision:{name}' takes images of 3 channels, not {request.image_shape[0]}"
        )
    mean, std = _IMAGENET_MEAN, _IMAGENET_STD
    if request.checkpoint is not None:
        network = zoo.get_model(name, weights=None, num_classes=request.num_classes)
        load_into(network, read_state(request.checkpoint), request.checkpoint)
    else:
        weights = _weights(zoo, request, pretrained=pretrained)
        network = _download(zoo, name, weights)
        transforms = weights.transforms()
        mean, std = tuple(transforms.mean), tuple(transforms.std)
    victim = Victim(network, mean=mean, std=std, num_classes=request.num_classes)
    check_input(victim, request.image_shape, f"model 'torchvision:{name}'")
    return victim


def _weights(zoo: Any, request: ModelRequest, *, pretrained: bool) -> Any:
    name = request.argument
    if not pretrained:
        raise SpecError(f"model 'torchvision:{name}' has random weights: give --checkpoint FILE")
    choices = list(zoo.get_model_weights(name))
    if not choices:
        raise DataError(f"torchvision has no weights for '{name}': give them by --checkpoint FILE")
    weights = zoo.get_model_weights(name).DEFAULT
    classes = len(weights.meta["categories"])
    if classes != request.num_classes:
        raise SpecError(
            f"model 'torchvision:{name}' has {classes} classes, the data set "
            f"{request.num_classes}: give weights for the data set by --checkpoint FILE"
        )
    return weights


def _download(zoo: Any, name: str, weights: Any) -> Any:
    try:
        return zoo.get_model(name, weights=weights)
    except Exception as error:  # each way of downloading fails with errors of its own
        raise DataError(
            f"the weights of 'torchvision:{name}' cannot be downloaded "
            f"({type(error).__name__}): give them by --checkpoint FILE"
        ) from error
