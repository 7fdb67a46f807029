"""Which attacks a request names, and whether they can do what it asks for."""

from __future__ import annotations

from dataclasses import replace

from benchmark import params
from benchmark.catalogue import ATTACKS
from benchmark.entry import Choice
from benchmark.errors import SpecError
from benchmark.facts import AttackFacts
from benchmark.loading import load_victim
from benchmark.measuring import Subject
from benchmark.request import Request
from benchmark.scores import Kind
from benchmark.surroundings import Surroundings
from benchmark.types import Access, Aim, Probes


def attack_choices(text: str, request: Request) -> list[Choice[AttackFacts]]:
    """Resolve one attack, once for each number of repeats that the request names.

    Raises:
        SpecError: If the attack cannot do what the request asks for.
    """
    choice = ATTACKS.choose(text)
    _check_attack(choice, request)
    if request.eot is None:
        choices = [choice]
    elif choice.values["eot"] != 1:
        raise SpecError(f"attack '{text}' and --eot both say how often a question is asked")
    else:
        values = [
            params.resolve(choice.entry.parameters, {**choice.values, "eot": m}, text)
            for m in request.eot
        ]
        choices = [replace(choice, values=value) for value in values]
    for each in choices:
        if each.values["eot"] > request.queries:
            raise SpecError(
                f"attack '{each}' asks each question {each.values['eot']} times, "
                f"but --queries is {request.queries}"
            )
    return choices


def check_shown(request: Request, subject: Subject, surroundings: Surroundings) -> None:
    """Refuse to show attacks more than a victim that runs elsewhere shows, or to ask it more.

    Raises:
        SpecError: With what to write instead.
    """
    texts = subject.model.text, subject.dataset.text
    remote = load_victim(*texts, surroundings.config, surroundings.device).remote
    if remote is None:
        return
    if not remote.shows.covers(request.scores):
        alone = "labels" if remote.shows.kind is Kind.LABEL else str(remote.shows)
        raise SpecError(
            f"model '{subject.model.name}' shows {alone} alone, less than --scores "
            f"{request.scores}: add --scores {remote.shows}"
        )
    if request.probes is Probes.FREE:
        raise SpecError(
            f"model '{subject.model.name}' takes images in [0, 1] alone: leave --probes free out"
        )


def _check_attack(choice: Choice[AttackFacts], request: Request) -> None:
    facts, name = choice.entry.facts, choice.entry.name
    if request.norm not in facts.norms:
        allowed = ", ".join(facts.norms)
        raise SpecError(
            f"attack '{name}' does not support --norm {request.norm}. Allowed: {allowed}."
        )
    if choice.preset and facts.presets[choice.preset].norm not in {None, request.norm}:
        fitting = [n for n, p in facts.presets.items() if p.norm in {None, request.norm}]
        raise SpecError(
            f"preset '{name}@{choice.preset}' is for {facts.presets[choice.preset].norm}, the run "
            f"has --norm {request.norm}. Allowed: {', '.join(fitting) or 'none'}."
        )
    aim = Aim.TARGETED if request.targeted else Aim.UNTARGETED
    if aim not in facts.aims:
        hint = "give --targeted" if aim is Aim.UNTARGETED else "leave --targeted out"
        raise SpecError(f"attack '{name}' is {facts.aims[0]} only: {hint}")
    granted = request.scores.access
    # Untargeted, the best classes are all that a loss needs: without the true label it is a hit.
    enough = granted is Access.TOPK and not request.targeted
    order = list(Access)
    if order.index(facts.access) < order.index(granted) and not (
        enough and facts.access is Access.SCORES
    ):
        raise SpecError(
            f"attack '{name}' needs access '{facts.access}', but --scores {request.scores} "
            f"shows '{granted}'"
        )
