"""Training and calibrating on the workers: once each, in their order, and what fails is a hole."""

from __future__ import annotations

import io
from pathlib import Path

import command
import pandas as pd
import pytest
import torch
from command import plugin, refused, tables
from rich.console import Console

from benchmark import measuring, preparation
from benchmark.backends import Workers
from benchmark.config import Config
from benchmark.files import place
from benchmark.fitting import attach_part
from benchmark.loading import load_dataset, load_victim
from benchmark.muster import muster, roster
from benchmark.preparation import prepare
from benchmark.request import make_request
from benchmark.store import Store
from benchmark.surroundings import Surroundings

bench = command.bench
ASK = ["run", "--attacks", "square", "--images", "4", "--queries", "5", "--shard", "2"]

LOUD = '''
from dataclasses import dataclass
from pathlib import Path

from benchmark.defense import Defense
from benchmark.registry import Level, Source, Traits, defense


@defense(source=Source(paper="", url="", year=2026), level=Level.WEIGHTS, traits=Traits())
@dataclass(kw_only=True)
class Loud(Defense):
    """Trained to larger weights."""

    factor: float = 2.0

    def recipe(self):
        return {{"factor": self.factor, "name": "{name}"}}

    def fit(self, victim, data):
        with Path({log!r}).open("a") as log:
            log.write(f"{name} {{self.factor}}\\n")
        {line}
        for weights in victim.network.parameters():
            weights.data.mul_(self.factor)
        yield 1.0
'''


def trainable(name, line="pass"):
    """A plug-in whose defense is trained; each training is a line of the file `log`."""
    path = plugin(name, LOUD.format(name=name, line=line, log=str(Path("log").resolve())))
    return "--plugin", path


def log():
    return sorted(Path("log").read_text().split("\n"))[1:]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Look at fewer images, which is enough to see that it works."""
    monkeypatch.setattr(measuring, "LOOKED_AT", 50)
    monkeypatch.setattr("benchmark.muster.LOOKED_AT", 50)
    monkeypatch.setattr("benchmark.tasks.look._SECONDS", 1e-9)


@pytest.mark.parametrize("jobs", [1, 2])
def test_everything_is_trained_once_in_its_order_and_alike_at_once(bench, jobs):
    paths = tuple(trainable(name)[1] for name in ("loud", "shrill"))
    where = Surroundings(Config(cache=Path("c").resolve()), paths)
    where.load_plugins()
    names = "loud,loud[factor=8],rnd+loud,loud+shrill,loud+rnd+shrill,shrill"
    request = make_request(attacked=False, defenses=names, images=4)
    said, called = io.StringIO(), roster(request, where)
    done = prepare([called], where, Store(Path("out")), Workers(jobs), Console(file=said))
    assert done.failed == {}
    assert log() == ["loud 2.0", "loud 8.0", "shrill 2.0", "shrill 2.0"]
    assert "\nfirst: training of loud+shrill on mnist-cnn\n" in said.getvalue()
    assert len(list(Path("c/trained").iterdir())) == 4
    assert [one.trained for one in muster(called, where, {}).defenses] == [True] * 7
    victim = load_victim("mnist-cnn", "mnist", where.config, "cpu")
    for one in muster(called, where, {}).defenses[1:]:
        factor = {"loud[factor=8.0]": 8, "loud+shrill": 4, "loud+rnd+shrill": 4}
        _, behind = attach_part(one.part, victim, load_dataset("mnist", where.config), Path("c"))
        for name, weights in behind.network.named_parameters():
            wanted = victim.network.get_parameter(name) * factor.get(one.part.name, 2)
            assert torch.equal(weights, wanted), (one.part.name, name)


def test_runs_of_a_suite_share_a_training_and_a_search(bench):
    suite = Path("ours.yaml")
    suite.write_text(
        "attacks: square\ndefenses: loud+rnd\nseed: [0, 0]\nimages: 4\nqueries: 5\nshard: 2\n"
        "runs: [{match_drop: 20}, {match_drop: 30}]\n"
    )
    outcome = bench("run", suite, *trainable("loud"), "--jobs", 1, "--cache", "c")
    assert outcome.code == 0, outcome.err
    assert log() == ["loud 2.0"]
    assert outcome.err.count("1 of 1 done: calibration of loud+rnd on mnist-cnn") == 1
    assert set(pd.read_csv("results/local/calibrations.csv")["target"]) == {20, 30}


def test_nothing_is_started_where_all_is_cached(bench, monkeypatch):
    ask = [*ASK, *trainable("loud"), "--defenses", "loud,rnd", "--match-drop", "20", "--jobs", 1]
    assert bench(*ask, "--cache", "c").code == 0
    monkeypatch.setattr(preparation, "execute", lambda *_: pytest.fail("nothing is to be done"))
    monkeypatch.setattr(measuring, "_right", lambda *_: pytest.fail("nothing is to be measured"))
    outcome = bench(*ask, "--cache", "c", "--out", "again")
    assert outcome.code == 0
    assert "first:" not in outcome.err
    assert tables(Path("again")) == tables(Path("results/local"))


def test_a_strength_that_is_written_out_is_told_of_whatever_is_cached(bench):
    ask = "calibrate", "--defenses", "rnd[sigma=0.1]", "--match-drop", "20", "--jobs", 1
    fresh, again = (bench(*ask, "--cache", "c").out for _ in range(2))
    assert fresh == again and "rnd[sigma=0.1]" in fresh


def test_a_training_that_fails_is_a_hole_and_the_others_go_on(bench):
    fails = trainable("broken", "raise RuntimeError('no gradient')")
    names = "loud,broken,loud+broken,broken+rnd,rnd"
    ask = [*ASK, *trainable("loud"), "--defenses", names, "--jobs", 1, "--cache", "c"]
    error = bench(*ask, *fails, "--out", "out")
    assert error.code == 1
    last = error.err.splitlines()[-1]
    assert "2 preparations failed: RuntimeError: no gradient. Tracebacks: out/failures." in last
    assert "training of broken on mnist-cnn; training of loud+broken on mnist-cnn; " in last
    assert "square against broken, images 0-1" in last
    assert last.endswith("; and 3 more.")
    assert log() == ["broken 2.0", "broken 2.0", "broken 2.0", "broken 2.0", "loud 2.0"]
    cells = pd.read_csv("out/cells.csv")
    assert cells["defense"].tolist() == ["loud", "none", "rnd"]
    failures = list(Path("out/failures").iterdir())
    assert len(failures) == 2 and all("no gradient" in f.read_text() for f in failures)
    bench.forget()
    assert bench(*ask, *trainable("broken"), "--out", "out").code == 0
    assert list(Path("out/failures").iterdir()) == []
    assert len(pd.read_csv("out/cells.csv")) == 6


def test_a_training_that_fails_once_is_said(bench):
    line = "assert 'flaky' in Path(__file__).with_name('log').read_text().partition('\\n')[2]"
    outcome = bench(
        *ASK, *trainable("flaky", line), "--defenses", "flaky", "--cache", "c", "--jobs", 1
    )
    assert outcome.code == 0, outcome.err
    assert "warning: training of flaky on mnist-cnn: once failed: AssertionError" in outcome.err
    assert log() == ["flaky 2.0", "flaky 2.0"]


def test_weights_that_cannot_be_kept_end_the_run_at_once(bench):
    Path("c").mkdir()
    Path("c/trained").write_text("in the way")
    outcome = bench(*ASK, *trainable("loud"), "--defenses", "loud", "--cache", "c", "--jobs", 1)
    assert outcome.code == 2
    assert "error: cannot write" in outcome.err.splitlines()[-1]
    assert log() == ["loud 2.0"]  # not trained for nothing once more


def test_workers_with_a_cache_of_their_own_are_told_of(bench, monkeypatch):
    monkeypatch.setattr(preparation, "attach", lambda *_: None)
    ask = [*ASK, *trainable("loud"), "--defenses", "loud", "--cache", "c", "--jobs", 1]
    error = bench(*ask)
    assert error.code == 2
    assert "training of loud on mnist-cnn is done, but its weights are not in 'c'" in error.err


SHY = '''
from dataclasses import dataclass

from benchmark.defense import Defense
from benchmark.registry import Level, Source, Traits, defense


@defense(
    source=Source(paper="", url="", year=2026), level=Level.LOGITS, traits=Traits(), strength="much"
)
@dataclass(kw_only=True)
class Shy(Defense):
    """Never answers twice."""

    much: float = 1.0

    def on_logits(self, logits, context):
        if self.much > 1e-6:
            raise RuntimeError("no")
        return logits
'''


def test_a_calibration_that_fails_is_a_hole_and_the_others_go_on(bench):
    shy = "--plugin", plugin("shy", SHY)
    drops = "--match-drop", "10,20", "--jobs", 1, "--cache", "c", "--out", "out"
    error = bench(*ASK, *shy, "--defenses", "rnd,shy", *drops)
    assert error.code == 1
    last = error.err.splitlines()[-1]
    assert "1 preparation failed: RuntimeError: no." in last
    assert "square against shy at a drop of 10 points, images 0-1" in last
    assert pd.read_csv("out/cells.csv")["defense"].str.startswith(("none", "rnd")).all()
    assert len(pd.read_csv("out/calibrations.csv")) == 2
    assert bench("calibrate", *shy, "--defenses", "rnd,shy", *drops).code == 1


def test_a_cache_that_another_run_writes_does_no_harm(bench, monkeypatch):
    def overwritten(path, data, *more):
        place(path, data if path.name.startswith("split-") else b"[]", *more)

    ask = [*ASK, "--defenses", "rnd", "--match-drop", "20", "--jobs", 1]
    assert bench(*ask, "--cache", "c", "--out", "a").code == 0
    monkeypatch.setattr(measuring, "place", overwritten)
    assert bench(*ask, "--cache", "d", "--out", "b").code == 0
    assert tables(Path("a")) == tables(Path("b"))


def test_mistakes_are_told_before_anything_is_trained(bench):
    path, runs = Path("two.yaml"), '[{defenses: loud}, {defenses: "feature[stages=nowhere]"}]'
    path.write_text(f"attacks: square\nimages: 4\nruns: {runs}\n")
    error = refused(bench("run", path, *trainable("loud"), "--cache", "c", "--out", "out"))
    assert "has no stage 'nowhere'" in error
    assert not Path("log").exists() and not Path("c").exists() and not Path("out").exists()
