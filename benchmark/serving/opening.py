"""Puts a defense before a victim and makes a service of both."""

from __future__ import annotations

import re

import torch
from rich.console import Console

from benchmark.choices import check_shown
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.display import told_of
from benchmark.errors import SpecError
from benchmark.fitting import attach
from benchmark.loading import load_dataset, load_victim
from benchmark.machine import settle
from benchmark.measuring import Subject
from benchmark.muster import subject_parts
from benchmark.request import Request
from benchmark.serving.application import Service
from benchmark.serving.contract import Description
from benchmark.serving.desk import Desk
from benchmark.spec import digest
from benchmark.stack import DefenseChoice, undefended
from benchmark.surroundings import Surroundings


def opened(request: Request, surroundings: Surroundings, max_images: int) -> tuple[Service, str]:
    """Load victim and defense, train what has to be trained, and make the service.

    Returns:
        The service, and what it defends in a few words.

    Raises:
        BenchError: For a mistake in the input.
    """
    if len(request.defenses) != 1:
        raise SpecError(f"--defense names {len(request.defenses)} defenses: give one, or a stack")
    settle()
    dataset, model = subject_parts(request, surroundings)
    check_shown(request, Subject(dataset, model, request.shard), surroundings)
    config, device = surroundings.config, surroundings.device
    data = load_dataset(dataset.text, config)
    bare = load_victim(model.text, dataset.text, config, device)
    choice = DefenseChoice.parse(request.defenses[0])
    told = told_of(Console(stderr=True), "training")
    defense, victim = attach(choice, bare, data, config.cache_folder, told)
    image = data.take(Split.EVAL, 1).images[0]
    # Queries of one client are no company of each other: a coupled defense sees them one by one.
    desk_victim = Defended(victim, defense, surroundings.batch_for(image.numel()))
    defended = str(choice) != str(undefended())
    about = Description(
        name=_name(f"{model.name}-{choice}" if defended else model.name),
        num_classes=data.num_classes,
        shape=(int(image.shape[0]), int(image.shape[1]), int(image.shape[2])),
        shows=str(request.scores),
        randomised=defense.traits.randomised or bool(bare.remote and bare.remote.traits.randomised),
        stateful=defense.traits.stateful or bool(bare.remote and bare.remote.traits.stateful),
        max_images=max_images,
        fingerprint=digest({"victim": victim.fingerprint, "defense": choice.record()}),
    )
    desk = Desk(desk_victim.fresh, request.seed, torch.device(device))
    words = f"{model.name} on {data.name} behind {choice}, answers show {request.scores}"
    return Service(desk, about), words


def _name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-.+_")[:100]
