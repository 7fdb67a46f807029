"""Stealing: suites, reported numbers beside measured ones, leaderboards, and the command."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import command
import pandas as pd
import pytest
from command import refused
from support import refusal

from benchmark import leaderboard
from benchmark.catalogue import STEALERS
from benchmark.errors import BenchError, SpecError, StoreError
from benchmark.records import names
from benchmark.stealing.board import curves
from benchmark.stealing.display import lines_of
from benchmark.stealing.reported import read_steal_table, steals_side_by_side
from benchmark.stealing.rows import StealRow
from benchmark.stealing.suites import make_steals
from benchmark.stealing.tables import read_steals
from benchmark.suites import STEAL, make_requests, suites

bench = command.bench
TABLE = "unig-table4"
REFERENCE = Path(__file__).parents[1] / "results" / "reference"


def row(**given):
    """One row of `steals.csv`."""
    usual = dict.fromkeys(names(StealRow))
    usual |= {
        "dataset": "cifar10", "model": "resnet56", "pool": "cifar10", "defense": "none",
        "attack": "knockoff", "scores": "log-probabilities", "seeds": "0", "budget": 50_000,
        "queries": 50_000, "on_the_way": False, "images": 100, "victim_accuracy": 0.93,
        "clean_accuracy": 0.93, "clean_accuracy_single": 0.93, "method": "pgd", "eps": 8 / 255,
        "robust_accuracy": 0.4, "robust_accuracy_low": 0.3, "robust_accuracy_high": 0.5,
        "robust_accuracy_single": 0.4, "parameters": "{}", "transfer": "x", "device": "cpu",
        "versions": "", "clone_accuracy": 0.8, "agreement": 0.82,
    }  # fmt: skip
    return {**usual, **given}


@pytest.fixture
def folder(tmp_path):
    """Results with three seeds, an ensemble, two checkpoints, two pools and a defense."""
    rows = [
        row(defense=defense, seeds=seeds, budget=budget, pool=pool, robust_accuracy=share)
        for defense, plus in (("none", 0.0), ("rnd", 0.2))
        for pool in ("cifar10", "mnist")
        for budget in (5000, 50_000)
        for seeds, share in (("0", 0.30 + plus), ("1", 0.40 + plus), ("0+1", 0.20 + plus))
    ]
    rows.append(row(attack="noise", pool=None, queries=0, budget=0, method="sign-noise"))
    (tmp_path / "all" / "x").mkdir(parents=True)
    table = pd.DataFrame(rows, columns=names(StealRow))
    table.to_csv(tmp_path / "all" / "x" / "steals.csv", index=False)
    return tmp_path / "all" / "x"


def test_seeds_are_put_together_and_ensembles_stand_beside(folder):
    lines = lines_of(read_steals(folder / "steals.csv"))
    assert len(lines) == 2 * 2 * 2 + 1
    first = lines[0]
    assert (first["defense"], first["pool"], first["queries"]) == ("none", "cifar10", "5000")
    assert first["pgd"] == "35.0 ± 7.1" and first["pgd, all clones"] == "20.0"
    assert first["clone"] == "80.0" and "verdict" not in first
    assert lines[-1]["sign-noise"] == "40.0" and lines[-1]["queries"] == ""


def test_seeds_that_differ_are_counted(folder):
    rows = read_steals(folder / "steals.csv")
    one = rows["seeds"] == "1"
    mixed = rows.assign(verdict=one.map({True: "informative", False: "uninformative"}))
    assert lines_of(mixed)[0]["verdict"] == "informative in 1 of 2"
    assert lines_of(rows.assign(verdict="informative"))[0]["verdict"] == "informative"


def test_other_scores_or_pools_or_schedules_are_no_other_seeds(folder):
    rows = read_steals(folder / "steals.csv")
    rows = rows[(rows["pool"] == "mnist") & (rows["defense"] == "none") & (rows["budget"] == 5000)]
    label = rows.assign(scores="label", robust_accuracy=0.9)
    lines = lines_of(pd.concat([rows, label]))
    shown = [(line["scores"], line["pgd"]) for line in lines]
    assert shown == [("log-probabilities", "35.0 ± 7.1"), ("label", "90.0")]
    few = rows.assign(pool_images=100.0, robust_accuracy=0.9)
    shown = [(line["pool"], line["pgd"]) for line in lines_of(pd.concat([rows, few]))]
    assert shown == [("mnist", "35.0 ± 7.1"), ("mnist (100)", "90.0")]
    way = rows.assign(on_the_way=True, robust_accuracy=0.9)
    shown = [(line["queries"], line["pgd"]) for line in lines_of(pd.concat([rows, way]))]
    assert shown == [("5000", "35.0 ± 7.1"), ("5000…", "90.0")]
    words = curves(pd.concat([rows, label, few])).decode()
    assert words.count("knockoff") == 3 and "mnist (100), log-probabilities" in words


def test_a_checkpoint_on_the_way_is_marked(folder):
    rows = read_steals(folder / "steals.csv").assign(on_the_way=True)
    assert lines_of(rows)[0]["queries"] == "5000…"


def test_leaderboards_have_a_page_and_a_picture_of_every_theft(folder):
    root = folder.parent
    (root / "smoke").mkdir()
    for name in ("cells.csv", "defenses.csv"):
        (root / "smoke" / name).write_bytes((REFERENCE / "smoke" / name).read_bytes())
    files = leaderboard.build(root)
    assert {"x.md", "x-1-steals.svg"} <= set(files)
    page = files["x.md"].decode()
    assert "![Robust accuracy and clone accuracy against queries](x-1-steals.svg)" in page
    assert re.search(r"\| rnd .* 55.0 ± 7.1 ", page)
    assert "[x](x.md)" in files["README.md"].decode()
    assert files == leaderboard.build(root)
    drawn = ET.fromstring(files["x-1-steals.svg"])
    words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"mnist", "clone accuracy, %", "rnd", "5000", "50000"} <= set(words)


@pytest.mark.parametrize("change", [lambda t: t.drop(columns="verdict"), lambda t: t.iloc[:0]])
def test_a_table_of_another_form_is_refused(folder, change):
    path = folder / "steals.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    assert "columns that results/README.md documents" in refusal(
        StoreError, lambda: read_steals(path)
    )


@pytest.mark.parametrize("name", suites(STEAL))
def test_a_suite_of_stealing_names_what_there_is(name):
    requests = make_steals(name)
    assert requests and all(one.attacks for one in requests)
    for one in requests:
        assert one.checkpoints()[-1] == one.queries
        assert {STEALERS.choose(text).entry.kind for text in one.attacks} == {"stealing attack"}


def test_options_win_over_a_suite():
    for one in make_steals("stealing-small", queries=100, budgets="50", seeds="4"):
        assert (one.checkpoints(), one.seeds) == ((50, 100), (4,))


def test_a_suite_goes_with_its_own_command():
    message = refusal(SpecError, lambda: make_requests("unig-table4"))
    assert message.endswith("is of task 'steal': bench steal unig-table4")
    message = refusal(SpecError, lambda: make_steals("smoke"))
    assert message.endswith("is of task 'attack': bench run smoke")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: steel\nattacks: [knockoff]", "line 1: unknown task 'steel'. Did you mean: steal?"),
        ("task: steal\nattacks: [knockof]", "line 2: unknown stealing attack 'knockof'"),
        ("task: steal\nattacks: [knockoff]\npool: mnits", "line 3: unknown dataset 'mnits'"),
        ("task: steal\nattacks: [knockoff]\nseeds: [a]", "line 3: seeds=a is not allowed"),
        ("task: steal\nattacks: [knockoff]\nnorm: l2", "line 3 has an unknown field 'norm'"),
        ("task: steal\ndataset: mnist", "own.yaml' names no stealing attack"),
    ],
)
def test_mistakes_in_a_suite_are_told_with_their_line(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(BenchError) as caught:
        make_steals(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_papers_numbers_stand_beside_ours(folder):
    text = steals_side_by_side("unig-table4", folder)
    # victim, defense, attack, queries, reported, measured, of, with
    lines = [re.split(r"  +", line.strip())[1:] for line in text.splitlines()]
    assert ["none", "knockoff", "30000000", "21.95", "35.0", "resnet56", "50000"] in lines
    assert ["rnd", "clean", "90.91", "93.0", "resnet56"] in lines
    maze = [line for line in lines if line[1:2] == ["maze@official"]]
    assert len(maze) == 4 and all(line[-1] == "not measured" for line in maze)


def test_other_data_and_other_victims_are_no_counterparts(tmp_path):
    rows = [
        row(robust_accuracy=0.4),
        row(robust_accuracy=0.8, model="resnet20"),
        row(robust_accuracy=0.9, dataset="mnist", model="mnist-cnn"),
    ]
    for kept, measured in ((rows, "40.0  resnet56"), (rows[1:], "80.0  resnet20")):
        pd.DataFrame(kept, columns=names(StealRow)).to_csv(tmp_path / "steals.csv", index=False)
        assert re.search(rf"knockoff .*21.95 +{measured}", steals_side_by_side(TABLE, tmp_path))
    pd.DataFrame(rows[2:], columns=names(StealRow)).to_csv(tmp_path / "steals.csv", index=False)
    text = steals_side_by_side(TABLE, tmp_path)
    assert text.count("not measured") > 4 and "mnist-cnn" not in text


def test_a_number_without_a_counterpart_is_told(tmp_path):
    path = tmp_path / "own.yaml"
    text = (Path(__file__).parents[1] / "registry/suites/unig-table4.yaml").read_text("utf-8")
    path.write_text(text.replace("dent: dent@unig, ", ""), encoding="utf-8")
    assert "no 'dent'" in refusal(SpecError, lambda: read_steal_table(str(path)))


def test_the_command_steals_and_prints(bench, tmp_path):
    outcome = bench(
        "steal", "--attacks", "knockoff[epochs=1],surrogate[epochs=1]", "--queries", "200",
        "--budgets", "100", "--images", "40", "--seeds", "0", "--jobs", "1",
        "--out", str(tmp_path / "r"),
    )  # fmt: skip
    assert "knockoff[epochs=1]" in outcome.out and "white-box" in outcome.out
    assert str(tmp_path / "r" / "steals.csv") in outcome.out
    assert bench("verify", str(tmp_path / "r")).code == 0


def test_the_command_refuses_in_a_line(bench, tmp_path):
    assert "give --attacks a,b or a suite" in refused(bench("steal"))
    assert "Did you mean: knockoff" in refused(bench("steal", "--attacks", "knockof"))
