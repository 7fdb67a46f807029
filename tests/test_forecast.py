"""`bench plan`: what it says is what a run then does, and it does nothing itself."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import command
import pandas as pd
import pytest
from command import refused, tables
from test_preparation import few, trainable  # noqa: F401 - a fixture

from benchmark import forecast as module
from benchmark.commands import planning
from benchmark.commands.planning import plan
from benchmark.commands.running import run
from benchmark.config import Config
from benchmark.forecast import forecast
from benchmark.suites import make_requests
from benchmark.surroundings import Surroundings

bench = command.bench
ASK = {"attacks": "square,nes,geoda", "defenses": "rnd,rounding", "images": 6, "shard": 4}
ASK |= {
    "queries": 10,
    "match_drop": "20,30",
    "eps": "0.05,0.1",
    "norm": "l2",
    "run_to_budget": True,
}


def words(ask):
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in ask.items())
    return [w for name, value in pairs for w in ([name] if value is True else [name, value])]


def look(ask=ASK, out="out"):
    """The forecast of the only victim, and all of it."""
    surroundings = Surroundings(Config(cache=Path("c").resolve()))
    whole = forecast(make_requests(**ask), surroundings, Path(out))
    (share,) = whole.shares.values()
    return share, whole


def test_a_run_does_what_was_foretold_and_then_nothing_is_left(bench):
    before, whole = look()
    assert not Path("c").exists() and not Path("out").exists()
    assert whole.first == (("calibration on mnist-cnn", "rnd"),)
    assert bench("run", *words(ASK), "--jobs", 1, "--cache", "c", "--out", "out").code == 0
    shards, cells = pd.read_csv("out/shards.csv"), pd.read_csv("out/cells.csv")
    assert len(before.shards) == len(before.todo) == len(shards)
    assert len({id(shard.cell) for shard in before.shards}) == shards["cell"].nunique()
    waiting = shards["defense"].str.startswith("rnd").sum()
    assert whole.waiting == waiting > 0
    runs = shards.drop_duplicates(
        ["attack", "defense", "first", "run_to_budget", "counted_queries"]
    )
    assert before.queries >= runs["counted_queries"].sum() > 0
    assert set(cells["defense"]) > {"none", "rounding"}
    after, later = look()
    assert (len(after.shards), after.work, after.queries) == (len(shards), (), 0)
    assert (later.first, later.waiting, later.unknown) == ((), 0, ())
    assert later.left_out == whole.left_out


def test_radii_that_share_a_run_share_its_queries(bench):
    ask = {"attacks": "geoda", "images": 6, "queries": 10, "norm": "l2", "eps": "0.05,0.1,0.2"}
    apart, _ = look(ask)
    shared, _ = look({**ask, "run_to_budget": True})
    assert (apart.queries, shared.queries) == (180, 60)
    assert len(apart.shards) == len(shared.shards) == 3


def test_what_was_measured_sets_the_price(bench, monkeypatch):
    monkeypatch.setattr(module, "_seconds", lambda *_: 0.25)
    ask = {"attacks": "square", "defenses": "anti-adversary", "images": 4, "queries": 10}
    first, whole = look(ask)
    assert whole.unknown == ("anti-adversary",)
    assert first.forwards == 2 * 40 + (4 + 4) * 9  # shards and looks
    assert bench("run", *words(ask), "--jobs", 1, "--cache", "c", "--out", "out").code == 0
    more = {**ask, "queries": 20}
    second, later = look(more)
    (cost,) = {cost for name, cost in second.costs.items() if name != "none"}
    assert cost == pytest.approx(5, abs=0.5) and later.unknown == ()
    assert second.forwards == pytest.approx(80 + 80 * cost)
    shown = bench("plan", *words(more), "--jobs", 2, "--cache", "c", "--out", "out").out
    assert re.search(r"mnist-cnn on mnist +cpu +2 +250 +60 s", shown), shown


def test_devices_are_timed_one_by_one_and_work_together(bench, monkeypatch):
    monkeypatch.setattr(module, "_seconds", lambda _, here: 3.0 if here.device == "cpu" else 1.5)
    monkeypatch.setattr("benchmark.devices.check_device", lambda _: None)
    monkeypatch.setattr("benchmark.devices.torch.device", lambda _: type("Any", (), {"type": ""}))
    shown = bench("plan", "--attacks", "square", "--images", 9, "--votes", 1, "--queries", 19,
                  "--devices", "cpu,cpu,cuda:0").out  # fmt: skip
    lines = [line.split()[3:] for line in shown.splitlines() if line.startswith("mnist-cnn on")]
    assert lines[1:] == [
        ["cpu", "2", "3e+03", "4", "min"],
        ["cuda:0", "1", "1.5e+03", "4", "min"],
        ["all", "3", "2", "min"],
    ]


def test_what_is_done_is_looked_for_under_the_device_that_was_named(bench, monkeypatch):
    seen = []
    monkeypatch.setattr("benchmark.devices.check_device", lambda _: None)
    monkeypatch.setattr(planning, "forecast", lambda _, here, __: seen.append(here.device))
    monkeypatch.setattr(planning, "page", lambda *_: "")
    assert bench("plan", "--attacks", "square", "--devices", "cuda:0,cuda:1").code == 0
    assert bench("plan", "--attacks", "square", "--device", "cuda").code == 0
    assert seen == ["cuda:0", "cuda"]


def test_nothing_is_trained_and_what_waits_is_said(bench):
    plugins = *trainable("loud"), *trainable("shrill")
    ask = "--attacks", "square,nes[eot=2]", "--defenses", "loud+shrill,loud,loud+rnd,rnd[sigma=0.1]"
    more = "--images", 6, "--shard", 4, "--match-drop", "10,20", "--cache", "c", "--out", "out"
    outcome = bench("plan", *ask, *more, *plugins)
    assert outcome.code == 0, outcome.err
    assert not Path("c").exists() and not Path("out").exists() and not Path("log").exists()
    assert "first: training on mnist-cnn: loud, loud+shrill\n" in outcome.out
    assert "first: calibration on mnist-cnn: loud+rnd\n" in outcome.out
    # Steady ones do without nes[eot=2]: two shards each for loud, loud+shrill; eight for the drops.
    assert "12 shards wait for these" in outcome.out
    assert "left out: against 'loud' a repeated question (eot > 1)" in outcome.out
    row = next(line for line in outcome.out.splitlines() if line.startswith("mnist-cnn on mnist"))
    # none, loud, loud+shrill once each; loud+rnd at two drops and rnd[sigma=0.1] against both.
    assert row.split()[3:] == ["2", "6", "9", "18", "0", "18", "54", "16,200"]


def test_several_victims_have_a_line_each(bench, monkeypatch):
    Path("two.yaml").write_text("attacks: square\nimages: 4\nruns: [{}, {model: tall}]\n")
    path = command.plugin(
        "tall",
        "from registry.models.mnist_cnn import mnist_cnn\n"
        "from benchmark.registry import model\n"
        "from benchmark.facts import Source\n\n\n"
        "@model(source=Source(paper='', url='', year=2026), weights='mnist-cnn.safetensors')\n"
        "def tall(request):\n    '''The same again.'''\n    return mnist_cnn(request)\n",
    )
    monkeypatch.setattr(module, "_seconds", lambda *_: 0.1)
    shown = bench("plan", "two.yaml", "--plugin", path, "--jobs", 1)
    assert shown.code == 0, shown.err
    lines = [re.split("  +", line.strip()) for line in shown.out.splitlines()]
    counts = ["1", "1", "1", "1", "0", "1", "4", "1,200"]
    assert ["mnist-cnn on mnist", *counts] in lines and ["tall on mnist", *counts] in lines
    # 1,200 queries and a look of four images and nine votes, twice.
    assert lines.count(["all", "all", "1", "4 min"]) == 1


@pytest.mark.parametrize(
    "args",
    [
        ["--attacks", "squire"],
        [],
        ["no-such-suite"],
        ["--attacks", "square", "--images", "100000000"],
        ["--attacks", "square", "--defenses", "feature[stages=nowhere]"],
        ["--attacks", "square", "--device", "cpu", "--devices", "cpu"],
        ["--attacks", "square", "--jobs", "1", "--devices", "cpu"],
        ["--attacks", "square[eot=2]", "--defenses", "none"],
    ],
)
def test_bad_input_is_told_as_by_run(bench, args):
    assert refused(bench("plan", *args)) == refused(bench("run", *args))


def test_options_are_those_of_run():
    mine, theirs = (inspect.signature(one).parameters for one in (plan, run))
    assert {n: p.default for n, p in mine.items()} == {n: p.default for n, p in theirs.items()}
    assert len(mine) > 30
    assert plan.__doc__ != run.__doc__


def test_tables_of_a_run_are_left_alone(bench):
    ask = {"attacks": "square", "images": 4, "queries": 5}
    assert bench("run", *words(ask), "--jobs", 1, "--out", "out").code == 0
    before = tables(Path("out")), sorted(Path("out").iterdir())
    shown = bench("plan", *words({**ask, "images": 3}), "--out", "out")
    assert shown.code == 0
    assert (tables(Path("out")), sorted(Path("out").iterdir())) == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "7 s"), (119, "119 s"), (150, "2 min"), (3600, "1 h 0 min"), (90061, "1 d 1 h")],
)
def test_durations_are_told_in_two_units(seconds, text):
    assert module._duration(seconds) == text
