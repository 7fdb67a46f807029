"""Shard files and the tables made from them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom
from support import refusal

from benchmark import records, tables
from benchmark.errors import StoreError
from benchmark.spec import SCHEMA, digest
from benchmark.statistics import median, wilson
from benchmark.store import Store

CELL = {
    "cell": "c" * 16, "dataset": "mnist", "dataset_fingerprint": "f", "model": "m",
    "model_fingerprint": "g", "defense": "rnd", "attack": "square", "norm": "linf", "eps": 0.3,
    "aim": "untargeted",
    "budgets": "10+50", "protocol": "draws=20", "parameters": '{"attack": {}}',
    "seed": 0, "images": 12,
    "run_to_budget": False,
}  # fmt: skip


def image(seed):
    """A random but possible outcome of one image, with budgets 10 and 50."""
    rng = random.Random(seed)
    correct = rng.randint(0, 9)
    attacked = 2 * correct > 9
    first = rng.choice([None, rng.randint(1, 50)]) if attacked else None
    broken = rng.choice([None, rng.randint(first, 50)]) if first else None
    return {
        "image": 1000 + seed, "label": rng.randint(0, 9), "target": None, "clean_draws": 9,
        "clean_correct": correct, "attacked": attacked,
        "queries": (broken or 50) if attacked else 0, "first_hit": first, "broken_at": broken,
        "distance": 0.25 if broken else None,
        "expected_broken": [rng.random() < 0.5 or not attacked for _ in range(2)],
        "wrong_answers": [rng.randint(0, 20) for _ in range(2)] if attacked else None,
        "trace_queries": [first, 50] if first else None,
        "trace_distances": [0.5, 0.25] if first else None,
    }  # fmt: skip


def shard(first, count, cell=None, images=None):
    """The content of a shard file of these images of a cell."""
    cell = {**CELL, **(cell or {})}
    rows = images or [image(place) for place in range(first, first + count)]
    return {
        "key": digest({"cell": cell["cell"], "first": first, "count": count}),
        "cell": cell, "first": first, "count": count,
        "costs": {"counted_queries": sum(row["queries"] for row in rows),
                  "verification_queries": 3 * count, "audit_queries": 9 * count,
                  "flagged_queries": count, "batch": 64},
        "provenance": {"commit": None, "dirty": None, "device": "cpu", "versions": "v"},
        "timing": {"started": "2024-01-01T00:00:00+00:00", "seconds": 1.0,
                   "queries_per_second": 2.0},
        "images": {name: [row[name] for row in rows] for name in rows[0]},
    }  # fmt: skip


def save(folder, shards):
    store = Store(folder)
    for content in shards:
        store.write(content["key"], content)
    return store


def cells(parts):
    return tables.cell_table([shard(first, count) for first, count in parts])


def test_what_is_written_is_read_and_nothing_else_is_there(tmp_path):
    store = Store(tmp_path / "new" / "folder")
    content = shard(0, 3)
    assert store.read(content["key"]) is None and store.saved() == []
    store.write(content["key"], content)
    store.write(content["key"], content)  # the same shard, finished twice
    assert store.read(content["key"]) == {"schema": SCHEMA, **content}
    assert store.saved() == [content["key"]]
    assert [path.name for path in store.shards.iterdir()] == [f"{content['key']}.json"]


def resealed(text, **changes):
    body = {**json.loads(text), **changes}
    del body["digest"]
    return json.dumps({**body, "digest": digest(body)})


DAMAGE = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "edited": lambda text: text.replace('"seed": 0', '"seed": 1'),
    "nan": lambda text: text.replace('"eps": 0.3', '"eps": NaN'),
    "infinite": lambda text: text.replace('"eps": 0.3', '"eps": Infinity'),
    "binary": lambda text: b"\xff\xfe\x00" + text.encode(),
    "zeros": lambda text: "\0" * len(text),
    "not a mapping": lambda text: "[1, 2]",
    "without digest": lambda text: text.replace('"digest"', '"d"'),
    "newer": lambda text: resealed(text, schema=SCHEMA + 1),
    "of another shard": lambda text: resealed(text, key="0" * 16),
    "without key": lambda text: resealed(text.replace('"key"', '"k"')),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_shard_is_refused_and_passed_over_by_tables(kind, tmp_path):
    good, bad = shard(0, 3, {"images": 3}), shard(0, 3, {"cell": "d" * 16, "images": 3})
    store = save(tmp_path, [good, bad])
    path = store.shards / f"{bad['key']}.json"
    damaged = DAMAGE[kind](path.read_text())
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    message = refusal(StoreError, lambda: store.read(bad["key"]))
    assert str(path) in message
    assert (f"schema {SCHEMA + 1}" if kind == "newer" else "damaged") in message
    assert list(tables.rebuild(store).of({CELL["cell"]})["cell"]) == [CELL["cell"]] * 2


@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_fails_midway_leaves_what_was_there(before, tmp_path, monkeypatch):
    store, content = Store(tmp_path), shard(0, 3)
    if before:
        store.write(content["key"], content)
    there = {path.name: path.read_bytes() for path in store.shards.iterdir()}

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    changed = {**content, "first": 5}
    message = refusal(StoreError, lambda: store.write(content["key"], changed))
    assert "No space left" in message and content["key"] in message
    assert {path.name: path.read_bytes() for path in store.shards.iterdir()} == there
    assert len(there) == before


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot write" in refusal(StoreError, lambda place=place: Store(place))


def test_results_that_cannot_be_kept_are_a_store_error(tmp_path):
    store, content = Store(tmp_path), shard(0, 3)
    store.shards.rmdir()
    store.shards.write_text("in the way")
    message = refusal(StoreError, lambda: store.write(content["key"], content))
    assert content["key"] in message
    store.failures.write_text("in the way")
    refusal(StoreError, lambda: store.fail("k", "Traceback"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_at_once(tmp_path):
    store, content = Store(tmp_path), shard(0, 3)
    store.shards.chmod(0o500)
    try:
        refusal(StoreError, lambda: Store(tmp_path))
        refusal(StoreError, lambda: store.write(content["key"], content))
    finally:
        store.shards.chmod(0o700)


def test_temporary_files_are_cleared_only_when_old(tmp_path):
    store = Store(tmp_path)
    old, young = store.shards / "a.1.tmp", store.shards / "b.2.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    foreign = tmp_path / "mine" / "thesis.tmp"
    foreign.parent.mkdir()
    for path in (foreign, tmp_path / "notes.tmp"):
        path.write_text("of the user")
        os.utime(path, (0, 0))
    assert Store(tmp_path).saved() == [] and old.exists()
    store.sweep()
    assert young.exists() and not old.exists()
    assert foreign.exists() and (tmp_path / "notes.tmp").exists()


def test_a_failure_is_kept_until_it_is_repaired(tmp_path):
    store = Store(tmp_path)
    store.fail("k", "Traceback: é")
    assert (store.failures / "k.txt").read_text(encoding="utf-8") == "Traceback: é"
    store.forgive("k")
    store.forgive("k")
    assert list(store.failures.iterdir()) == [] and store.saved() == []


MADE = [name for name in records.TABLES if name != "steals.csv"]  # which thefts make
GROUPINGS = ([(0, 12)], [(0, 5), (5, 5), (10, 2)], [(place, 1) for place in range(12)])


def test_every_order_of_shards_gives_the_same_bytes(tmp_path):
    shards = [shard(f, n, {"cell": c * 16}) for f, n in GROUPINGS[1] for c in "ce"]
    written = []
    for turn, order in enumerate((shards, shards[::-1], random.Random(0).sample(shards, 6))):
        store = save(tmp_path / str(turn), order)
        tables.rebuild(store)
        written.append({name: (store.folder / name).read_bytes() for name in MADE})
        frames = [tables.cell_table(order), tables.shard_table(order), tables.timing_table(order)]
        written[-1] |= {n: frame.to_csv().encode() for n, frame in enumerate(frames)}
        written[-1]["images"] = tables.image_table(order).to_pandas().to_csv().encode()
    assert written[0] == written[1] == written[2]


def test_every_grouping_into_shards_gives_the_same_cells():
    whole = cells(GROUPINGS[0])
    assert len(whole) == 2
    for parts in GROUPINGS[1:]:
        pd.testing.assert_frame_equal(cells(parts), whole)


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 5), (5, 5)],
        [(5, 7)],
        [],
        [(0, 8), (0, 4)],  # two sizes of shards: as many rows as images, not all of them
    ],
)
def test_an_incomplete_cell_has_no_row(parts):
    assert len(cells(parts)) == 0


def test_a_complete_cell_keeps_its_row_whatever_else_was_run():
    pd.testing.assert_frame_equal(cells([*GROUPINGS[0], *GROUPINGS[1]]), cells(GROUPINGS[0]))


SHARES = ["clean_accuracy", *(f"robust_accuracy{e}" for e in ("", "_first_hit", "_expected"))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=15))
def test_shares_are_counts_of_images_inside_their_intervals(seeds):
    images = [image(seed) for seed in seeds]
    found = tables.cell_table([shard(0, len(images), {"images": len(images)}, images)])
    assert list(found["budget"]) == [10, 50]
    for place, (_, row) in enumerate(found.iterrows()):

        def robust(name, budget=row["budget"]):
            return np.mean([i["attacked"] and (i[name] or 99) > budget for i in images])

        expected = [i["attacked"] and not i["expected_broken"][place] for i in images]
        assert row["clean_accuracy"] == pytest.approx(
            np.mean([i["clean_correct"] / 9 for i in images])
        )
        assert row["robust_accuracy"] == pytest.approx(robust("broken_at"))
        assert row["robust_accuracy_first_hit"] == pytest.approx(robust("first_hit"))
        assert row["robust_accuracy_expected"] == pytest.approx(np.mean(expected))
        assert row["robust_accuracy_first_hit"] <= row["robust_accuracy"]
        for times in (1, 10):  # a further answer is one of the twenty, drawn without repetition
            right = [
                i["attacked"] and hypergeom.pmf(0, 20, w, times)
                for i, w in ((i, (i["wrong_answers"] or [20, 20])[place]) for i in images)
            ]
            assert row[f"robust_accuracy_persistent_{times}"] == pytest.approx(np.mean(right))
        open_ = [i["attacked"] and 6 <= i["wrong_answers"][place] <= 14 for i in images]
        assert row["undecided"] == pytest.approx(np.mean(open_))
        for name in SHARES:
            assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 1
    later = found[[*SHARES[1:3]]].diff().iloc[1]
    assert (later <= 0).all()  # more queries break more


@pytest.mark.parametrize("chance", [0.02, 0.3, 0.5, 0.9])
def test_the_interval_covers_the_true_share_about_as_often_as_it_says(chance):
    counts = np.arange(201)
    ends = np.array([wilson(k / 200, 200) for k in counts])
    inside = (ends[:, 0] <= chance) & (chance <= ends[:, 1])
    assert 0.925 < binom.pmf(counts, 200, chance)[inside].sum() < 0.985


def test_few_answers_say_nothing_of_ten_submissions():
    images = [{**image(place), "wrong_answers": [1, 2]} for place in range(4)]
    found = tables.cell_table([shard(0, 4, {"images": 4, "protocol": "draws=9"}, images)])
    empty = ["robust_accuracy_persistent_1", "robust_accuracy_persistent_10", "undecided"]
    assert found[empty].isna().all(axis=None)


def test_the_interval_is_wilsons():
    low, high = wilson(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Newcombe 1998
    assert wilson(0.0, 10)[0] == 0.0 and wilson(1.0, 10)[1] == 1.0


@pytest.mark.parametrize(
    ("spent", "middle"),
    [
        ([], None), ([np.inf], None), ([np.inf, np.inf], None), ([3], 3), ([1, 4], 2.5),
        ([1, np.inf], None), ([1, 2, np.inf], 2), ([5, 1, np.inf, np.inf], None),
    ],
)  # fmt: skip
def test_the_median_counts_unbroken_images_as_infinite(spent, middle):
    assert median(np.array(spent, dtype=float)) == middle


def test_queries_are_averaged_over_the_broken_and_censored_over_the_attacked():
    hits = [4, 10, 30, None, None]
    images = [
        {**image(0), "attacked": place < 4, "first_hit": hit, "broken_at": hit, "queries": 50}
        for place, hit in enumerate(hits)
    ]
    found = tables.cell_table([shard(0, 5, {"images": 5}, images)])
    columns = ["queries_mean", "queries_median", "queries_median_censored"]
    assert found[columns].iloc[1].tolist() == pytest.approx([44 / 3, 10, 20])
    assert found[columns].iloc[0, :2].tolist() == [7, 7]
    assert pd.isna(found["queries_median_censored"].iloc[0])
    assert found["robust_accuracy"].tolist() == pytest.approx([0.4, 0.2])
    assert set(found["queries_used"]) == {250} and set(found["verification_queries"]) == {15}
    assert set(found["flagged_queries"]) == {5}


def test_tables_hold_the_documented_columns_and_every_image_has_its_shard(tmp_path):
    store = save(tmp_path, [shard(*part) for part in GROUPINGS[1]])
    tables.rebuild(store)
    found = {
        name: (pq.read_table if name.endswith("parquet") else pd.read_csv)(tmp_path / name)
        for name in MADE
    }
    found["images.parquet"] = found["images.parquet"].to_pandas()
    for name in MADE:
        row = records.TABLES[name]
        assert list(found[name].columns) == records.names(row), name
    images, shards = found["images.parquet"], found["shards.csv"]
    assert images.groupby("shard").size().to_dict() == dict(
        zip(shards["shard"], shards["count"], strict=True)
    )
    assert set(found["timings.csv"]["shard"]) == set(shards["shard"])
    assert set(shards["cell"]) == set(found["cells.csv"]["cell"])
    assert not images.duplicated(["shard", "image"]).any()
    assert int(images["queries"].sum()) == int(shards["counted_queries"].sum())


def test_tables_of_an_empty_folder_have_headers_only(tmp_path):
    assert tables.rebuild(Store(tmp_path)).shards == []
    for name, row in itertools.islice(records.TABLES.items(), 2):
        assert (tmp_path / name).read_text().strip() == ",".join(records.names(row))


def test_the_radius_is_written_exactly(tmp_path):
    store = save(tmp_path, [shard(*part, {"eps": 8 / 255}) for part in GROUPINGS[0]])
    tables.rebuild(store)
    for name in ("cells.csv", "shards.csv"):
        assert set(pd.read_csv(tmp_path / name)["eps"]) == {8 / 255}
