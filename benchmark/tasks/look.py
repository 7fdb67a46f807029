"""The task `look`: what a defense does to clean images, what it costs, and whether it says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from benchmark.audit import clean_hits
from benchmark.closeness import calibration_error, closeness
from benchmark.data import Samples, Split
from benchmark.defended import Defended
from benchmark.defense import Defense
from benchmark.facts import Traits
from benchmark.fitting import attach, attach_part
from benchmark.flags import LABELS_ALONE, OF_VICTIM
from benchmark.graphs import unplayed
from benchmark.loading import load_for
from benchmark.rng import RowRng
from benchmark.scores import Kind
from benchmark.spec import Look
from benchmark.spending import charge, counted
from benchmark.stack import DefenseChoice, undefended
from benchmark.streams import defense_streams
from benchmark.surroundings import Surroundings
from benchmark.victim import Remote, Victim

_PROBED = 8  # images whose answers are compared alone and in company, and timed
TRIALS = 5 * _PROBED  # queries besides those about each image, of a defense that is not timed
_STEP = 1 / 255  # of the probe that ought to move an answer
_SECONDS = 0.3  # of timing for each batch size


class _Stand(NamedTuple):
    """A defense in place, and the bare victim beside it."""

    look: Look
    defended: Defended
    bare: Defended
    samples: Samples
    device: torch.device

    def streams(self, purpose: str) -> RowRng:
        """Fresh streams of a purpose, one for each image."""
        name, ids = self.look.defense.record["name"], self.samples.ids.tolist()
        return defense_streams(purpose, name, self.look.seed, ids, self.device)


def run_look(look: Look, surroundings: Surroundings) -> dict[str, Any]:
    """Look at a defense's answers to clean images.

    Returns:
        `measured`: columns of `DefenseRow`; `timing`: columns of `DefenseTimingRow`.

    Raises:
        BenchError: If the defense breaks a rule.
    """
    surroundings.load_plugins()
    stand, zero = _stand(look, surroundings)
    rows = torch.arange(look.images, device=stand.device)
    images = stand.samples.images.to(stand.device)
    labels = stand.samples.labels.to(stand.device)
    bare = stand.bare.answer(images, rows, stand.streams("bare"))
    draws = 1 if stand.defended.steady else look.draws
    rng, defended = stand.streams("look"), stand.defended.fresh()
    answers = torch.stack([defended.answer(images, rows, rng) for _ in range(draws)])
    right = (answers.argmax(2) == labels).double().mean(0)
    base = clean_hits(zero, images, labels, draws, stand.streams("look")).double() / draws
    lost = base - right
    traits = stand.defended.defense.traits
    distances = closeness(answers[0], bare)
    remote = stand.bare.victim.remote
    if "trained" in look.defense.record:  # another classifier: its logits have a scale of their own
        distances["logit_difference"] = None
    measured = {
        "draws": draws,
        "clean_accuracy": float(right.mean()),
        "drop": float(lost.mean()),
        "drop_error": float(lost.std() / len(lost) ** 0.5) if len(lost) > 1 else None,
        "label_kept": float((answers.argmax(2) == bare.argmax(1)).double().mean()),
        **distances,
        "calibration_error": calibration_error(answers[0], labels),
        "calibration_error_undefended": calibration_error(bare, labels),
        "parameters": _parameters(stand.defended.victim, stand.defended.defense),
        "forward_equivalents": _forwards(stand, images[:_PROBED]),
        **_behaviour(stand, images[:_PROBED]),
        "traits": ", ".join([*_names(traits), *(_of_victim(remote) if remote else ())]),
    }
    # How long an endpoint takes says little of its defense, and asking costs.
    return {"measured": measured, "timing": {} if remote else _timing(stand, images)}


def _names(traits: Traits) -> list[str]:
    return [name for name, holds in asdict(traits).items() if holds]


def _of_victim(remote: Remote) -> list[str]:
    """What a victim that runs elsewhere says of itself, and flags have to know."""
    shown = [LABELS_ALONE] * (remote.shows.kind is Kind.LABEL)
    return [*(OF_VICTIM + name for name in _names(remote.traits)), *shown]


def _stand(look: Look, surroundings: Surroundings) -> tuple[_Stand, Defended]:
    """Put the defense in place; also the same at strength zero, from where drops are counted."""
    config, device = surroundings.config, torch.device(surroundings.device)
    dataset, bare = load_for(look, config, surroundings.device)
    samples = dataset.take(Split.EVAL, look.images)
    batch = surroundings.batch_for(samples.images[0].numel())
    choice, company = DefenseChoice.parse(look.defense.text), look.defense.record.get("company")
    placed = [attach_part(look.defense, bare, dataset, config.cache_folder)]
    for one in (undefended(), choice.at(0.0) if choice.knob else undefended()):
        placed.append(attach(one, bare, dataset, config.cache_folder))
    defended, plain, zero = (Defended(v, defense, batch, company) for defense, v in placed)
    return _Stand(look, defended, plain, samples, device), zero


def _parameters(victim: Victim, defense: Defense) -> int:
    """Numbers that have to be stored: weights of the victim, and of networks a defense brings."""
    modules = [victim, *(m for one in defense.members for m in vars(one).values())]
    counted = (m for m in modules if isinstance(m, torch.nn.Module))
    return sum(p.numel() for module in counted for p in module.parameters())


def _forwards(stand: _Stand, images: Tensor) -> float:
    """Floating point operations of a query over those of the bare victim, backward ones too.

    Of a victim that runs elsewhere it is the images that it is shown for a query.
    """
    rows, spent = torch.arange(len(images), device=stand.device), []
    if stand.bare.victim.remote:
        with counted() as bills:
            stand.defended.fresh().answer(images, rows, stand.streams("count"))
        charge(bills)
        return sum(bill.images for bill in bills.values()) / len(images)
    for one in (stand.defended.fresh(), stand.bare):
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _Untracked()
        with unplayed(one.victim), counter:
            one.answer(images, rows, stand.streams("count"))
        spent.append(counter.get_total_flops())
    return spent[0] / spent[1] if spent[1] else 1.0


class _Untracked(ModuleTracker):
    """No sums over modules: the hooks they take refuse a gradient by a module's own input."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass


def _behaviour(stand: _Stand, images: Tensor) -> dict[str, float]:
    """Ask the same questions in different ways: differences are relative to the logits' size."""
    rows = torch.arange(len(images), device=stand.device)

    def ask(purpose: str, shown: Tensor = images) -> Tensor:
        return stand.defended.fresh().answer(shown, rows, stand.streams(purpose))

    first = ask("first")
    size = first.abs().amax(1).clamp_min(1e-12)
    rng, one = stand.streams("first"), stand.defended.fresh()
    alone = torch.cat([one.answer(images[i : i + 1], rows[i : i + 1], rng) for i in rows.tolist()])
    signs = torch.where(images > 0.5, -_STEP, _STEP)
    moved = (ask("first", images + signs).softmax(1) - first.softmax(1)).abs().amax(1)
    return {
        "repeat_difference": float(((ask("second") - first).abs().amax(1) / size).max()),
        "company_difference": float(((alone - first).abs().amax(1) / size).max()),
        "flat": float((moved == 0).double().mean()),
    }


def _timing(stand: _Stand, images: Tensor) -> dict[str, float]:
    """Milliseconds a query, and over the bare victim's, alone and in batches of 64."""
    timing: dict[str, float] = {}
    for size in (1, 64):
        place = torch.arange(size, device=stand.device) % len(images)
        shown, rng = images[place], stand.streams("timing")
        # In turn, so that a machine that slows down slows both.
        asked = [partial(d.answer, shown, place, rng) for d in (stand.defended.fresh(), stand.bare)]
        spent: list[list[float]] = [[], []]
        while sum(spent[0]) < _SECONDS:
            for times, ask in zip(spent, asked, strict=True):
                times.append(_seconds(ask, stand.device))
        defended, bare = (median(times) for times in spent)
        timing[f"milliseconds_{size}"] = round(1000 * defended / size, 4)
        timing[f"times_bare_{size}"] = round(defended / bare, 3)
    return timing


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
