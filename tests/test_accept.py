"""`bench accept` takes the tables of a finished run, with a reason, or nothing at all."""

from __future__ import annotations

import json
import shutil

import command
import pandas as pd
import pytest
from command import refused

from benchmark import api, inspection
from benchmark.defense_records import CalibrationRow
from benchmark.records import AcceptedRow, names
from benchmark.store import CALIBRATIONS, Store

bench = command.bench
kept = command.kept
USUAL = {"cells.csv", "shards.csv", "comparisons.csv", "defenses.csv", "flags.csv"}


@pytest.fixture
def accept(bench, kept):
    def call(*args, run=kept, name="small/one", why="the first"):
        return bench("accept", run, name, "--why", why, "--reference", "reference", *args)

    return call


@pytest.fixture
def root(tmp_path):
    return tmp_path / "reference"


@pytest.fixture
def out(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "out")


def log(root):
    return pd.read_csv(root / "accepted.csv")


def test_tables_are_taken_as_they_are_and_the_reason_is_kept(bench, accept, kept, root):
    outcome = accept(why="  two\nlines, and a comma ")
    assert "small/one: 1 cells added, 0 moved, 0 removed, 0 as they were; recorded" in outcome.out
    folder = root / "small" / "one"
    assert {path.name for path in folder.iterdir()} == USUAL
    assert all((folder / name).read_bytes() == (kept / name).read_bytes() for name in USUAL)
    (row,) = log(root).to_dict("records")
    assert list(row) == names(AcceptedRow)
    assert (row["reference"], row["why"]) == ("small/one", "two lines, and a comma")
    shard = pd.read_csv(kept / "shards.csv").iloc[0]
    # Empty outside a checkout, and that is not equal to itself.
    assert f"{row['commit']} {row['dirty']}" == f"{shard['commit']} {shard['dirty']}"
    assert bench("verify", root).out == "nothing wrong found\n"


def test_images_and_times_are_taken_if_asked_for_and_never_grow_old(accept, kept, root):
    folder, more = root / "small" / "one", {"images.parquet", "defense_timings.csv"}
    accept("--images", "--timings")
    assert {path.name for path in folder.iterdir()} == USUAL | more
    for name in [*more, "calibrations.csv"]:
        (folder / name).write_text("of an older run")
    accept()
    assert {path.name for path in folder.iterdir()} == USUAL | more
    assert all((folder / name).read_bytes() == (kept / name).read_bytes() for name in more)


def test_calibrations_are_taken_where_there_are_any(accept, out, root):
    row = dict.fromkeys(names(CalibrationRow), 0) | {"defense": "rnd", "target": 1.0}
    Store(out).write("0" * 16, {"rows": [row], "points": []}, CALIBRATIONS)
    inspection.collect(out)
    accept(run=out)
    assert len(pd.read_csv(root / "small" / "one" / "calibrations.csv")) == 1


def test_cells_are_counted_by_what_became_of_them(accept, root, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    asked = dict(images=4, queries=5, jobs=1)
    api.run(attacks="square,nes,simba", out=run, **asked)
    api.run(attacks="square,nes,signhunt,rgf", out=other, **asked)
    accept(run=run)
    path = root / "small" / "one" / "cells.csv"
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    cells.loc[cells["attack"] == "nes", "robust_accuracy"] = "0.0"
    cells["cell"] = "made by an older version"
    cells.drop(columns="protocol").to_csv(path, index=False)
    outcome = accept(run=other, why="others")
    assert "2 cells added, 1 moved, 1 removed, 1 as they were" in outcome.out
    table = log(root)
    assert table[["added", "moved", "removed", "same"]].to_numpy().tolist() == [
        [3, 0, 0, 0],
        [2, 1, 1, 1],
    ]
    assert table["why"].tolist() == ["the first", "others"]


def cut(out):
    next((out / "shards").iterdir()).write_text("{")


def unfinished(out):
    """As if a run was killed: the tables are those of what is there."""
    next((out / "shards").iterdir()).unlink()
    inspection.collect(out)


def failed(out):
    (out / "failures").mkdir(exist_ok=True)
    (out / "failures" / "x.txt").write_text("Traceback")


def edited(out):
    path = out / "cells.csv"
    path.write_text(path.read_text().replace("square", "circle"))


BAD = {
    cut: "cannot be accepted: shard file",
    unfinished: "has no finished cell",
    failed: "1 pieces of work failed",
    edited: "is not what the files give",
    lambda out: shutil.rmtree(out / "shards"): "it has no folder 'shards'",
    shutil.rmtree: "is no folder of a run",
}


@pytest.mark.parametrize("change", BAD)
def test_what_is_damaged_or_not_finished_is_refused(accept, out, root, change):
    change(out)
    assert BAD[change] in refused(accept(run=out))
    assert not root.exists()


def test_cells_that_are_not_finished_are_refused_beside_finished_ones(accept, out, root):
    api.run(attacks="nes", images=4, queries=5, shard=2, jobs=1, out=out)
    files = [(path, json.loads(path.read_text())) for path in (out / "shards").iterdir()]
    next(path for path, shard in files if shard["cell"]["attack"] == "nes").unlink()
    inspection.collect(out)
    assert "1 cells are not finished" in refused(accept(run=out))
    assert not root.exists()


@pytest.mark.parametrize("name", ["../smoke", "/tmp/x", "a//b", "Big", "", ".", "a/..", "a/../b"])
def test_a_name_that_leads_elsewhere_is_refused(accept, root, name):
    assert "names no reference folder" in refused(accept(name=name))
    assert not root.exists()


@pytest.mark.parametrize("why", ["", " \n"])
def test_a_reason_is_needed(accept, root, why):
    assert "--why is empty" in refused(accept(why=why))
    assert not root.exists()


def test_the_reason_is_written_before_any_number(accept, root):
    root.mkdir()
    (root / "accepted.csv").mkdir()  # cannot be written
    refused(accept())
    assert not (root / "small").exists()
