"""Aims, repeats, presets, levels of scores and the worst case, from the command to the tables."""

from __future__ import annotations

import re

import command
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from command import SMALL

from benchmark import api
from benchmark.catalogue import ATTACKS, DEFENSES
from benchmark.config import Config
from benchmark.data import Split
from benchmark.loading import load_dataset, load_victim
from benchmark.measured import WORST_CASE
from benchmark.targets import draw_targets, starts

bench = command.bench

RUN = {"images": 24, "queries": 40, "budgets": (10, 40), "eps": 0.1, "shard": 12, "jobs": 1}


def images(folder):
    """Rows of `images.parquet` with the columns of their shard."""
    rows = pq.read_table(folder / "images.parquet").to_pandas()
    shards = pd.read_csv(folder / "shards.csv")
    return rows.merge(shards[["shard", "attack", "defense"]], on="shard", validate="many_to_one")


@pytest.mark.parametrize("defenses", ["none", "rnd"])
def test_the_worst_case_is_taken_image_by_image(tmp_path, defenses):
    cells = api.run(attacks="square,nes,square[p=0.5]", defenses=defenses, out=tmp_path, **RUN)
    rows = images(tmp_path)
    for defense in {"none", defenses}:
        mine = cells[cells["defense"] == defense]
        assert mine["attack"].tolist()[::2] == ["square", "nes", "square[p=0.5]", WORST_CASE]
        worst = mine[mine["attack"] == WORST_CASE]
        assert set(worst["members"]) == {"nes+square+square[p=0.5]"}
        assert bool(mine[mine["attack"] != WORST_CASE]["members"].isna().all())
        per_image = rows[rows["defense"] == defense].groupby("image")
        for _, row in worst.iterrows():
            first = per_image["broken_at"].min().fillna(np.inf)
            robust = per_image["attacked"].all() & (first > row["budget"])
            assert row["robust_accuracy"] == pytest.approx(robust.mean())
            others = mine[(mine["attack"] != WORST_CASE) & (mine["budget"] == row["budget"])]
            assert row["robust_accuracy"] <= others["robust_accuracy"].min()
            assert row["robust_accuracy_expected"] <= others["robust_accuracy_expected"].min()
            assert row["queries_used"] == others["queries_used"].sum()


def test_a_request_has_the_worst_case_of_its_own_attacks_whatever_lies_beside_it(tmp_path):
    both = api.run(attacks="square,nes", out=tmp_path, **RUN)
    more = api.run(attacks="square[p=0.5],nes", out=tmp_path, **RUN)
    assert set(both[both["attack"] == WORST_CASE]["members"]) == {"nes+square"}
    assert set(more[more["attack"] == WORST_CASE]["members"]) == {"nes+square[p=0.5]"}
    alone = api.run(attacks="square", out=tmp_path, **RUN)
    assert WORST_CASE not in set(alone["attack"])
    written = pd.read_csv(tmp_path / "cells.csv")
    assert set(written["members"].dropna()) == {"nes+square+square[p=0.5]"}


def test_other_protocols_have_a_worst_case_of_their_own(tmp_path):
    api.run(attacks="square", out=tmp_path, **RUN)
    api.run(attacks="nes", out=tmp_path, scores="rounded-3", **RUN)
    assert WORST_CASE not in set(pd.read_csv(tmp_path / "cells.csv")["attack"])


def test_targets_are_drawn_once_for_all_attacks_and_stored(tmp_path):
    cells = api.run(attacks="square,nes", defenses="rnd", targeted=True, out=tmp_path, **RUN)
    assert set(cells["aim"]) == {"targeted"}
    rows = images(tmp_path)
    attacked = rows[rows["attacked"]]
    assert bool((attacked["target"] != attacked["label"]).all())
    assert (attacked.groupby("image")["target"].nunique() == 1).all()
    data = load_dataset("mnist", Config()).take(Split.EVAL, 24)
    drawn = draw_targets(data.labels, data.ids.tolist(), 10, 0)
    expected = dict(zip(data.ids.tolist(), drawn.tolist(), strict=True))
    assert all(expected[i] == t for i, t in zip(attacked["image"], attacked["target"], strict=True))


def test_targets_are_spread_over_the_other_classes_and_differ_between_seeds():
    labels = torch.full((3000,), 3)
    found = draw_targets(labels, range(3000), 5, 0)
    counts = torch.bincount(found, minlength=5)
    assert counts[3] == 0
    assert bool(((counts - 750).abs() < 5 * 24)[[0, 1, 2, 4]].all())
    assert not torch.equal(found, draw_targets(labels, range(3000), 5, 1))


def test_starts_are_calibration_images_of_the_target_that_the_victim_gets_right():
    data, victim = load_dataset("mnist", Config()), None
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    targets = torch.arange(10).repeat(3)
    found = starts(targets, range(30), data, victim, 0)
    with torch.no_grad():
        assert torch.equal(victim(found).argmax(1), targets)
    pool = data.take(Split.CALIBRATE, len(data.splits[Split.CALIBRATE])).images
    assert all(bool((pool == image).flatten(1).all(1).any()) for image in found)
    assert len(torch.unique(found[::10].flatten(1), dim=0)) > 1


def test_a_targeted_run_is_harder_than_an_untargeted_one(tmp_path):
    more = {**RUN, "queries": 150, "budgets": (150,)}
    easy = api.run(attacks="square", out=tmp_path, **more)
    hard = api.run(attacks="square", targeted=True, out=tmp_path, **more)
    assert hard["robust_accuracy"].iloc[0] > easy["robust_accuracy"].iloc[0] + 0.1


def test_eot_is_crossed_with_every_attack_and_left_out_where_it_is_senseless(bench, tmp_path):
    out = bench("run", "--attacks", "square", "--defenses", "rnd", "--eot", "1,2", *SMALL)
    assert out.code == 0
    assert out.err.count("left out: ") == 1
    assert re.search(
        r"left out: against 'none' .* so these are not run: square\[eot=2\]\n", out.err
    )
    cells = pd.read_csv(tmp_path / "results/local/cells.csv")
    plain = cells[cells["members"].isna()]
    found = set(zip(plain["defense"], plain["attack"], strict=True))
    assert found == {("none", "square"), ("rnd", "square"), ("rnd", "square[eot=2]")}


def test_show_puts_presets_side_by_side_and_says_whose_they_are(bench):
    shown = bench("show", "nes").out
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}
    assert lines["settings"][:3] == ["probe", "pairs", "step"]
    assert lines["default"][:3] == ["0.01", "20", "none"]
    assert lines["@unig"] == ["0.0001804", "0.007843", "ce"]
    assert "nes@unig (linf): UniG, CIFAR-10" in shown


@pytest.mark.parametrize(
    ("catalogue", "text"),
    [
        (catalogue, f"{entry.name}@{preset}")
        for catalogue in (ATTACKS, DEFENSES)
        for entry in catalogue
        for preset in entry.facts.presets
    ],
)
def test_a_preset_says_whose_it_is_and_differs_from_the_default_or_says_so(catalogue, text):
    choice = catalogue.choose(text)
    assert str(choice) == text
    preset = choice.entry.facts.presets[choice.preset]
    assert preset.origin
    assert set(preset.values) <= set(choice.values)
    assert preset.norm is None or preset.norm in getattr(choice.entry.facts, "norms", ())
