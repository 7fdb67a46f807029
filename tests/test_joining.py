"""A run that joins a reference: the tables of one folder that had held the work of both."""

from __future__ import annotations

import re
import shutil

import command
import pytest
from command import refused

from benchmark import api, inspection
from benchmark.defense_records import CalibrationRow
from benchmark.records import names
from benchmark.store import CALIBRATIONS, Store

bench = command.bench
TABLES = ("cells.csv", "shards.csv", "comparisons.csv", "defenses.csv", "flags.csv")
WHOLE = (*TABLES, "calibrations.csv", "images.parquet")


def calibrated(folder, *defenses):
    """Plant strengths as a search leaves them."""
    for defense in defenses:
        row = dict.fromkeys(names(CalibrationRow), 0) | {"defense": defense, "target": 1.0}
        text = {"dataset": "mnist", "model": "mnist-cnn", "knob": "sigma", "split": "calibrate"}
        more = {"matched": f"{defense}[sigma=1]", "saturated": False}
        content = {"rows": [row | text | more], "points": []}
        Store(folder).write(f"{len(defense):016x}", content, CALIBRATIONS)
    inspection.collect(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, and one that did the work of both."""
    root = tmp_path_factory.mktemp("joining")
    asked = dict(attacks="square,nes", images=4, queries=6, shard=2, jobs=1, draws=2, votes=3)
    for folder, defenses in (("first", "rnd"), ("second", "ornd"), ("both", "ornd,rnd")):
        api.run(defenses=defenses, out=root / folder, **asked)
        calibrated(root / folder, *defenses.split(","))
    return root


@pytest.fixture
def accept(bench, runs):
    def call(run, *more):
        run = runs / run
        return bench("accept", run, "mine", "--why", "w", "--reference", "reference", *more)

    return call


@pytest.fixture
def mine(tmp_path):
    return tmp_path / "reference" / "mine"


def test_a_run_joins_as_if_it_had_been_there_from_the_start(accept, bench, runs, mine):
    accept("first", "--images", "--timings")
    said = accept("second", "--join").out
    assert "2 cells added, 0 moved, 0 removed, 4 as they were" in said
    for name in WHOLE:
        assert (mine / name).read_bytes() == (runs / "both" / name).read_bytes(), name
    rows = [
        (folder / "defense_timings.csv").read_text().splitlines()
        for folder in (mine, runs / "both")
    ]
    assert [line.split(",")[0] for line in rows[0]] == [line.split(",")[0] for line in rows[1]]
    done = bench("leaderboard", "--reference", "reference", "--out", "boards")
    assert done.code == 0, done.err
    board = (mine.parents[1] / "boards" / "mine.md").read_text(encoding="utf-8")
    assert all(re.search(rf"\| +{defense} +\|", board) for defense in ("rnd", "ornd"))


def test_what_both_have_stays_the_references(accept, mine):
    accept("first", "--images")
    before = (mine / "cells.csv").read_bytes()
    assert "0 cells added, 0 moved, 0 removed, 4 as they were" in accept("first", "--join").out
    assert (mine / "cells.csv").read_bytes() == before


def test_without_images_nothing_joins_and_nothing_is_recorded(accept, mine):
    assert "has no images.parquet" in refused(accept("first", "--join"))
    accept("first")
    log = (mine.parent / "accepted.csv").read_bytes()
    assert "has no images.parquet" in refused(accept("first", "--join"))
    assert (mine.parent / "accepted.csv").read_bytes() == log


def test_images_of_another_run_are_refused(accept, runs, mine):
    accept("first", "--images")
    shutil.copy(runs / "second" / "images.parquet", mine)
    assert "not of the same run" in refused(accept("second", "--join"))


def test_a_reference_without_a_table_is_named(accept, mine):
    accept("first", "--images")
    (mine / "defenses.csv").unlink()
    assert "has no defenses.csv" in refused(accept("second", "--join"))
