"""`--match-drop` and `bench calibrate`, from the command to the tables; flags of attacks."""

from __future__ import annotations

from pathlib import Path

import command
import numpy as np
import pandas as pd
import pytest
from command import refused, tables

from benchmark import measuring
from benchmark.flags import flags_of_attacks
from benchmark.measured import Measured

bench = command.bench
RUN = ["run", "--attacks", "square", "--images", "10", "--queries", "10", "--jobs", "1"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Look at fewer images, which is enough to see that it works."""
    monkeypatch.setattr(measuring, "LOOKED_AT", 200)
    monkeypatch.setattr("benchmark.muster.LOOKED_AT", 200)


def read(name, out="results/local"):
    return pd.read_csv(Path(out) / name)


def test_a_run_at_matched_drops_says_what_was_asked_and_what_it_came_to(bench, tmp_path):
    asked = "rnd,unig,feature[sigma=0.3]"
    shown = bench(*RUN, "--defenses", asked, "--match-drop", "2,5", "--cache", tmp_path / "c")
    assert shown.code == 0
    assert "unig at a drop of 2 points: saturated" in shown.err
    cells = read("cells.csv").set_index("defense")
    found = read("calibrations.csv")
    assert set(found["target"]) == {2, 5}
    assert set(found["defense"]) == {"rnd", "unig"}
    for _, row in found[found["defense"] == "rnd"].iterrows():
        cell = cells.loc[row["matched"]]
        assert cell["matched_drop"] == f"{row['target']:g}"
        assert abs(row["drop"] - row["target"] / 100) <= 0.0025
        assert (row["split"], row["images"], row["draws"]) == ("calibrate", 200, 5)
        assert 0 < cell["drop_error"] < 0.03
        assert row["target"] / 100 - 0.04 < cell["drop"] < row["target"] / 100 + 0.04
    assert cells.loc["unig[delta=1.0]", "matched_drop"] == "saturated"
    assert pd.isna(cells.loc["feature[sigma=0.3]", "matched_drop"])
    assert cells.loc["none", "drop"] == 0
    assert len(cells) == 5
    looks = read("defenses.csv").set_index("defense")
    assert looks["images"].eq(200).all()
    assert looks["drop"].equals(cells.loc[looks.index, "drop"])
    assert "2" in shown.out and "±" in shown.out


def test_strengths_are_remembered_and_tables_are_the_same_again(bench, tmp_path, monkeypatch):
    options = "--defenses", "rnd", "--match-drop", "3", "--cache", tmp_path / "c"
    assert bench(*RUN, *options).code == 0
    before = tables(Path("results/local"))
    assert bench(*RUN, *options, "--out", "again").code == 0
    assert tables(Path("again")) == before
    (curve,) = (tmp_path / "c" / "calibrations").glob("rnd-*")
    monkeypatch.setattr(measuring, "_curve", lambda *a: pytest.fail("not from the cache"))
    curve.write_text("[[")
    assert f"'{curve}' is damaged" in refused(bench(*RUN, *options, "--out", "third"))


def test_a_known_curve_is_not_measured_again(bench, tmp_path, monkeypatch):
    options = "--defenses", "rnd", "--match-drop", "3", "--cache", tmp_path / "c"
    assert bench("calibrate", *options, "--jobs", "1").code == 0
    asked = []
    real = measuring._right
    monkeypatch.setattr(measuring, "_right", lambda d, k: asked.append(str(d)) or real(d, k))
    assert bench("calibrate", *options, "--jobs", "1").code == 0
    assert asked == []
    assert bench("calibrate", *options, "--match-drop", "4", "--jobs", "1").code == 0
    assert "rnd[sigma=0.0]" in asked


def test_calibrate_prints_the_strengths_and_draws_the_curves(bench, tmp_path):
    shown = bench(
        "calibrate", "--defenses", "rnd,none", "--match-drop", "2", "--out", "o", "--jobs", 1
    )
    assert shown.code == 0
    lines = [line.split() for line in shown.out.splitlines()]
    assert any(line[:2] == ["rnd", "2"] and line[2].startswith("sigma=") for line in lines)
    assert "has no strength" in shown.out
    points = [line for line in lines if line[:1] == ["rnd"] and line[1].startswith("sigma=")]
    assert len(points) >= 5 and all("±" in line for line in points)
    picture = Path("o/calibrations.svg").read_text()
    assert "clean accuracy lost, points" in picture and "rnd (sigma)" in picture
    assert len(read("calibrations.csv", "o")) == 1
    again = bench(
        "calibrate", "--defenses", "rnd,none", "--match-drop", "2", "--out", "p", "--jobs", 1
    )
    assert again.code == 0
    assert Path("p/calibrations.svg").read_text() == picture


def test_images_that_the_victim_knows_by_heart_do_not_set_strengths(bench, monkeypatch):
    monkeypatch.setattr(measuring, "_KNOWN", -1.0)
    shown = bench("calibrate", "--defenses", "rnd", "--match-drop", "2", "--jobs", 1)
    assert "warning: the victim knows split 'calibrate'" in shown.err
    assert read("calibrations.csv")["split"].tolist() == ["eval"]


def measured(attack, broken, hits=None):
    """A cell of 40 images whose attack verified the hits of some of them."""
    at = np.where(np.isin(np.arange(40), broken), 5.0, np.inf)
    first = at if hits is None else np.where(np.isin(np.arange(40), hits), 2.0, at)
    cell = {"dataset": "d", "model": "m", "defense": "x", "attack": attack}
    cell |= {"norm": "linf", "eps": 0.03, "budgets": "5+10"}
    every, none = np.ones(40), np.full((40, 2), np.inf)
    wrong = np.zeros((40, 2), dtype=np.int64)
    return Measured(cell, every, every > 0, first, at, none < 0, wrong, 20, none, {})


def flags(*cells):
    return [(one["flag"], one["setting"].split(",")[0]) for one in flags_of_attacks(cells)]


def test_a_label_attack_that_beats_every_score_attack_is_flagged():
    strong, weak = measured("rays", range(30)), measured("square", range(10))
    assert flags(strong, weak, measured("nes", range(8))) == [("labels-beat-scores", "rays")]
    assert flags(strong, measured("square[p=0.3]", range(26))) == []
    assert flags(strong) == flags(weak) == []


def test_a_label_attack_that_breaks_other_images_only_by_chance_is_not():
    assert flags(measured("rays", range(10, 22)), measured("square", range(10))) == []


def test_hits_that_are_never_confirmed_are_flagged():
    assert flags(measured("nes", [0], hits=range(20))) == [("unconfirmed-hits", "nes")]
    assert flags(measured("nes", range(10), hits=range(20))) == []
    assert flags(measured("nes", [], hits=range(9))) == []
