"""The contract suite over everything that is registered: a new file is tested by being there."""

from __future__ import annotations

import pytest

from benchmark.catalogue import ATTACKS, DATASETS, DEFENSES, MODELS
from benchmark.config import load_config
from benchmark.contract import checks, judge


def _cases():
    for catalogue in (ATTACKS, DEFENSES, MODELS, DATASETS):
        for entry in catalogue:
            if getattr(entry.facts, "argument", ""):
                continue  # a catalogue of others' models or files: nothing of its own to check
            for example in ("", *getattr(entry.facts, "examples", ())):
                choice = catalogue.choose(entry.name + example)
                for name, check in checks(entry.kind).items():
                    yield pytest.param(choice, name, check, id=f"{choice}: {name}")


@pytest.mark.parametrize(("choice", "name", "check"), list(_cases()))
def test_an_entry_keeps_its_contract(choice, name, check):
    verdict = judge(name, check, choice, load_config())
    if verdict.status == "skipped":
        pytest.skip(verdict.detail)
    assert verdict.status == "ok", verdict.detail
