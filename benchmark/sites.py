"""Sites: the places inside a network where features may be changed, by name.

A site is the output of a module (`layer1`) or, written with a prefix, its input (`in:layer1`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmark.errors import SpecError, suggestion

Edit = Callable[[Tensor], Tensor]

INPUT = "in:"
_RESNET = ("maxpool", "layer1", "layer2", "layer3")  # of four stages the last stays clean
_POOLFORMER = ("PoolFormerBlock", "MetaFormerBlock")
_STAGES = ("stages", "layers", "features")
_CHAIN = (nn.Sequential, nn.ModuleList)


def module_at(network: nn.Module, site: str) -> nn.Module:
    """Return the module whose output, or input, a site names.

    Raises:
        SpecError: If the network has none; the message names the nearest match.
    """
    modules: dict[str, nn.Module] = dict(network.named_modules())
    name = site.removeprefix(INPUT)
    if not name or name not in modules:
        tops = [key for key in modules if key and key.count(".") <= 1]
        raise SpecError(f"the victim has no stage '{site}'. {suggestion(name, tops)}")
    return modules[name]


def attach(network: nn.Module, site: str, edit: Edit) -> RemovableHandle:
    """Pass what flows through a site through a function, until the handle is removed.

    Args:
        network: The network that has the site.
        site: Its name.
        edit: Gets a tensor and returns one of the same shape. Of several tensors it gets the
            first; the others stay.

    Raises:
        SpecError: If there is no such site; in a pass, if no tensor flows through it.
    """

    def before(_module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return _changed(inputs, site, edit)

    def after(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        return _changed(output, site, edit)

    module = module_at(network, site)
    if site.startswith(INPUT):
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


def _changed(value: Any, site: str, edit: Edit) -> Any:
    if isinstance(value, Tensor):
        return edit(value)
    parts = list(value) if isinstance(value, tuple | list) else []
    first = next((i for i, part in enumerate(parts) if isinstance(part, Tensor)), None)
    if first is None:
        raise SpecError(f"stage '{site}' holds a {type(value).__name__} without a tensor in it")
    parts[first] = edit(parts[first])
    return getattr(type(value), "_make", type(value))(parts)  # _make: of a named tuple


def usual(network: nn.Module) -> tuple[str, ...]:
    """Name the usual sites of a network, in order, as the code of Nguyen et al. chooses them.

    ResNets: after the max-pooling and each stage `layer1`, `layer2`, `layer3`. VGG: before every
    convolution of `features`. PoolFormer: before every block. Networks of equal blocks (ViT,
    DeiT, Mixer, ResMLP): before every block. Others: after every child of `stages`, `layers` or
    `features`, else of the longest chain that holds at least half of the modules, else of the
    network itself; the head is none of them.
    """
    children = dict(network.named_children())
    if {"layer1", "layer2"} <= children.keys():
        return tuple(name for name in _RESNET if name in children)
    inputs = _convolutions(children.get("features")) or _poolformer(network)
    if inputs:
        return tuple(INPUT + name for name in inputs)
    prefix, chain = _chain(network)
    if not prefix:
        return _blocks(network)
    names = [f"{prefix}.{name}" for name, _ in chain.named_children()]
    return tuple(INPUT + name for name in names) if _alike(chain) else tuple(names)


def _convolutions(features: nn.Module | None) -> list[str]:
    """Name the convolutions of a plain chain of layers."""
    if not isinstance(features, nn.Sequential) or any(_size(m) > 1 for m in features):
        return []
    named = features.named_children()
    return [f"features.{name}" for name, module in named if isinstance(module, nn.Conv2d)]


def _poolformer(network: nn.Module) -> list[str]:
    return [name for name, m in network.named_modules() if type(m).__name__ in _POOLFORMER]


def _chain(network: nn.Module) -> tuple[str, nn.Module]:
    """Find the chain of blocks between stem and head, the network itself if there is none."""
    chains = {
        name: module
        for name, module in network.named_modules()
        if name and isinstance(module, _CHAIN) and len(module) > 1
    }
    for name in _STAGES:
        if name in chains:
            return name, chains[name]
    large = {name: m for name, m in chains.items() if 2 * _size(m) >= _size(network)}
    if not large:
        return "", network
    longest = max(large, key=lambda name: len(large[name]))
    return longest, large[longest]


def _blocks(network: nn.Module) -> tuple[str, ...]:
    """Name the network's blocks, or its layers if it has no blocks, without head and helpers."""
    named = [
        (name, module)
        for name, module in list(network.named_children())[:-1]
        if not isinstance(module, nn.ModuleList)  # a list is no step of the forward pass
        and "aux" not in name.lower()  # nor are the heads that only training uses
        and _weights(module)
    ]
    blocks = [name for name, module in named if _size(module) > 1]
    return tuple(blocks or [name for name, _ in named])


def _alike(chain: nn.Module) -> bool:
    return len({(type(block), _weights(block)) for block in chain.children()}) == 1


def _size(module: nn.Module) -> int:
    return sum(1 for _ in module.modules())


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
