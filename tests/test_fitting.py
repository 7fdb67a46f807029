"""Training that a defense asks for: once for each recipe, victim and data set, and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from support import refusal, tiny_dataset, tiny_victim
from torch import Tensor

from benchmark.catalogue import DEFENSES
from benchmark.checkpoints import fingerprint
from benchmark.data import Dataset
from benchmark.defense import Defense
from benchmark.errors import StoreError
from benchmark.facts import DefenseFacts, Level, Source
from benchmark.fitting import attach
from benchmark.stack import DefenseChoice
from benchmark.victim import Victim

TRAINED: list[float] = []


@dataclass(kw_only=True)
class Doubled(Defense):
    """Multiplies the head's weights; what is shown besides is no part of the recipe."""

    factor: float = 2.0
    shown: int = 0

    def recipe(self) -> Mapping[str, object]:
        return {"factor": self.factor}

    def fit(self, victim: Victim, data: Dataset) -> Iterator[float]:
        TRAINED.append(self.factor)
        yield 0.5
        victim.network.get_parameter("3.weight").data.mul_(self.factor)
        self.learned = {"mean": torch.tensor(float(len(data.labels)))}
        yield 1.0


@pytest.fixture(autouse=True)
def doubled():
    TRAINED.clear()
    source = Source(paper="none", url="", year=2026)
    DEFENSES.add("doubled", Doubled, DefenseFacts(source, Level.WEIGHTS))
    yield
    DEFENSES.remove("doubled")


def put(text, cache, victim=None, told=None):
    victim = victim or known(tiny_victim())
    return attach(DefenseChoice.parse(text), victim, tiny_dataset(), cache, told)


def known(victim: Victim) -> Victim:
    victim.fingerprint = fingerprint(victim)
    return victim


def head(victim: Victim) -> Tensor:
    return victim.network.get_parameter("3.weight")


def test_a_copy_is_trained_and_what_it_learned_is_kept(tmp_path):
    victim = known(tiny_victim())
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    for _ in range(2):
        defense, behind = put("doubled", tmp_path, victim)
        assert torch.equal(head(behind), 2 * head(victim))
        assert behind.fingerprint == fingerprint(behind) != victim.fingerprint
        assert float(defense.learned["mean"]) == 60
        assert not behind.training
        assert not any(p.requires_grad for p in behind.parameters())
    assert all(torch.equal(value, before[name]) for name, value in victim.state_dict().items())
    assert TRAINED == [2.0]


def test_only_what_the_recipe_names_trains_anew(tmp_path):
    put("doubled", tmp_path)
    put("doubled[shown=3]", tmp_path)
    assert TRAINED == [2.0]
    put("doubled[factor=3]", tmp_path)
    assert TRAINED == [2.0, 3.0]
    other = tiny_victim()
    head(other).data.add_(1.0)
    put("doubled", tmp_path, known(other))
    assert TRAINED == [2.0, 3.0, 2.0]


def test_members_of_a_stack_stand_on_what_was_trained_before_them(tmp_path):
    defense, behind = put("doubled+rnd[sigma=0]", tmp_path)
    assert torch.equal(head(behind), 2 * head(tiny_victim()))
    assert float(defense.members[0].learned["mean"]) == 60


def test_training_tells_how_far_it_is(tmp_path):
    told = []
    put("doubled", tmp_path, told=lambda name, done: told.append((name, done)))
    assert told == [("doubled", 0.5), ("doubled", 1.0)]


def test_damaged_weights_are_named_and_not_used(tmp_path):
    put("doubled", tmp_path)
    (file,) = (tmp_path / "trained").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert file.name in refusal(StoreError, lambda: put("doubled", tmp_path))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "trained").write_text("in the way")
    assert "trained" in refusal(StoreError, lambda: put("doubled", tmp_path))
