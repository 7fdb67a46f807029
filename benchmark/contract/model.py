"""What every victim must keep, checked on the first images of its data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmark.catalogue import DATASETS
from benchmark.config import Config
from benchmark.contract.toy import Broken, NotHere, demand
from benchmark.data import Dataset, Split
from benchmark.entry import Choice
from benchmark.errors import DataError, VictimError
from benchmark.loading import load_dataset, load_victim
from benchmark.victim import Victim


def _fitting(choice: Choice[Any], config: Config) -> Iterator[tuple[Victim, Dataset]]:
    """Load the victim with the data sets that name it, or else with each one it accepts."""
    name = str(choice)
    if choice.argument:
        raise NotHere("a catalogue of others' models: check one by running it")
    fits, reasons = False, []
    entries = [entry for entry in DATASETS if not entry.facts.argument]
    for entry in [e for e in entries if e.facts.model == choice.entry.name] or entries:
        try:
            data = load_dataset(entry.name, config)
            victim = load_victim(name, entry.name, config, "cpu")
        except (DataError, ValueError) as error:
            reasons.append(str(error))
            continue
        fits = True
        yield victim, data
    if not fits:
        raise NotHere("; ".join(reasons))


def _setting(choice: Choice[Any], config: Config) -> tuple[Victim, Tensor]:
    victim, data = next(_fitting(choice, config))
    return victim, data.take(Split.EVAL, 16).images


def check_answers(choice: Choice[Any], config: Config) -> None:
    """It answers each image with finite logits, the same each time, whatever its neighbours."""
    victim, images = _setting(choice, config)
    with torch.no_grad():
        whole, again = victim(images), victim(images)
        alone = torch.cat([victim(image[None]) for image in images])
    demand(whole.shape == (16, victim.num_classes), f"logits have shape {tuple(whole.shape)}")
    demand(whole.isfinite().all(), "a logit is not finite")
    demand(torch.equal(whole, again), "two passes differ")
    demand(torch.allclose(whole, alone, rtol=1e-4, atol=1e-4), "an image feels its batch")


def check_frozen(choice: Choice[Any], config: Config) -> None:
    """It is in evaluation mode and needs no gradient."""
    victim, _ = _setting(choice, config)
    demand(not any(module.training for module in victim.modules()), "it is in training mode")
    demand(not any(p.requires_grad for p in victim.parameters()), "a parameter needs a gradient")


def check_seams(choice: Choice[Any], config: Config) -> None:
    """It opens before its last linear layer and at its named stages."""
    victim, images = _setting(choice, config)
    with torch.no_grad():
        logits = victim(images)
        try:
            parts = victim.head(victim.features(images))
        except VictimError as error:
            raise NotHere(str(error)) from None
        demand(torch.allclose(parts, logits, rtol=1e-4, atol=1e-5), "head(features) is not it")
        for stage in victim.stages():
            with victim.edited({stage: torch.zeros_like}):
                demand(not torch.equal(victim(images), logits), f"stage '{stage}' has no effect")


def check_learned(choice: Choice[Any], config: Config) -> None:
    """It classifies its data set better than chance."""
    found = []
    for victim, data in _fitting(choice, config):
        samples = data.take(Split.EVAL, min(200, len(data.splits[Split.EVAL])))
        with torch.no_grad():
            right = (victim(samples.images).argmax(1) == samples.labels).float().mean()
        if right > 3 / data.num_classes:
            return
        found.append(f"{float(right):.2f} on '{data.name}'")
    raise Broken(f"accuracy is {', '.join(found)}")
