"""What fails during a run is one line, and what was finished stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import command
import pandas as pd
import pytest
from command import (
    LEAVES,
    RAISES,
    SMALL,
    attack,
    refused,
    stored,
    tables,
    world,
)

from benchmark.spec import SCHEMA

bench = command.bench
kept = command.kept


@pytest.mark.parametrize("model", ["seven", "liar"])
def test_a_victim_with_a_wrong_number_of_classes_is_one_line(bench, model):
    assert "7" in refused(world(bench, "--model", model))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "halfway"], "answered with NaN or infinity for row 0"),
        (["--dataset", "bright"], "data set 'bright' has pixel values from 0 to 1.8"),
    ],
)
def test_a_bad_image_costs_its_own_shard_only(bench, args, message):
    error = refused(world(bench, *args))
    assert message in error
    assert "1 shard and 1 look at clean images failed" in error
    assert [json.loads(data)["first"] for data, _ in stored(Path("out")).values()] == [0]
    assert pd.read_csv("out/shards.csv")["first"].tolist() == [0]
    assert pd.read_csv("out/cells.csv").empty


def test_an_attack_that_leaves_its_ball_is_named_with_its_row(bench):
    path = attack("leaver", LEAVES)
    error = refused(world(bench, "--attacks", "square,leaver", "--plugin", path))
    assert "2 shards failed: attack 'leaver' left its threat model for row 1" in error
    assert "0.02 with eps=0.01" in error
    assert pd.read_csv("out/cells.csv")["attack"].tolist() == ["square"]


def test_a_bug_in_a_plug_in_keeps_its_traceback_until_it_is_repaired(bench):
    args = "--attacks", "square,buggy", "--plugin", attack("buggy", RAISES)
    error = refused(world(bench, *args), code=1)
    assert "1 shard failed: RuntimeError: two lines. Tracebacks: out/failures" in error
    (failure,) = Path("out/failures").iterdir()
    assert "Traceback" in failure.read_text()
    assert failure.stem not in {name.removesuffix(".json") for name in stored(Path("out"))}
    before = stored(Path("out"))
    assert len(before) == 3
    assert f"failed: {failure.stem}: " in bench("status", "--out", "out").out
    bench.forget()
    attack("buggy", "pass")
    assert world(bench, *args).code == 0
    assert not failure.exists()
    assert before.items() < stored(Path("out")).items()
    assert "failed" not in bench("status", "--out", "out").out


def test_a_file_in_place_of_the_folder_is_one_line(bench):
    Path("file").touch()
    for out in ("file", "file/below", "/proc/nowhere"):
        outcome = bench("run", "--attacks", "square", *SMALL, "--out", out)
        assert f"cannot write results to '{out}'" in refused(outcome)


def test_a_disk_that_fills_up_keeps_what_was_finished(bench, monkeypatch):
    real, written = os.fsync, []

    def fsync(number):
        if len(written) == 2:  # one look, one shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(number)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    error = refused(bench("run", "--attacks", "square", *SMALL, "--out", "out"))
    assert "No space left on device" in error
    before = stored(Path("out"))
    assert [Path(name).suffix for name in before] == [".json"]
    assert {path.name for path in Path("out").iterdir()} == {"shards", "looks", ".lock"}
    monkeypatch.setattr(os, "fsync", real)
    assert bench("run", "--attacks", "square", *SMALL, "--out", Path("out")).code == 0
    assert before.items() < stored(Path("out")).items()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 32 KiB that can be made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, check=False, capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_a_larger_one_goes_on(bench, small_disk, tmp_path):
    command = ["run", "--attacks", "square", *SMALL, "--images", 12, "--shard", 1]
    out = small_disk / "out"
    assert "No space left on device" in refused(bench(*command, "--out", out))
    before = stored(out)
    assert 0 < len(before) < 12
    assert all(json.loads(data)["count"] == 1 for data, _ in before.values())
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert f"{len(before)} of 12 shards are done" in bench(*command, "--out", out).err
    assert before.items() < stored(out).items()
    assert bench(*command, "--out", tmp_path / "large").code == 0
    assert tables(out) == tables(tmp_path / "large")


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda _text: "",
    "another number": lambda text: text.replace('"first": 0', '"first": 2'),
    "not a number": lambda text: text.replace('"first": 0', '"first": NaN'),
    "no shard": lambda _text: "[1]",
    "an older schema": lambda text: text.replace(f'"schema": {SCHEMA}', '"schema": 0'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_reported_and_run_again(bench, kept, tmp_path, damage):
    out = shutil.copytree(kept, tmp_path / "out")
    (path,) = (p for p in (out / "shards").iterdir() if '"first": 0' in p.read_text())
    path.write_text(DAMAGE[damage](path.read_text()))
    said = bench("status", "--out", out)
    assert "2/4" in said.out
    assert f"damaged: shard file '{path}'" in said.out
    outcome = bench("run", "--attacks", "square", *SMALL, "--out", out)
    assert outcome.code == 0
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"warning: shard file '{path}'" in warnings[0]
    assert tables(out) == tables(kept)


def test_a_damaged_shard_of_another_request_is_missed_aloud(bench, kept, tmp_path):
    out = shutil.copytree(kept, tmp_path / "out")
    (path,) = (p for p in (out / "shards").iterdir() if '"first": 0' in p.read_text())
    path.write_text("{}")
    outcome = bench("run", "--attacks", "square", *SMALL, "--seed", "5", "--out", out)
    assert outcome.code == 0
    (warning,) = (line for line in outcome.err.splitlines() if line.startswith("warning: "))
    assert str(path) in warning and warning.endswith("it is missing in the tables")
    assert pd.read_csv(out / "cells.csv")["seed"].tolist() == [5]


def test_a_plug_in_that_ends_the_process_is_refused(bench):
    path = attack("quitter", "pass")
    Path(path).write_text("import sys; sys.exit(0)")
    error = refused(bench("run", "--attacks", "square", *SMALL, "--plugin", path))
    assert "cannot be imported: SystemExit" in error


def test_a_check_that_checked_nothing_fails(bench):
    outcome = bench("check", "folder:nowhere")
    assert outcome.code == 2 and "skipped" in outcome.out
    assert "no check could run: folder" in outcome.err


def test_there_is_one_bare_victim(bench):
    Path("bare.py").write_text(
        "from benchmark.defense import Defense\n"
        "from benchmark.registry import Level, Source, Traits, defense\n"
        "@defense(source=Source(paper='', url='', year=2026), level=Level.NOWHERE,\n"
        "         traits=Traits())\n"
        "class Bare(Defense):\n    pass\n"
    )
    error = refused(bench("list", "defenses", "--plugin", "bare.py"))
    assert "level 'nowhere' is that of the bare victim" in error
