"""What every defense must keep, checked on a small convolutional victim in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmark.config import Config
from benchmark.contract.toy import demand, global_randomness_watched, small_data, small_victim
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import Defense
from benchmark.entry import Choice
from benchmark.facts import Level, Traits
from benchmark.fitting import train
from benchmark.rng import RowRng, seed_from
from benchmark.victim import Victim

_HOOKS = {
    "on_images": Level.IMAGES,
    "on_features": Level.FEATURES,
    "on_penultimate": Level.PENULTIMATE,
    "on_logits": Level.LOGITS,
    "answer": Level.ANSWER,
}
_ALIKE = 1e-9  # a victim in float64 rounds differently at another batch size


def _images(count: int = 8) -> Tensor:
    return small_data().take(Split.EVAL, count).images


def _make(choice: Choice[Any], **changed: object) -> Defended:
    return _placed(choice, small_victim(), **changed)


def _placed(choice: Choice[Any], victim: Victim, **changed: object) -> Defended:
    defense: Defense = choice.entry.build(**{**choice.values, **changed})
    defense.check(victim)
    if defense.recipe():
        victim = train(defense, victim, small_data())
    defense.prepare(victim, small_data())
    return Defended(victim, defense, 64)


def _rng(seed: int = 0, count: int = 8) -> RowRng:
    return RowRng([seed_from("contract", seed, owner) for owner in range(count)])


def _ask(defended: Defended, images: Tensor, rows: list[int], rng: RowRng) -> Tensor:
    return defended.answer(images, torch.tensor(rows), rng)


def _traits(choice: Choice[Any]) -> Traits:
    defense: Defense = choice.entry.build(**choice.values)
    return defense.traits


def check_traits(choice: Choice[Any], _config: Config) -> None:
    """With its default parameters it has the traits that its entry declares."""
    usual: Defense = choice.entry.build()
    declared = choice.entry.facts.traits
    demand(usual.traits == declared, f"declared {declared}, an instance says {usual.traits}")


def check_level(choice: Choice[Any], _config: Config) -> None:
    """It overrides exactly the hook of its declared level."""
    build, declared = choice.entry.build, choice.entry.facts.level
    found = [
        level
        for name, level in _HOOKS.items()
        if getattr(build, name) is not getattr(Defense, name)
    ] or [Level.WEIGHTS if getattr(build, "fit") is not Defense.fit else Level.NOWHERE]  # noqa: B009 - mypy knows no fit
    demand(found == [declared], f"level is declared '{declared}', the hooks say {found}")


def check_randomised(choice: Choice[Any], _config: Config) -> None:
    """It is random exactly as declared: same seed, same answers."""
    images, rows = _images(), list(range(8))
    first, again, other = (_ask(_make(choice), images, rows, _rng(s)) for s in (1, 1, 2))
    demand(torch.equal(first, again), "the same seed gave other answers")
    differs = not torch.equal(first, other)
    traits = _traits(choice)
    demand(
        differs == traits.randomised,
        f"randomised is declared {traits.randomised}, but is {differs}",
    )
    if traits.steady:
        once, rng = _make(choice), _rng()
        repeated = (_ask(once, images, rows, rng) for _ in range(10))
        demand(all(torch.equal(a, first) for a in repeated), "a repeated question has new answers")


def check_fresh_noise(choice: Choice[Any], _config: Config) -> None:
    """Each query of a call draws noise of its own."""
    if not _traits(choice).randomised:
        return
    same = _images(1).repeat(8, 1, 1, 1)
    for rows in (list(range(8)), [0] * 8):
        answers = _ask(_make(choice), same, rows, _rng())
        # Noise may move a vote that has few outcomes, so that some answers are equal.
        distinct = len(torch.unique(answers, dim=0))
        demand(distinct >= 4, f"equal images of owners {rows} share their noise")


def check_coupled(choice: Choice[Any], _config: Config) -> None:
    """A query feels the other queries of its call exactly if it declares so."""
    images, rows = _images(), list(range(8))
    whole = _ask(_make(choice), images, rows, _rng())
    alone = torch.cat([_ask(_make(choice), images[r : r + 1], [r], _rng()) for r in rows])
    mixed = _ask(_make(choice), images.flip(0), rows[::-1], _rng()).flip(0)
    feels = bool((whole - alone).abs().max() > _ALIKE or (whole - mixed).abs().max() > _ALIKE)
    declared = _traits(choice).coupled
    demand(feels == declared, f"coupled is declared {declared}, but is {feels}")


def check_stateful(choice: Choice[Any], _config: Config) -> None:
    """Earlier queries change an answer exactly if it declares so."""
    images, rows = _images(), list(range(8))
    fresh = _ask(_make(choice), images, rows, _rng())
    used = _make(choice)
    # Near-copies too, for a detector of attacks takes note of nothing else.
    for seed, earlier in ((7, images.flip(0)), (8, 0.999 * images)):
        _ask(used, earlier, rows, _rng(seed))
    remembers = bool((_ask(used, images, rows, _rng()) - fresh).abs().max() > _ALIKE)
    declared = _traits(choice).stateful
    demand(remembers == declared, f"stateful is declared {declared}, but is {remembers}")


def check_owners(choice: Choice[Any], _config: Config) -> None:
    """Queries of one owner never change the answers to another."""
    if _traits(choice).coupled:
        return
    images = _images()
    quiet = _ask(_make(choice), images[:1], [3], _rng())
    busy = _make(choice)
    rng = _rng()
    _ask(busy, images, [0, 1, 2, 4, 5, 6, 7, 0], rng)
    apart = (_ask(busy, images[:1], [3], rng) - quiet).abs().max()
    demand(apart <= _ALIKE, "an owner's answer changed after others had asked")


def check_keeps_label(choice: Choice[Any], _config: Config) -> None:
    """It keeps the victim's label on every image, if it declares so."""
    if not _traits(choice).keeps_label:
        return
    images = _images(24)
    answers = _ask(_make(choice), images, [0] * 24, _rng())
    bare = small_victim()(images)
    demand(torch.equal(answers.argmax(1), bare.argmax(1)), "it changed a label")


def check_strength_zero(choice: Choice[Any], _config: Config) -> None:
    """At strength zero it gives the bare victim's logits, to the bit."""
    knob = choice.entry.facts.strength
    if not knob:
        return
    images = _images()
    defended = _make(choice, **{knob: 0.0})
    answers = _ask(defended, images, list(range(8)), _rng())
    with torch.no_grad():
        bare = defended.victim(images)  # trained, if the defense trains it
    demand(torch.equal(answers, bare), f"{knob}=0 differs from the bare victim")


def check_leaves_no_trace(choice: Choice[Any], _config: Config) -> None:
    """It leaves images, weights, buffers, hooks and global random state as they were."""
    images = _images()
    kept = images.clone()
    with global_randomness_watched():
        given = small_victim()
        untouched, modes = copy.deepcopy(given.state_dict()), _modes(given)
        defended = _placed(choice, given)
        before = copy.deepcopy(defended.victim.state_dict())  # trained, if the defense trains it
        for seed in range(13):
            _ask(defended, images, list(range(8)), _rng(seed))
    demand(torch.equal(images, kept), "it changed the images it was given")
    for victim, state in ((given, untouched), (defended.victim, before)):
        for name, value in victim.state_dict().items():
            demand(torch.equal(value, state[name]), f"it changed the victim's '{name}'")
        demand(_modes(victim) == modes, "it changed a module's mode or what requires a gradient")
    for module in defended.victim.modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        demand(hooks == 0, f"it left a hook on {type(module).__name__}")
    for parameter in defended.victim.parameters():
        demand(parameter.grad is None, "it left a gradient on the victim")


def check_keeps_nothing(choice: Choice[Any], _config: Config) -> None:
    """It holds no more after many calls than after few, unless it declares a state."""
    if _traits(choice).stateful:
        return
    images, rows, rng = _images(), list(range(8)), _rng()
    defended = _make(choice)
    held = []
    for _ in range(2):
        for _ in range(5):
            _ask(defended, images, rows, rng)
        held.append(sum(_held(member, set()) for member in defended.defense.members))
    demand(held[0] == held[1], f"it held {held[0]} values after 5 calls, {held[1]} after 10")


def _modes(network: Victim) -> list[bool]:
    return [m.training for m in network.modules()] + [p.requires_grad for p in network.parameters()]


def _held(thing: object, seen: set[int]) -> int:
    """Count the values in all tensors, and the entries of all containers, that can be reached."""
    if id(thing) in seen or isinstance(thing, type | str | int | float | bool | None):
        return 0
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return thing.numel()
    parts: list[object] = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    if isinstance(thing, Mapping):
        parts += [*thing.values()]
    elif isinstance(thing, list | tuple | set):
        parts += [*thing]
    return len(parts) + sum(_held(part, seen) for part in parts)
