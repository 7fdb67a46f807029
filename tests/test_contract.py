"""The contract suite over everything that is registered: a new file is tested by being there."""

from __future__ import annotations

import pytest

from benchmark.catalogue import ATTACKS, DATASETS, DEFENSES, MODELS, STEALERS
from benchmark.config import Config, load_config
from benchmark.contract import checks, judge, variants
from benchmark.contract.defense import check_fresh_noise, check_randomised
from benchmark.contract.model import check_learned
from benchmark.contract.toy import small_victim
from benchmark.errors import SpecError
from benchmark.facts import ModelFacts
from benchmark.registry import Source
from registry.models.mnist_cnn import SHIPPED

# A paper's preset may draw once a call, or be silent on a toy; its entry's own settings may not.
NOISE = (check_randomised, check_fresh_noise)


def _presets(entry):
    """Presets of a defense that are not made for a victim of another architecture."""
    if entry.kind != "defense" or entry.name == "purify":  # whose presets take 100 steps a query
        return
    for name in entry.facts.presets:
        try:
            entry.build(**entry.settings(name)).check(small_victim())
        except SpecError:
            continue
        yield f"@{name}"


def _cases():
    for catalogue in (ATTACKS, DEFENSES, MODELS, DATASETS, STEALERS):
        for entry in catalogue:
            if getattr(entry.facts, "argument", ""):
                continue  # a catalogue of others' models or files: nothing of its own to check
            for example in (*_presets(entry), *variants(entry)):
                choice = catalogue.choose(entry.name + example)
                for name, check in checks(entry.kind).items():
                    if example.startswith("@") and check in NOISE:
                        continue
                    yield pytest.param(choice, name, check, id=f"{choice}: {name}")


@pytest.mark.parametrize(("choice", "name", "check"), list(_cases()))
def test_an_entry_keeps_its_contract(choice, name, check):
    verdict = judge(name, check, choice, load_config())
    if verdict.status == "skipped":
        pytest.skip(verdict.detail)
    assert verdict.status == "ok", verdict.detail


def guesses(request):
    victim = SHIPPED.load(request)
    victim.network.linear.weight.zero_()
    return victim


@pytest.mark.parametrize(("build", "status"), [(guesses, "failed"), (SHIPPED.load, "ok")])
def test_a_victim_has_to_know_one_of_the_data_sets_it_accepts(build, status):
    def stranger(request):
        return build(request)

    name = f"stranger-{status}"  # victims are remembered by name
    MODELS.add(name, stranger, ModelFacts(Source(paper="none", url="", year=2026)))
    try:
        verdict = judge("it has learned", check_learned, MODELS.choose(name), Config())
    finally:
        MODELS.remove(name)
    assert verdict.status == status
    assert ("on 'mnist'" in verdict.detail) == (status == "failed")
