"""Flags from a run to its tables and warnings: defenses that are not what they say."""

from __future__ import annotations

import pandas as pd
import pytest
from command import bench, plugin  # noqa: F401 - the first is a fixture

DEFENSE = '''
from dataclasses import dataclass

from torch.nn.functional import one_hot

from benchmark.defense import Defense
from benchmark.registry import Level, Source, Traits, defense

CALLS = []


@defense(
    source=Source(paper="none", url="", year=2026), level=Level.ANSWER, traits=Traits({traits})
)
@dataclass(kw_only=True)
class Liar(Defense):
    def answer(self, victim, images, context):
        """Do what the last line says."""
        CALLS.append(len(images))
        logits, rows = victim(images), context.rows
        {line}
'''
TURNED = "logits[odd] = logits[odd].roll(1, dims=1); return logits"
LIARS = {
    "unsteady": ("", "return logits * (1.0 + 0.1 * (len(CALLS) % 3))", {"undeclared-noise"}),
    "turns": ("keeps_label=True", f"odd = rows % 3 == 0; {TURNED}", {"label-changed"}),
    "crowd": ("randomised=True", "return logits * (1.0 + 0.5 / len(images))", {"batch-dependence"}),
    # Shows the label alone: nothing for score attacks to climb, all that label attacks need.
    "stairs": (
        "keeps_label=True",
        "return one_hot(logits.argmax(1), logits.shape[1]).to(logits) + 0.0 * logits",
        {"flat-scores", "labels-beat-scores"},
    ),
    # One answer in ten is wrong, whatever the image: hits come and are never confirmed.
    "lucky": (
        "randomised=True",
        f"odd = context.rng.uniform(rows, (1,))[:, 0] < 0.1; {TURNED}",
        {"unconfirmed-hits"},
    ),
}


@pytest.fixture
def flagged(bench):  # noqa: F811
    def run(*names, **options):
        words = [f"--{option}={value}" for option, value in options.items()]
        for name in names:
            traits, line, _ = LIARS[name]
            words += ["--plugin", plugin(name, DEFENSE.format(traits=traits, line=line))]
        outcome = bench("run", *words, "--defenses", ",".join(names), "--jobs", "1", "--out", "out")
        assert outcome.code == 0, outcome.err
        check(names, pd.read_csv("out/flags.csv"), outcome.err)

    return run


def check(names, table, told):
    for name in names:
        for flag in LIARS[name][2]:
            assert flag in set(table[table["defense"] == name]["flag"]), name
            assert f"warning: {flag}: {name}: " in told
    assert "none" not in set(table["defense"])


def test_flags_stand_in_the_table_and_are_told_with_the_run(flagged):
    flagged("unsteady", "turns", "crowd", attacks="square", images=24, queries=2)


def test_a_label_attack_that_beats_score_attacks_is_flagged_with_the_run(flagged):
    flagged("stairs", attacks="square[p=0.05],rays", images=30, queries=100)


def test_hits_that_are_never_confirmed_are_flagged_with_the_run(flagged):
    flagged("lucky", attacks="square", images=20, queries=40, eps=0.001)
