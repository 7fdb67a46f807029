"""Whole runs against endpoints: the numbers of local ones, verified, planned and paid."""

from __future__ import annotations

import signal
from pathlib import Path

import command
import pandas as pd
import pytest
from served import Caller, command_serving, grey, serving

bench = command.bench
SMALL = ["--images", "6", "--queries", "20", "--shard", "3", "--jobs", "1"]


def config(text):
    Path("querybench.toml").write_text(text)


def frame(out, name):
    table = pd.read_csv(Path(out) / name)
    own = ["model", "model_fingerprint", "cell", "shard", "parameters", "members"]
    table = table.drop(columns=own, errors="ignore")
    return table.sort_values(list(table.columns[:10]), ignore_index=True)


def test_the_same_numbers_come_over_the_network_as_from_here(bench, tmp_path):
    given = ["--attacks", "square,rays", "--scores", "logits", "--images", 6, "--queries", 30]
    given += ["--defenses", "rounding", "--shard", 3]
    jobs = ["--jobs", 2, "--backend", "threading"]
    assert bench("run", *given, "--jobs", 1, "--out", "local").code == 0
    with command_serving("--scores", "logits", cwd=tmp_path) as server:
        outcome = bench("run", *given, *jobs, "--model", f"http:{server.url}", "--out", "far")
        assert outcome.code == 0, outcome.err
        with Caller(server.url) as call:
            _, counts = call("GET", "/count")
        ended = server.end(signal.SIGTERM)
    assert ended == (0, f"answered {counts['answered']:,} images to 1 client\n", "")
    assert f"endpoint mnist-cnn: {counts['answered']:,} images answered, 0 req" in outcome.err
    for name in ("cells.csv", "shards.csv"):
        pd.testing.assert_frame_equal(frame("far", name), frame("local", name))
    columns = ["image", "queries", "first_hit", "broken_at", "distance"]
    far, local = (pd.read_parquet(f"{out}/images.parquet")[columns] for out in ("far", "local"))
    order = columns[:2]
    pd.testing.assert_frame_equal(
        far.sort_values(order, ignore_index=True), local.sort_values(order, ignore_index=True)
    )
    assert len(far) == 24


def test_a_randomised_endpoint_is_asked_to_verify_hits(bench):
    with serving("rnd[sigma=0.05]") as (url, service):
        given = ["--attacks", "square", "--model", f"http:{url}", *SMALL, "--votes", "5"]
        given += ["--eps", "0.3"]
        outcome = bench("run", *given, "--eot", "1,2", "--out", "out")
        assert outcome.code == 0, outcome.err
        answered = service.count()["answered"]
    cells = pd.read_csv("out/cells.csv")
    assert (cells["verification_queries"] > 0).any()
    assert set(cells["attack"]) >= {"square", "square[eot=2]"}  # which is senseless where all vary
    images = pd.read_parquet("out/images.parquet")
    assert set(images["clean_draws"]) == {5}
    looks = pd.read_csv("out/defenses.csv")
    assert list(looks["draws"]) == [5]
    assert list(looks["traits"]) == ["keeps_label, victim randomised"]
    assert len(pd.read_csv("out/flags.csv")) == 0
    assert f"{answered:,} images answered" in outcome.err


def test_a_stateful_endpoint_varies_too(bench):
    with serving("blacklight", scores="label") as (url, _):
        given = ["--attacks", "rays", "--model", f"http:{url}", *SMALL, "--scores", "label"]
        outcome = bench("run", *given, "--votes", "3", "--out", "out")
        assert outcome.code == 0, outcome.err
    assert set(pd.read_parquet("out/images.parquet")["clean_draws"]) == {3}


def test_defenses_stand_before_a_remote_victim(bench):
    defenses = "rnd,aaa-linear,blacklight,mixup-inference[draws=2]"
    given = ["--attacks", "square", "--defenses", defenses, *SMALL, "--votes", "3", "--draws", "2"]
    given += ["--images", "2"]
    with serving() as (url, service):
        where = ["--model", f"http:{url}", "--out", "out", "--cache", "cache"]
        planned = bench("plan", *given, *where)
        assert planned.code == 0, planned.err
        before = service.count()["answered"]
        outcome = bench("run", *given, *where)
        assert outcome.code == 0, outcome.err
        answered = service.count()["answered"] - before
    cells = pd.read_csv("out/cells.csv")
    assert len(set(cells["defense"])) == 5
    looks = pd.read_csv("out/defenses.csv").set_index("defense")
    assert looks.loc["mixup-inference[draws=2]", "forward_equivalents"] == 3  # bare, two mixtures
    assert len(pd.read_csv("out/defense_timings.csv")) == 0
    assert f"endpoint mnist-cnn: {answered:,} images answered" in outcome.err


@pytest.mark.parametrize(("behind", "randomised"), [("none", False), ("rnd", True)])
def test_an_endpoint_can_be_defended_for_others(behind, randomised):
    with (
        serving(behind) as (url, first),
        serving("rounding", model=f"http:{url}", scores="top-2") as (door, second),
        Caller(door) as call,
    ):
        _, about = call("GET", "/")
        found = call.labels(grey(3))
        counts = [one.count()["answered"] for one in (first, second)]
    assert about["name"].endswith("-rounding") and about["randomised"] is randomised
    assert [sum(score is not None for score in row) for row in found["scores"]] == [2] * 3
    assert counts == [3, 3]


def test_the_plan_of_a_priced_endpoint_is_not_passed(bench):
    with serving("rnd[sigma=0.1]") as (url, service):
        config(f'[endpoints.shop]\nurl = "{url}"\nprice = 0.1\nrate = 100000')
        given = ["--attacks", "square", "--model", "http:shop", "--votes", "3", *SMALL]
        planned = bench("plan", *given, "--out", "out", "--cache", "cache")
        assert planned.code == 0, planned.err
        assert service.count()["answered"] == 0  # nothing is timed, nothing is asked
        assert bench("run", *given, "--out", "out", "--cache", "cache").code == 0
        answered = service.count()["answered"]
        after = bench("plan", *given, "--out", "out", "--cache", "cache")
    words = planned.out.split("at most ")[-1].replace(",", "").split()
    most, price = int(words[0]), float(words[3])
    assert words[1:3] == ["images", "price"] and price == pytest.approx(most / 10, abs=0.01)
    # Clean answers, queries, verification of each, S3 of each; a look: bare, and twice each draw.
    images = 6 * (3 + 20 + 20 * 3 + 1 * 20) + 6 * (1 + 2 * 3) + 40
    assert most == images >= answered > 6 * 10
    assert "at most 0 images" in after.out and "elsewhere" in planned.out


def test_a_plan_asks_an_endpoint_no_more_than_it_says(bench):
    given = ["--attacks", "square", "--defenses", "aaa-linear[solver=exact]", *SMALL]
    with serving() as (url, service):
        given += ["--model", f"http:{url}", "--out", "out"]
        planned = bench("plan", *given)
        answered = service.count()["answered"]
        assert bench("run", *given).code == 0
        later = service.count()["answered"] - answered
    assert answered == 500  # calibration images that set its temperature
    assert "asked by this plan: endpoint mnist-cnn: 500 images answered" in planned.out
    most = 2 * 6 * 21 + 2 * (6 * 3 + 40)
    assert f"at most {most + 3 * 500:,} images" in planned.out
    assert 1000 < later <= 1000 + most  # once for all shards and looks, and at strength zero
