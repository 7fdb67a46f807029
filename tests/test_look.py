"""Looks at clean answers: distances, calibration error, drops, costs, and what behaves oddly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmark.catalogue import DEFENSES
from benchmark.closeness import calibration_error, closeness
from benchmark.config import Config
from benchmark.flags import flags_of_look
from benchmark.muster import muster, roster
from benchmark.request import make_request
from benchmark.surroundings import Surroundings
from benchmark.tasks.look import run_look


def look(defense, tmp_path, images=60, **given):
    """Look at the embedded victim behind a defense."""
    surroundings = Surroundings(Config(cache=tmp_path))
    request = make_request(attacked=False, defenses=defense, images=images, **given)
    found = muster(roster(request, surroundings), surroundings, {})
    return run_look(found.looks[-1], surroundings)


def test_distances_are_what_their_names_say():
    bare = torch.tensor([[3.0, 1.0, -1.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    moved = bare + torch.tensor([[0.0, 0.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    found = closeness(moved, bare)
    assert found["logit_difference"] == pytest.approx((2 + 3**0.5) / 2)
    # The second row moves all classes alike, which no distance between classes shows.
    first = torch.tensor([-2.0, -2.0, 4.0], dtype=torch.float64).norm() / 3
    size = torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64).norm()
    assert found["logit_difference_relative"] == pytest.approx(float(first / size) / 2)
    apart = (moved.softmax(1) - bare.softmax(1)).abs()
    assert found["probability_difference"] == pytest.approx(float(apart.sum(1).mean()))
    change = float(moved[0].softmax(0).max() - bare[0].softmax(0).max())
    assert found["confidence_difference"] == pytest.approx(abs(change) / 2)


def test_log_probabilities_have_no_distance_to_logits():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = closeness(logits.log_softmax(1), logits)
    assert found["logit_difference"] is None
    assert found["logit_difference_relative"] == pytest.approx(0, abs=1e-12)
    assert found["probability_difference"] == pytest.approx(0, abs=1e-12)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy_bin_by_bin():
    shares = np.array([0.95, 0.95, 0.95, 0.95, 0.6, 0.6])
    logits = torch.from_numpy(np.log(np.stack([shares, 1 - shares], 1)))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    expected = (4 * abs(0.95 - 0.75) + 2 * abs(0.6 - 0.0)) / 6
    assert calibration_error(logits, labels) == pytest.approx(expected)
    assert calibration_error(torch.tensor([[60.0, 0.0]]), torch.tensor([0])) == pytest.approx(0)


def test_the_bare_victim_is_its_own_measure(tmp_path):
    found = look("none", tmp_path)["measured"]
    for name in ("drop", "logit_difference", "repeat_difference", "company_difference", "flat"):
        assert found[name] == pytest.approx(0, abs=1e-5), name
    assert found["label_kept"] == found["forward_equivalents"] == found["draws"] == 1
    assert found["calibration_error"] == found["calibration_error_undefended"] > 0
    assert found["parameters"] == 24_058


def test_a_noisy_defense_is_looked_at_several_times_and_paired_with_itself_without_noise(tmp_path):
    found = look("rnd[sigma=0.3]", tmp_path, votes=5)["measured"]
    assert found["draws"] == 5
    assert found["drop"] > 0.02
    assert 0 < found["drop_error"] < found["drop"] + 0.05
    assert found["label_kept"] < 0.99
    assert found["repeat_difference"] > 0.05
    assert found["traits"] == "randomised"
    bare = look("none", tmp_path)["measured"]
    assert found["drop"] == pytest.approx(bare["clean_accuracy"] - found["clean_accuracy"])


def test_a_stack_counts_its_drop_from_where_its_knob_is_zero(tmp_path):
    found = look("rnd[sigma=0.3]+unig[delta=0.001]", tmp_path)["measured"]
    assert abs(found["drop"]) < 0.02
    assert found["clean_accuracy"] < look("none", tmp_path)["measured"]["clean_accuracy"] - 0.02


@pytest.mark.parametrize("name", [e.name for e in DEFENSES if not e.build().recipe()])
def test_the_cost_of_every_defense_is_counted(name, tmp_path):
    cost = look(name, tmp_path, images=8, votes=1)["measured"]["forward_equivalents"]
    assert cost > 0.99


def test_backward_passes_are_counted(tmp_path):
    found = look("anti-adversary[steps=2]", tmp_path, images=8)["measured"]
    assert found["forward_equivalents"] == pytest.approx(5, abs=0.5)


def test_time_is_told_for_one_query_and_for_many(tmp_path):
    timing = look("none", tmp_path)["timing"]
    assert set(timing) == {
        f"{name}_{size}" for name in ("milliseconds", "times_bare") for size in (1, 64)
    }
    assert all(value > 0 for value in timing.values())


DOUBLE = """
from dataclasses import dataclass

import torch

from benchmark.defense import Defense
from benchmark.registry import Level, Source, Traits, defense

CALLS = []


SOURCE = Source(paper="none", url="", year=2026)


@defense(source=SOURCE, level=Level.ANSWER, traits=Traits({traits}))
@dataclass(kw_only=True)
class Odd(Defense):
    def answer(self, victim, images, context):
        CALLS.append(len(images))
        {body}
"""
BODIES = {
    "undeclared-noise": ("", "return victim(images) * (1.0 + 0.1 * (len(CALLS) % 3))"),
    "batch-dependence": ("randomised=True", "return victim(images) * (1.0 + 0.1 / len(images))"),
    "flat-scores": ("", "return victim(images).mul(0.01).round() + 0.0 * images.sum()"),
    "label-changed": ("keeps_label=True", "return victim(images).flip(1)"),
}


@pytest.mark.parametrize("flag", BODIES)
def test_a_defense_that_is_not_what_it_says_is_flagged(flag, tmp_path):
    traits, body = BODIES[flag]
    name = f"odd_{flag.replace('-', '_')}"
    plugin = tmp_path / f"{name}.py"
    plugin.write_text(DOUBLE.format(traits=traits, body=body))
    surroundings = Surroundings(Config(cache=tmp_path), (plugin,))
    request = make_request(attacked=False, defenses=name, images=24)
    found = muster(roster(request, surroundings), surroundings, {})
    row = run_look(found.looks[-1], surroundings)["measured"]
    names = {"dataset": "mnist", "model": "mnist-cnn", "defense": name}
    assert flag in {one["flag"] for one in flags_of_look({**names, **row})}


def test_honest_defenses_are_not_flagged(tmp_path):
    names = {"dataset": "mnist", "model": "mnist-cnn", "defense": "d"}
    for text in ("none", "rnd", "unig[variant=step-only]", "unig[composition=batch]"):
        assert flags_of_look({**names, **look(text, tmp_path)["measured"]}) == []
