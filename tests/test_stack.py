"""Several defenses on top of each other, and the strength that is turned."""

from __future__ import annotations

import math

import pytest
import torch
from support import streams, tiny_dataset, tiny_victim

from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.errors import SpecError
from benchmark.fitting import attach
from benchmark.stack import DefenseChoice, undefended

IMAGES = tiny_dataset().take(Split.EVAL, 6).images


def answers(text, tmp_path, victim=None):
    victim = victim or tiny_victim()
    defense, behind = attach(DefenseChoice.parse(text), victim, tiny_dataset(), tmp_path)
    return Defended(behind, defense, 64).answer(IMAGES, torch.arange(6), streams(6)), defense


def test_members_act_in_their_order_with_one_stream(tmp_path):
    sigma = 0.05
    found, _ = answers(f"rnd[sigma={sigma},clip=false]+feature[sigma=0]", tmp_path)
    noise = streams(6).normal(torch.arange(6), IMAGES.shape[1:]).to(IMAGES)
    assert torch.equal(found, tiny_victim()(noise * sigma + IMAGES))


def test_a_stack_of_defenses_at_strength_zero_is_the_bare_victim(tmp_path):
    found, _ = answers("rnd[sigma=0]+feature[sigma=0]+unig[delta=0]", tmp_path)
    assert torch.equal(found, tiny_victim()(IMAGES))


def test_noise_at_two_levels_differs_from_either_alone(tmp_path):
    both, _ = answers("rnd+feature", tmp_path)
    one, _ = answers("rnd", tmp_path)
    other, _ = answers("feature", tmp_path)
    bare = tiny_victim()(IMAGES)
    assert all(not torch.equal(both, part) for part in (one, other, bare))


def test_traits_of_a_stack_are_those_of_its_members(tmp_path):
    _, random = answers("rnd+unig[variant=step-only]", tmp_path)
    assert random.traits.randomised and not random.traits.coupled
    _, coupled = answers("rnd+unig[composition=batch]", tmp_path)
    assert coupled.traits.coupled and not coupled.traits.keeps_label


@pytest.mark.parametrize("upper", ["rnd", "unig", "feature"])
def test_a_defense_stands_on_an_adversarially_trained_victim(upper, tmp_path):
    stacked, _ = answers(f"at[epochs=1]+{upper}", tmp_path)
    trained, _ = answers("at[epochs=1]", tmp_path)
    bare, _ = answers(upper, tmp_path)
    assert not torch.equal(stacked, trained) and not torch.equal(stacked, bare)
    knob = DefenseChoice.parse(f"at[epochs=1]+{upper}").at(0.0)
    still, _ = answers(knob.spelled(), tmp_path)
    assert torch.equal(still, trained)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none+rnd", "'none' adds nothing to a stack"),
        ("rnd+feature+rnd[sigma=0.1]", "names a defense twice"),
    ],
)
def test_stacks_that_make_no_sense_are_refused(text, message):
    with pytest.raises(SpecError, match=message):
        DefenseChoice.parse(text)


def test_the_name_and_the_record_say_every_member():
    choice = DefenseChoice.parse("rnd[sigma=0.03]+feature[stages=layer1+layer2]")
    assert str(choice) == "rnd[sigma=0.03]+feature[stages=layer1+layer2]"
    record = choice.record()
    assert record["name"] == "rnd+feature"
    assert [member["name"] for member in record["stack"]] == ["rnd", "feature"]
    assert DefenseChoice.parse("rnd").record()["name"] == "rnd"
    assert "stack" not in DefenseChoice.parse("rnd").record()


def test_the_knob_is_that_of_the_last_member_that_has_one():
    choice = DefenseChoice.parse("unig+rnd")
    assert (choice.knob, choice.strength, choice.limit) == ("sigma", 0.02, math.inf)
    turned = choice.at(0.04)
    assert str(turned) == "unig+rnd[sigma=0.04]"
    assert DefenseChoice.parse(str(turned)).record() == turned.record()
    assert DefenseChoice.parse("rnd+unig").limit == 1.0
    assert undefended().knob == "" and undefended().strength is None
    with pytest.raises(SpecError, match="has no strength"):
        undefended().at(1.0)
    with pytest.raises(SpecError, match="delta=2"):
        DefenseChoice.parse("unig").at(2.0)


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("rnd", False),
        ("rnd[clip=false]", False),
        ("rnd[sigma=0.02]", True),
        ("unig[delta=0.3]+rnd", False),
        ("unig+rnd[sigma=0.1]", True),
        ("none", False),
    ],
)
def test_a_strength_that_is_written_out_is_fixed(text, fixed):
    assert DefenseChoice.parse(text).fixed is fixed
