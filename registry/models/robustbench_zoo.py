"""Adversarially trained networks of RobustBench's model zoo, with their published weights."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmark.checkpoints import check_input, load_into, read_state
from benchmark.errors import DataError, RegistryError, SpecError, suggestion
from benchmark.extras import load_extra
from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_CONSTANTS = ("mu", "sigma", "mean", "std")  # buffers that a network sets itself


@model(
    source=Source(
        paper="Croce et al., RobustBench: a standardized adversarial robustness benchmark",
        url="https://arxiv.org/abs/2010.09670",
        year=2021,
        code="https://github.com/RobustBench/robustbench",
        differences=(
            "weights are read as tensors: a file that holds other objects is refused",
            "networks whose weights are several files, or lie in timm, are left out",
        ),
    ),
    argument="NAME",
)
def robustbench(
    request: ModelRequest, *, threat: Literal["Linf", "L2", "corruptions"] = "Linf"
) -> Victim:
    """Network NAME of RobustBench for the data set's classes; without a checkpoint downloaded.

    Args:
        request: Its argument is the name in the model zoo, for example Carmon2019Unlabeled.
        threat: Threat model it was trained for.

    Raises:
        RegistryError: If RobustBench has no such network for this data set and threat.
        SpecError: If the package is missing, or the network is not a single file.
        DataError: If weights are missing, damaged or of another network.
    """
    who = f"model 'robustbench:{request.argument}'"
    zoo, enums = _module("model_zoo", who), _module("model_zoo.enums", who)
    trained_on = _data_of(request, who)
    known = zoo.model_dicts[enums.BenchmarkDataset(trained_on)][enums.ThreatModel(threat)]
    if request.argument not in known:
        raise RegistryError(
            f"RobustBench has no model '{request.argument}' for {trained_on} and {threat}. "
            f"{suggestion(request.argument, known)}"
        )
    found = known[request.argument]
    if not isinstance(found.get("gdrive_id"), str):
        raise SpecError(f"{who} is not a single file of weights, which is all that can be loaded")
    path = request.checkpoint or _download(who, found["gdrive_id"], trained_on, threat)
    network = found["model"]()
    load_into(network, _fitted(network, read_state(path)), path)
    victim = Victim(network, mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=request.num_classes)
    check_input(victim, request.image_shape, who)
    return victim


def _module(name: str, who: str) -> Any:
    """Import a part of RobustBench alone: all of it needs AutoAttack, which is not on PyPI."""
    spec = None if "robustbench" in sys.modules else importlib.util.find_spec("robustbench")
    if spec is None:
        return load_extra(f"robustbench.{name}", "robustbench", who)
    sys.modules["robustbench"] = importlib.util.module_from_spec(spec)
    try:
        return load_extra(f"robustbench.{name}", "robustbench", who)
    finally:
        del sys.modules["robustbench"]


def _data_of(request: ModelRequest, who: str) -> str:
    """Name of RobustBench's data set with the classes of ours."""
    for name, classes in _CLASSES.items():
        if classes == request.num_classes:
            return name
    allowed = ", ".join(f"{count} ({name})" for name, count in _CLASSES.items())
    raise SpecError(f"{who}: the data set has {request.num_classes} classes. Allowed: {allowed}.")


def _download(who: str, address: str, trained_on: str, threat: str) -> Path:
    """Fetch weights once, to where torch keeps those of its own hub."""
    tools = _module("utils", who)
    name = who.rpartition(":")[2].rstrip("'")
    path = Path(torch.hub.get_dir(), "robustbench", trained_on, threat, f"{name}.pt")
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        tools.download_gdrive_new(address, part)
        part.replace(path)
    except Exception as error:  # each way of downloading fails with errors of its own
        raise DataError(
            f"the weights of {who} cannot be downloaded ({type(error).__name__}): "
            "give them by --checkpoint FILE"
        ) from error
    return path


def _fitted(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as the network does: published files differ by the prefix `model.`.

    Constants of the normalisation, which some files lack, are the network's own.
    """
    wanted: dict[str, Any] = network.state_dict()
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    forms = (dict(state), bare, {f"model.{name}": tensor for name, tensor in bare.items()})
    best = max(forms, key=lambda form: len(wanted.keys() & form.keys()))
    constants = {n: t for n, t in wanted.items() if n.rpartition(".")[2] in _CONSTANTS}
    return {**constants, **best}
