"""A run that joins a reference: the tables of one folder that had held the work of both."""

from __future__ import annotations

import command
import pandas as pd
import pytest
from command import refused

bench = command.bench
ASKED = ["--images", "4", "--queries", "6", "--shard", "2", "--jobs", "1", "--draws", "2"]
TAKEN = ["--images", "--timings"]


@pytest.fixture
def call(bench):
    def run(out, defenses, *more):
        attacks = ["--attacks", "square,nes"]
        done = bench("run", *attacks, "--defenses", defenses, *ASKED, "--out", out, *more)
        assert done.code == 0, done.err

    return run


@pytest.fixture
def accept(bench):
    def call(run, *more, name="mine"):
        return bench("accept", run, name, "--why", "w", "--reference", "reference", *more)

    return call


@pytest.mark.parametrize("more", [(), ("--match-drop", "10")])
def test_a_run_joins_as_if_it_had_been_there_from_the_start(call, accept, bench, tmp_path, more):
    call("first", "rnd,rounding", *more)
    call("second", "ornd", *more)
    call("first", "ornd", *more, "--out", "both")
    call("both", "rnd,rounding", *more)
    accept("first", *TAKEN)
    said = accept("second", "--join").out
    assert "2 cells added, 0 moved, 0 removed" in said
    folder = tmp_path / "reference" / "mine"
    for name in ("cells", "shards", "comparisons", "defenses", "flags"):
        found = (folder / f"{name}.csv").read_bytes()
        assert found == (tmp_path / "both" / f"{name}.csv").read_bytes(), name
    assert (folder / "images.parquet").read_bytes() == (
        tmp_path / "both" / "images.parquet"
    ).read_bytes()
    if more:
        found = (folder / "calibrations.csv").read_bytes()
        assert found == (tmp_path / "both" / "calibrations.csv").read_bytes()
    looks = set(pd.read_csv(folder / "defenses.csv")["look"])
    assert set(pd.read_csv(folder / "defense_timings.csv")["look"]) == looks
    assert bench("verify", "reference").out == "nothing wrong found\n"


def test_what_both_have_stays_the_references(call, accept, tmp_path):
    call("first", "rnd")
    accept("first", *TAKEN)
    before = (tmp_path / "reference" / "mine" / "cells.csv").read_bytes()
    assert "0 cells added, 0 moved, 0 removed, 4 as they were" in accept("first", "--join").out
    assert (tmp_path / "reference" / "mine" / "cells.csv").read_bytes() == before


def test_without_images_nothing_joins(call, accept, tmp_path):
    call("first", "rnd")
    assert "has no images.parquet" in refused(accept("first", "--join"))
    accept("first")
    log = (tmp_path / "reference" / "accepted.csv").read_bytes()
    assert "has no images.parquet" in refused(accept("first", "--join"))
    assert (tmp_path / "reference" / "accepted.csv").read_bytes() == log


def test_images_of_another_run_are_refused(call, accept, tmp_path):
    call("first", "rnd")
    call("second", "ornd")
    accept("first", *TAKEN)
    images = (tmp_path / "second" / "images.parquet").read_bytes()
    (tmp_path / "reference" / "mine" / "images.parquet").write_bytes(images)
    assert "not of the same run" in refused(accept("second", "--join"))


def test_joined_defenses_are_ranked_together(call, accept, bench, tmp_path):
    call("first", "rnd")
    call("second", "ornd")
    accept("first", *TAKEN)
    accept("second", "--join")
    done = bench("leaderboard", "--reference", "reference", "--out", "boards")
    assert done.code == 0, done.err
    board = (tmp_path / "boards" / "mine.md").read_text(encoding="utf-8")
    assert "rnd" in board and "ornd" in board
