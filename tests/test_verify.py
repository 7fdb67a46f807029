"""`bench verify` finds what is wrong with a folder, and `bench collect` makes its tables anew."""

from __future__ import annotations

import json
import shutil
import threading

import command
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import refused

from benchmark import api, tables
from benchmark.spec import digest
from benchmark.store import Store

bench = command.bench
kept = command.kept
NUMBERS = ("cells.csv", "shards.csv")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of three attacks, one of them at two radii from one run; no test may change it."""
    out = tmp_path_factory.mktemp("made")
    asked = dict(defenses="rnd", images=4, queries=5, shard=2, jobs=1, out=out)
    api.run(attacks="square,nes", budgets="2,5", **asked)
    api.run(attacks="signflip", eps="0.1,0.2", run_to_budget=True, **asked)
    return out


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def bare(made, tmp_path):
    """The tables alone."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in NUMBERS:
        shutil.copy(made / name, folder)
    return folder


def findings(bench, folder):
    """Lines that `bench verify` prints; checks that the exit code goes with them."""
    outcome = bench("verify", folder)
    lines = outcome.out.splitlines()
    assert outcome.err == ""
    assert outcome.code == (lines != ["nothing wrong found"])
    return lines if outcome.code else []


def test_what_a_run_leaves_is_right(bench, made, bare):
    assert findings(bench, made) == findings(bench, bare) == []
    assert findings(bench, bare.parent) == []


def test_tables_whose_texts_look_like_numbers_are_right(bench, kept, tmp_path):
    for name in NUMBERS:  # one budget: its column has nothing but digits
        shutil.copy(kept / name, tmp_path)
    assert findings(bench, tmp_path) == []


def test_verify_writes_nothing(bench, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    findings(bench, out)
    bench("status", "--out", out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_folder_without_results_is_refused(bench, tmp_path):
    for name in ("verify", "collect"):
        assert "holds no results" in refused(bench(name, tmp_path))


def resealed(path, change):
    """Change a file and give it a digest and a place that fit."""
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)
    path.unlink()
    text = json.dumps({**content, "digest": digest(content)})
    (path.parent / f"{content['key']}.json").write_text(text)


def of(out, kind, attack=""):
    files = sorted((out / kind).glob("*.json"))
    return next(path for path in files if f'"attack": "{attack}' in path.read_text() or not attack)


CHANGES = {
    "key": (lambda c: c.update(key="0" * 16), "the key that follows from its content is"),
    "seed": (lambda c: c["cell"].update(seed=1), "the key of the cell, or a column of it"),
    "fingerprint": (lambda c: c["cell"].update(model_fingerprint="0"), "or a column of it"),
    "first": (lambda c: c.update(first=1), "the key that follows from its content is"),
    "query": (lambda c: c["images"]["queries"].__setitem__(0, 99), "its costs say"),
    "row": (lambda c: c["images"]["label"].pop(), "a column of its images has not 2 rows"),
    "column": (lambda c: c["images"].pop("label"), "its images have other columns"),
    "eps": (lambda c: c["cell"].pop("eps"), "content is not that of a run (KeyError"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_contradicts_itself_is_found(bench, out, change):
    path = of(out, "shards", "square")
    resealed(path, CHANGES[change][0])
    (line,) = findings(bench, out)
    assert CHANGES[change][1] in line


@pytest.mark.parametrize("place", [0, 1])
def test_a_look_whose_key_does_not_follow_is_found(bench, out, place):
    path = sorted((out / "looks").glob("*.json"))[place]
    resealed(path, lambda content: content["row"].update(images=5))
    (line,) = findings(bench, out)
    assert line == f"'{path}': its key does not follow from its content"


def test_damaged_and_foreign_files_are_found_by_name(bench, out):
    damaged, foreign = of(out, "shards"), out / "shards" / "notes.txt"
    damaged.write_text(damaged.read_text()[:100])
    foreign.write_text("mine")
    (out / "shards" / "half.tmp").write_text("of a run that goes on")
    cut, unknown = sorted(findings(bench, out), key=lambda line: str(foreign) in line)
    assert cut.startswith(f"shard file '{damaged}' is damaged")
    assert unknown == f"'{foreign}' is no file of a run"


@pytest.mark.parametrize("name", ["cells.csv", "images.parquet", "timings.csv", "flags.csv"])
def test_a_table_that_is_not_what_the_files_give_is_found_and_made_anew(bench, out, name):
    whole = (out / name).read_bytes()
    for data in (whole[:-2], whole.replace(b"0", b"1"), b"", None):
        if data == whole:  # a table of headers alone has no digits
            continue
        (out / name).unlink()
        if data is not None:
            (out / name).write_bytes(data)
        assert [line.split("'")[1] for line in findings(bench, out)] == [str(out / name)]
        assert "16 shards of 8 cells are in the tables" in bench("collect", out).out
        assert (out / name).read_bytes() == whole
    assert findings(bench, out) == []


def edit(folder, name, change):
    table = pd.read_csv(folder / name, dtype={"budgets": str, "cell": str, "shard": str})
    change(table).to_csv(folder / name, index=False)


def cell(column, value, row=0):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return change


TABLES = {
    "columns": ("cells.csv", lambda t: t.drop(columns="drop"), "is no table with the columns"),
    "order": ("cells.csv", lambda t: t[::-1], "rows are not sorted"),
    "twice": ("shards.csv", lambda t: pd.concat([t, t[-1:]]), "a row is there twice"),
    "count": ("cells.csv", cell("robust_accuracy", 0.3), "is no number of 4 images"),
    "interval": ("cells.csv", cell("robust_accuracy_expected_low", 0.0123), "the interval of"),
    "first hit": ("cells.csv", cell("robust_accuracy", 0.0), "more survive first hits"),
    "budget": ("cells.csv", cell("queries_used", 999), "more queries than the budget allows"),
    "rising": ("cells.csv", cell("robust_accuracy_first_hit", 0.0), "more queries break fewer"),
    "queries": ("cells.csv", cell("queries_used", 1), "asked other numbers of queries"),
    "members": ("cells.csv", lambda t: t.replace({"attack": {"nes": "sen"}}), "its members"),
    "shard": ("shards.csv", cell("first", 1), "its key does not follow from its columns"),
    "seed": ("shards.csv", cell("seed", 7), "the key of its cell, or a column, does not follow"),
    "holes": ("shards.csv", lambda t: t[1:], "its shards are not in shards.csv"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_tables_that_contradict_themselves_are_found(bench, bare, fault):
    name, change, message = TABLES[fault]
    edit(bare, name, change)
    assert any(message in line for line in findings(bench, bare))


def test_a_worst_case_better_than_its_members_is_found(bench, bare):
    def change(table):
        worst = table["attack"] == "worst-case"
        assert worst.any()
        columns = [c for c in table.columns if c.startswith("robust_accuracy")]
        best = [1.0 if not c.endswith("low") else 0.510109 for c in columns]
        table.loc[worst, columns] = best
        return table

    edit(bare, "cells.csv", change)
    assert any("an attack breaks more than all do" in line for line in findings(bench, bare))


def changed(column, value):
    def change(images):
        rows = images.to_pandas()
        rows[column] = [value, *rows[column][1:]]
        return pa.Table.from_pandas(rows, images.schema, preserve_index=False)

    return change


IMAGES = {
    "outcome": (changed("clean_correct", 0), "cells.csv does not follow from it: "),
    "cut": (lambda images: images[1:], "has 1 of the 2 images of shard "),
    "twice": (lambda images: pa.concat_tables([images, images[:1]]), "has 3 of the 2 images of "),
    "foreign": (
        lambda images: pa.concat_tables([images, changed("shard", "0" * 16)(images[:1])]),
        "has images of shards that are not in shards.csv",
    ),
    "columns": (lambda images: images.drop_columns("queries"), "is no table with the columns that"),
}


@pytest.mark.parametrize("fault", IMAGES)
def test_images_that_tables_do_not_follow_from_are_found(bench, made, bare, fault):
    images, path = pq.read_table(made / "images.parquet"), bare / "images.parquet"
    pq.write_table(images, path)
    assert findings(bench, bare) == []
    change, message = IMAGES[fault]
    pq.write_table(change(images), path)
    lines = findings(bench, bare)
    assert lines and all(line.startswith(f"'{path}': {message}") for line in lines)
    path.write_bytes(b"none")
    assert findings(bench, bare) == [
        f"'{path}': is no table with the columns that results/README.md documents"
    ]


def test_tables_are_not_overwritten_by_older_ones(out, monkeypatch):
    """Two runs end at once: the one that read first must not write last."""
    shard = of(out, "shards", "square")
    late, whole = shard.read_text(), (out / "shards.csv").read_bytes()
    shard.unlink()
    real, reading, other = tables.made, threading.Event(), []

    def slow(place):
        found = real(place)
        if not other:  # the first to rebuild: meanwhile the other run finishes
            shard.write_text(late)
            other.append(threading.Thread(target=lambda: tables.rebuild(Store(out))))
            other[0].start()
            reading.wait(0.3)
        return found

    monkeypatch.setattr(tables, "made", slow)
    tables.rebuild(Store(out))
    other[0].join()
    assert (out / "shards.csv").read_bytes() == whole
