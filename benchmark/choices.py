"""Which attacks a request names, and whether they can do what it asks for."""

from __future__ import annotations

from dataclasses import replace

from benchmark import params
from benchmark.catalogue import ATTACKS
from benchmark.entry import Choice
from benchmark.errors import SpecError
from benchmark.facts import AttackFacts
from benchmark.request import Request
from benchmark.types import Access, Aim


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
