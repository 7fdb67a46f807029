"""Weights of victims: read without running code, load strictly, identify by content."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmark.errors import DataError, SpecError
from benchmark.victim import Victim

_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".ckpt")
_WRAPPERS = ("state_dict", "model")
_SHOWN = 3  # offenders that a message names


def read_state(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a file; nothing in the file is ever executed.

    One wrapping dictionary (`state_dict` or `model`) is opened, and the prefix `module.` is
    removed if all names have it.

    Args:
        path: A `.safetensors` file, or one of torch (`.pt`, `.pth`, `.th`, `.ckpt`).

    Returns:
        Every tensor by name, on the CPU.

    Raises:
        DataError: If the file is missing, damaged, or holds anything else than tensors.
    """
    if not path.is_file():
        raise DataError(f"checkpoint '{path}' does not exist")
    content = _read(path)
    if isinstance(content, Mapping):
        inner = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
        content = next(inner, content)
    if not isinstance(content, Mapping) or not content:
        raise DataError(f"checkpoint '{path}' holds no named tensors. Save a state_dict.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise DataError(f"checkpoint '{path}': entry '{name}' is a {kind}, not a tensor")
    whole = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if whole else name: v for name, v in content.items()}


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a network that has exactly these names and shapes.

    Counters of batch normalisation (`num_batches_tracked`) may be absent: no output needs them.

    Args:
        network: The network, changed in place.
        state: Tensors by name.
        path: File they come from, for messages.

    Raises:
        DataError: If names or shapes differ; the message names the first of them.
    """
    wanted = network.state_dict()
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in wanted]
    if missing or extra:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(extra)}"] * bool(extra)
        raise DataError(
            f"checkpoint '{path}' is not of this architecture: it {' and '.join(parts)}"
        )
    wrong = [name for name in state if state[name].shape != wanted[name].shape]
    if wrong:
        raise DataError(f"checkpoint '{path}' does not fit: {_misfit(wanted, state, wrong)}")
    network.load_state_dict(dict(state))


def fingerprint(module: nn.Module) -> str:
    """Hash the parameters and buffers of a module.

    Returns:
        The first 16 hexadecimal digits of the SHA-256 over sorted names, types, shapes, bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_input(victim: Victim, image_shape: tuple[int, int, int], who: str) -> None:
    """Run one black image, so that a wrong image size is found before an attack starts.

    Args:
        victim: The victim.
        image_shape: Shape of one image, (C, H, W).
        who: How messages name the victim.

    Raises:
        SpecError: If it does not accept such images or does not give one logit for each class.
    """
    size = "x".join(str(side) for side in image_shape)
    try:
        with torch.no_grad():
            logits = victim(torch.zeros(1, *image_shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise SpecError(f"{who} does not accept images of {size}: {_line(error)}") from error
    if logits.shape != (1, victim.num_classes):
        shape = tuple(logits.shape)
        raise SpecError(f"{who} answers {shape}, wanted (1, {victim.num_classes}) for one image")


def _read(path: Path) -> object:
    if path.suffix not in _SUFFIXES:
        allowed = ", ".join(_SUFFIXES)
        raise DataError(f"checkpoint '{path}' has an unknown suffix. Allowed: {allowed}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which then fail
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # An archive that opens is whole, so what was refused is an object that is no tensor.
        state = "holds objects" if zipfile.is_zipfile(path) else "is damaged or holds objects"
        raise DataError(
            f"checkpoint '{path}' {state} that are not tensors. Save a state_dict."
        ) from error
    except Exception as error:  # a damaged file may fail in any way
        raise DataError(f"checkpoint '{path}' cannot be read: {_line(error)}") from error


def _misfit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], wrong: list[str]) -> str:
    last = list(wanted)[-1].rpartition(".")[0]
    same_inputs = all(state[n].shape[1:] == wanted[n].shape[1:] for n in wrong)
    if same_inputs and all(name.rpartition(".")[0] == last for name in wrong):
        have, want = len(state[wrong[0]]), len(wanted[wrong[0]])
        return f"the checkpoint has {have} classes, the data set {want}"
    first, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"'{first}' is {tuple(state[first].shape)}, wanted {tuple(wanted[first].shape)}{more}"


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
