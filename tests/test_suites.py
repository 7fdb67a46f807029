"""Suites: what they come to, and mistakes told with file, line and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import bench, refused  # noqa: F401 - a fixture

from benchmark.config import Config
from benchmark.errors import BenchError, SpecError
from benchmark.plan import draft, plan
from benchmark.request import Exclusion
from benchmark.suites import ATTACK, load_suite, make_requests, suites
from benchmark.surroundings import Surroundings

HERE = Surroundings(Config())
TEXT = """summary: a try
attacks: [square, nes]
defenses: [rnd]
images: 4
queries: 20
seed: [0, 1]
runs:
  - pairs: [[simba, rounding]]
  - norm: l2
    eps: 1.0
    seed: 3
exclude:
  - {attack: nes, defense: rnd, reason: only a try}
"""


@pytest.fixture
def suite(tmp_path):
    def written(old="", new=""):
        assert old in TEXT
        path = tmp_path / "mine.yaml"
        path.write_text(TEXT.replace(old, new, 1))
        return str(path)

    return written


def met(request):
    cells = [shard.cell for shard in plan(draft(request, HERE), HERE).shards]
    return {(cell.attack.name, cell.defense.name) for cell in cells}


def test_runs_axes_pairs_and_exclusions(suite):
    requests = make_requests(suite())
    assert [(r.norm, r.seed) for r in requests] == [("linf", 0), ("linf", 1), ("l2", 3)]
    assert all(r.images == 4 and r.queries == 20 for r in requests)
    crossed = {("square", "none"), ("square", "rnd"), ("nes", "none")}
    assert met(requests[0]) == crossed | {("simba", "none"), ("simba", "rounding")}
    assert met(requests[2]) == crossed


def test_what_is_left_out_is_said_with_its_reason(suite):
    planned = plan(draft(make_requests(suite())[0], HERE), HERE)
    assert planned.left_out == ("'nes' against 'rnd': only a try",)


def test_what_is_given_wins_over_the_suite(suite):
    requests = make_requests(suite(), seed=9, attacks="nes", queries=7, eps=None)
    assert [(r.seed, r.attacks, r.queries) for r in requests] == [(9, ("nes",), 7)] * 2


def test_patterns_of_exclusions_are_of_names_and_whole_texts():
    one = Exclusion(attack="nes*", defense="at+*", reason="x")
    assert one.covers("nes-partial[pairs=3]", "at[steps=3]+rnd")
    assert not one.covers("nes", "at") and not one.covers("rgf", "at+rnd")
    exact = Exclusion(defense="rnd[sigma=0.1]", reason="x")
    assert exact.covers("nes", "rnd[sigma=0.1]") and not exact.covers("nes", "rnd")
    assert Exclusion(defense="rnd", reason="x").covers("nes", "rnd@aaa[clip=false]")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("nes]", "ness]", 2, "unknown attack 'ness'. Did you mean: nes"),
        ("[rnd]", "rnd[sigma=-1],unig", 3, "sigma=-1 is not allowed"),
        ("[rnd]", "\n  - unig\n  - rn", 5, "unknown defense 'rn'. Did you mean: rnd"),
        ("images: 4", "images: few", 4, "images=few is not allowed"),
        ("images: 4", "image: 4", 4, "unknown field 'image'. Did you mean: images?"),
        ("images: 4", "dataset: mnis", 4, "unknown dataset 'mnis'. Did you mean: mnist?"),
        ("images: 4", "model: resnet", 4, "unknown model 'resnet'"),
        ("images: 4", "queries: 4", 5, "has the field 'queries' a second time"),
        ("[0, 1]", "[0, -1]", 6, "seed=-1 is not allowed"),
        ("[0, 1]", "[]", 6, "seed names nothing"),
        ("rounding]]", "roundin]]", 8, "unknown defense 'roundin'. Did you mean: rounding"),
        ("norm: l2", "norm: l3", 9, "norm=l3 is not allowed: Input should be 'linf' or 'l2'"),
        ("eps: 1.0", "eps: 0", 10, "eps=0 is not allowed"),
        ("eps: 1.0", "radius: 1", 10, "unknown field 'radius'"),
        ("reason: only a try", "reason: ''", 13, "reason= is not allowed"),
        ("attack: nes", "attack: nee", 12, "falls under attack 'nee', defense 'rnd'"),
        ("runs:\n", "runs: 1\nbudgets:\n", 7, "runs is not a list of mappings"),
    ],
)
def test_a_mistake_is_told_with_its_line(suite, old, new, line, message):
    with pytest.raises(BenchError) as caught:
        make_requests(suite(old, new))
    said = str(caught.value)
    assert message in said and f"mine.yaml', line {line}" in said
    assert "\n" not in said


def test_a_mistake_in_what_is_given_is_not_the_files(suite):
    with pytest.raises(SpecError, match=r"^images=-1 is not allowed"):
        make_requests(suite(), images=-1)
    with pytest.raises(BenchError, match=r"^unknown attack 'ness'"):
        make_requests(suite(), attacks="ness")


@pytest.mark.parametrize("name", suites(ATTACK))
def test_a_built_in_suite_is_right(name):
    assert load_suite(name).data["summary"]
    assert make_requests(name)


def test_each_request_of_a_suite_gets_a_table(bench, suite):  # noqa: F811 - the fixture
    path = suite("seed: [0, 1]\nruns:\n  - pairs: [[simba, rounding]]\n", "runs:\n  - {}\n")
    outcome = bench("run", path, "--jobs", 1, "--out", "out")
    assert outcome.code == 0
    assert outcome.out.count("mnist-cnn on mnist") == 2
    assert "l2 eps 1, untargeted, 4 images, seed 3;" in outcome.out
    assert outcome.err.count("left out: 'nes' against 'rnd': only a try") == 1
    assert refused(bench("run", str(Path(path).with_name("no.yaml")), "--out", "out"))
