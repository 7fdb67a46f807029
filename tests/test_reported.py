"""Numbers of papers: files, the cells that suites name for them, and both side by side."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import command
import pytest
from command import refused
from support import refusal
from test_comparisons import N, Y, cell
from test_leaderboard import reference

from benchmark import leaderboard
from benchmark.board_reports import lines_of
from benchmark.counterparts import counterparts
from benchmark.errors import BenchError, RegistryError, SpecError
from benchmark.measured_counterparts import beside
from benchmark.reference import read_reference
from benchmark.reported import CLEAN, COMPARED, papers, reported
from benchmark.reported_table import FIELD
from benchmark.statistics import wilson
from benchmark.stealing.reported import read_steal_table
from benchmark.suites import ATTACK, STEAL, load_suite, suites

bench = command.bench
MAPPED = [name for name in suites(ATTACK) if FIELD in load_suite(name).data]
IMAGES = 40
# Of the two papers whose experiments are suites, what no attack of ours measures.
UNMEASURED = {
    ("unig", "Table 7", "cifar10"): "operations and parameters of a victim",
}


def number(paper, table, **wanted):
    """The one number with these properties."""
    found = [
        row.value for row in reported(paper) if row.table == table
        and all(getattr(row, name) == value for name, value in wanted.items())
    ]  # fmt: skip
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("paper", list(papers()))
def test_a_papers_numbers_are_whole_and_possible(paper):
    rows = reported(paper)
    assert rows and {row.paper for row in rows} == {paper}
    for row in rows:
        assert 0 <= row.value <= 100 or row.unit != "percent", row
        assert row.metric not in COMPARED or row.unit == "percent", row
        assert (row.attack in {"clean", ""}) or row.metric != CLEAN
    keys = [row.model_dump_json(exclude={"value", "note"}) for row in rows]
    assert len(set(keys)) == len(keys)


def test_the_files_are_those_of_the_papers():
    folder = resources.files("registry.reported")
    names = {file.name for file in folder.iterdir() if file.name.endswith(".csv")}
    assert names == {f"{paper}.csv" for paper in papers()}
    columns = folder.joinpath("unig.csv").read_text().splitlines()[0].split(",")
    described = (folder / "__init__.py").read_text()
    assert all(f"`{column}`" in described for column in columns)


def test_numbers_are_those_printed():
    square = {"attack": "square", "queries": 2500}
    one = {"dataset": "cifar10", "defense": "pni", **square}
    assert number("unig", "Table 1", **one) == 51.54
    two = {"dataset": "imagenet", "defense": "unig-at", **square}
    assert number("unig", "Table 2", **two) == 63.71
    three = {"defense": "feature", "model": "vgg19", "attack": "signhunter", "queries": 10_000}
    assert number("rfd", "Table 2", **three, matched_drop=4) == 46.9
    assert number("rfd", "Table 7", **three, attack_params={"eot": "10"}) == 17.0


@pytest.mark.parametrize("suite", MAPPED)
def test_every_number_of_a_suites_table_has_a_cell_or_a_reason(suite):
    found = counterparts(suite)
    rows = found.table.rows()
    assert len(found.pairs) + len(found.left_out) == len(rows)
    assert {id(row) for row, _ in (*found.pairs, *found.left_out)} == {id(row) for row in rows}
    assert all(why for _, why in found.left_out)
    for row, one in found.pairs:
        assert bool(one.attack) == (row.metric != CLEAN)
        assert row.matched_drop is None or one.drop == row.matched_drop


def test_every_table_of_the_two_papers_has_its_suite():
    tables = {(r.paper, r.table, r.dataset) for p in ("unig", "rfd") for r in reported(p)}
    named = {(t.paper, t.table, t.dataset) for t in (counterparts(s).table for s in MAPPED)}
    stolen = [name for name in suites(STEAL) if FIELD in load_suite(name).data]
    named |= {(t.paper, t.table, t.dataset) for t in map(read_steal_table, stolen)}
    assert tables - named == set(UNMEASURED)


def test_cells_are_those_that_tables_name():
    cells = {}
    for row, one in counterparts("rfd-table7").pairs:
        if row.model == "vgg19" and row.attack == "square":
            cells[row.defense, row.attack_params["eot"], row.queries] = one
    one = cells["input", "10", 10_000]
    assert (one.attack, one.defense, one.drop) == ("square@rfd[eot=10]", "rnd@rfd", 2)
    assert cells["feature", "1", 1000].attack == "square@rfd"
    threats = {
        (row.norm, row.attack_params["targeted"]): (one.attack, one.request.norm, one.aim)
        for row, one in counterparts("unig-table3").pairs if row.metric != CLEAN
    }  # fmt: skip
    assert threats["l2", "true"] == ("square@official-l2", "l2", "targeted")
    assert threats["linf", "false"] == ("square@unig", "linf", "untargeted")
    radii = {
        row.attack_params["mu"]: one.eps
        for row, one in counterparts("rfd-table3").pairs if row.attack == "signhunter"
    }  # fmt: skip
    assert radii == {"0.01": 0.01, "0.05": 0.05, "0.075": 0.075, "0.1": 0.1}


TWO = """\
    "unig[delta=0.5;p=1;alpha=10;batch_size=1;cascaded_train_images=10]": unig@single
    "unig[delta=0.5;p=1;alpha=10;batch_size=256]": unig@official
"""
TEXT = f"""attacks: "square[p=0.05]"
defenses: [dent@unig, unig@single, rnd, unig@official]
dataset: cifar10
queries: 100
eps: 8/255
reported:
  paper: unig
  table: Table 8
  dataset: cifar10
  attacks: {{square: "square[p=0.05]"}}
  defenses:
    none: none
    dent: dent@unig
{TWO}  left_out:
    - {{defense: rnd, reason: only a try}}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("paper: unig", "paper: uni", 7, "unknown paper 'uni'. Did you mean: unig?"),
        ("Table 8", "Table 9", 8, "reports nothing of cifar10 in 'Table 9'. Did you mean: Table"),
        ("  dataset: cifar10", "  dataset: mnist", 8, "reports nothing of mnist in 'Table 8'"),
        ("dent: dent@unig", "dent: den", 13, "unknown defense 'den'"),
        ("dent: dent@unig", "dent: [dent@unig, den]", 13, "unknown defense 'den'"),
        ("    dent: dent@unig\n", "", 11, "'dent' is neither named nor left out"),
        ("{square:", "{squares:", 10, "'square' is neither named nor left out"),
        ("    none", "    more: none\n    none", 12, "no number is of 'more'"),
        ("dent: dent@unig", "dent: dent", 6, "no run of the suite is of 'cifar10, preact"),
        ("queries: 100", "queries: 99", 6, "no run of the suite is of"),
        ("8/255", "4/255", 6, "no run of the suite is of"),
        ("    - {", "    - {defense: r, reason: idle}\n    - {", 17, "no number is left: idle"),
        ("rnd, reason", "rnd, why", 17, "left_out.0.reason is not allowed: Field required"),
        ("    - {", "    - {image: 3, ", 17, "left_out.0.image is not allowed: Extra inputs"),
        ("  table: Table 8\n", "", 6, "reported.table is not allowed: Field required"),
        (TWO, "    unig: unig@official\n", 11, "cascaded_train_images=10]' is neither"),
        ("reported:", "runs: [{}, {norm: l2}]\nexclude: [{attack: squar, reason: x}]\nreported:",
         7, "nothing that is run falls under attack 'squar'"),
        ("reported:", "exclude: [{defense: dent*, reason: x}]\nreported:", 7, "no run of"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path, old, new, line, message):
    assert old in TEXT
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    assert len(counterparts(str(path)).pairs) == 8
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(BenchError) as caught:
        counterparts(str(path))
    said = str(caught.value)
    assert message in said and f"mine.yaml', line {line}" in said and "\n" not in said


def test_several_radii_for_a_number_without_one_are_refused(tmp_path):
    text = (resources.files("registry.suites") / "rfd-table4.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("eps: 0.05", "eps: [0.05, 0.1]"))
    assert "no run of the suite is of" in refusal(SpecError, lambda: counterparts(str(path)))
    path.write_text(text.replace("match_drop: 2", "match_drop: [2, 4]"))
    assert "no run of the suite is of" in refusal(SpecError, lambda: counterparts(str(path)))


def test_unknown_numbers_are_refused():
    message = refusal(RegistryError, lambda: reported("uni"))
    assert message == "no numbers of paper 'uni'. Did you mean: unig?"


def results(root, name="unig-table8"):
    """Reference results of two cells; of `rnd` one image is hit once, but never broken."""
    about = {"dataset": "cifar10", "model": "resnet56", "eps": 8 / 255, "budgets": "50+100"}
    rights = {"none": [Y] * 2 + [N] * 36 + [None] * 2, "rnd": [Y] * 30 + [N] * 8 + [None] * 2}
    shards = [cell(one, "square[p=0.05]", each, **about) for one, each in rights.items()]
    shards[1]["images"]["first_hit"][0] = 5
    return reference(root, name, shards)


def printed(text):
    """Cells of the lines of the printed table, by defense and attack."""
    body = text.split("\n\n")[1].splitlines()
    return {tuple(line.split()[1:3]): line.split()[3:] for line in body[2:]}


def test_reported_stands_beside_measured_as_the_paper_counts(bench, tmp_path):
    folder = results(tmp_path)
    outcome = bench("compare", "unig-table8", "--out", folder)
    assert outcome.code == 0
    found = printed(outcome.out)
    low, high = wilson(29 / IMAGES, IMAGES)
    ends = f"{100 * low:.1f}-{100 * high:.1f}"
    assert found["rnd", "square[p=0.05]"] == ["100", "65.04", "72.5", ends]
    assert found["rnd", "(clean)"][:2] == ["91.14", "95.0"]
    assert found["none", "square[p=0.05]"][:3] == ["100", "38.79", "5.0"]
    assert found["unig@single", "(clean)"] == ["94.26", "not", "measured"]
    assert "10 numbers, 4 of them measured." in outcome.out
    assert "- In every row: victim resnet56; 40 images (paper: 10000, the whole" in outcome.out
    assert "- rnd: reported as rnd[nu=0.02]; our settings." in outcome.out
    assert "- dent@unig: reported as dent[batch_size=1]; settings of UniG's copy" in outcome.out
    again = bench("compare", "unig-table8", "--reference", folder.parent)
    assert printed(again.out) == found


def test_strengths_are_those_set_for_the_drop(tmp_path):
    about = {"dataset": "cifar10", "model": "resnet56", "eps": 0.05, "budgets": "1000+10000"}
    where = {"dataset": "cifar10", "model": "resnet56", "defense": "rnd@rfd", "seed": 0}
    found = {2: "rnd@rfd[sigma=0.01]", 4: "rnd@rfd[sigma=0.03]"}
    rights = {2: [Y] * 10 + [N] * 10, 4: [Y] * 15 + [N] * 5}
    folder = reference(
        tmp_path, "mine",
        [cell(found[drop], "square@rfd", rights[drop], **about) for drop in found],
        [{**where, "target": drop, "matched": found[drop], "saturated": drop == 4}
         for drop in found],
    )  # fmt: skip
    lines = beside(counterparts("rfd-table2"), read_reference(folder, tmp_path))
    mine = [
        line for line in lines if line.measured is not None
        and (line.row.model, line.cell.budget, line.cell.attack) == ("vgg19", 10_000, "square@rfd")
    ]  # fmt: skip
    shares = {line.row.matched_drop: (line.row.value, line.shares[0]) for line in mine}
    assert shares == {2: (27.1, 0.5), 4: (39.8, 0.75)}
    assert ["no strength costs as much" in line.differs for line in mine] == [False, True]
    assert all("linf eps 0.05 (not stated)" in line.differs for line in mine)
    first = next(line for line in lines if line.cell.attack and line.row.queries == 1000
                 and line.measured is not None)  # fmt: skip
    assert "read off a run of 10000 queries" in first.differs


def test_what_differs_in_some_rows_stands_in_them(bench, tmp_path):
    about = {"dataset": "cifar10", "eps": 8 / 255, "budgets": "50+100"}
    shards = [
        cell(name, "square[p=0.05]", [Y, N, N], model=model, **about)
        for name, model in (("none", "resnet20"), ("rnd", "resnet56"))
    ]
    outcome = bench("compare", "unig-table8", "--out", reference(tmp_path, "x", shards))
    ends = {key: cells[-2:] for key, cells in printed(outcome.out).items()}
    assert ends["none", "square[p=0.05]"] == ["victim", "resnet20"]
    assert ends["rnd", "(clean)"] == ["victim", "resnet56"]
    assert "- In every row: 3 images (paper: 10000, the whole test set)." in outcome.out


def test_a_failure_rate_is_over_images_answered_right(bench, tmp_path):
    about = {"dataset": "cifar10", "model": "resnet56", "eps": 0.05, "budgets": "1000+10000"}
    rights = [Y] * 8 + [N] * 24 + [None] * 8
    nes = "nes@blackboxbench"
    folder = reference(tmp_path, "x", [cell("rnd[sigma=0.01]", nes, rights, **about)])
    outcome = bench("compare", "rnd-figures", "--out", folder)
    low, high = wilson(0.25, 32)
    assert f" 0?        25.0  {100 * low:.1f}-{100 * high:.1f}" in outcome.out
    assert "Failures: robust accuracy over clean accuracy" in outcome.out


def test_what_cannot_be_compared_is_one_line(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = bench("compare", "unig-table8", "--out", tmp_path / "empty")
    assert outcome.code == 0 and "10 numbers, 0 of them measured." in outcome.out
    assert "has no field 'reported'" in refused(bench("compare", "smoke", "--out", "empty"))
    assert "'no' is not a folder" in refused(bench("compare", "unig-table8", "--out", "no"))
    assert "unknown suite 'unig'" in refused(bench("compare", "unig", "--out", "empty"))


def test_a_board_of_a_suite_shows_what_is_reported(tmp_path):
    results(tmp_path)
    results(tmp_path, "other")
    files = leaderboard.build(tmp_path / "reference")
    page = files["unig-table8.md"].decode()
    title, table = page.split("Table 8 of `unig` reports of preactresnet18 @ 50 / 100 queries")
    assert "## resnet56 on cifar10" in title
    lines = [[part.strip() for part in line.strip("|").split("|")]
             for line in table.split("\n\n")[1].splitlines()]  # fmt: skip
    assert lines[0] == ["defense", "clean", "square[p=0.05]"]
    assert ["rnd", "91.1", "- / 65.0"] in lines and ["none", "94.3", "- / 38.8"] in lines
    assert "reports of" not in files["other.md"].decode()


def test_a_committed_board_without_a_suite_has_no_lines():
    root = Path(__file__).parents[1] / "results/reference"
    assert lines_of(read_reference(root / "cifar10-resnet56-linf", root)) == []
