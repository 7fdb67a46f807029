"""Leaderboards: pages, pictures and ranks from reference folders alone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import command
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from command import refused
from support import refusal
from test_comparisons import N, Y, cell, strength
from test_store import save

from benchmark import leaderboard, tables
from benchmark.board_plots import looks_of
from benchmark.defense_records import DefenseRow
from benchmark.errors import StoreError
from benchmark.records import names
from benchmark.reference import read_references
from benchmark.spec import digest
from benchmark.standings import standings
from benchmark.statistics import wilson
from benchmark.store import CALIBRATIONS

bench = command.bench
IMAGES = 40
ATTACKS = ("nes", "square")


def rights(right, misread=0):
    """The first `right` images stay right, the last `misread` are misread when clean."""
    return [Y] * right + [N] * (IMAGES - right - misread) + [None] * misread


def reference(root, name, shards, calibrations=()):
    """A reference folder of these shards' tables."""
    store = save(root / "runs" / name, shards)
    for place, row in enumerate(calibrations):
        more = dict.fromkeys(("knob", "split"), "x") | dict.fromkeys(
            ("strength", "drop", "drop_error", "bend", "images", "draws"), 1
        )
        store.write(digest({"c": place}), {"rows": [{**more, **row}], "points": []}, CALIBRATIONS)
    tables.rebuild(store)
    folder = root / "reference" / name
    folder.mkdir(parents=True)
    for path in store.folder.glob("*.csv"):
        shutil.copy(path, folder)
    return folder


def plain(root, name="plain"):
    """Two attacks on three defenses: `a` and `b` are close, `none` is far behind."""
    shares = {"a": (32, 30), "b": (30, 31), "none": (3, 20)}
    return reference(root, name, [
        cell(defense, attack, rights(right, misread=2))
        for defense, both in shares.items() for attack, right in zip(ATTACKS, both, strict=True)
    ])  # fmt: skip


def boards(root):
    return [b for one in read_references(root / "reference") for s in standings(one)
            for b in s.boards]  # fmt: skip


def ranks(board):
    return {one.defense: one.rank for one in board.standings}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a reference and its files; no test may change it."""
    root = tmp_path_factory.mktemp("made")
    plain(root)
    return root, leaderboard.build(root / "reference")


def row_of(page, name, table=0):
    """Cells of one row of a table of a page, by heading."""
    body = page.split("\n## ", 1)[1].splitlines()
    lines = [line.strip("|").split("|") for line in body if line.startswith("|")]
    lines = [[part.strip() for part in line] for line in lines]
    heads = [n for n, line in enumerate(lines) if "defense" in line]
    end = (*heads, len(lines))[table + 1]
    rows = [line for line in lines[heads[table] + 2 : end] if name in line]
    return dict(zip(lines[heads[table]], rows[0], strict=True))


def test_a_rank_is_one_plus_the_number_of_significantly_better_defenses(tmp_path):
    # a beats b by 5 images and b beats c by 5, which proves little (p 0.06); a and c differ by 10
    shares = {"a": 30, "b": 25, "c": 20, "none": 2}
    reference(tmp_path, "r", [cell(name, "nes", rights(n)) for name, n in shares.items()])
    (board,) = boards(tmp_path)
    assert ranks(board) == {"a": 1, "b": 1, "c": 2, "none": 4}
    assert [one.defense for one in board.standings] == ["a", "b", "c", "none"]


def test_significance_is_that_of_corrected_values(tmp_path):
    # 6 images differ: p = 0.031 alone, not significant among the three pairs
    shares = {"a": 26, "b": 20, "c": 20}
    folder = reference(tmp_path, "r", [cell(name, "nes", rights(n)) for name, n in shares.items()])
    assert (pd.read_csv(folder / "comparisons.csv")["p"] < 0.05).sum() == 2
    assert set(ranks(boards(tmp_path)[0]).values()) == {1}


def test_the_numbers_of_a_page_are_those_of_the_tables(made):
    root, files = made
    page = files["plain.md"].decode()
    cells = pd.read_csv(root / "reference/plain/cells.csv").set_index(["defense", "attack"])
    for name in ("a", "b", "none"):
        first, second = row_of(page, name), row_of(page, name, table=1)
        worst = cells.loc[name, "worst-case"].sort_values("budget")
        assert first["robust @ 10 / 50"] == " / ".join(
            f"{100 * share:.1f}" for share in worst["robust_accuracy"]
        )
        assert first["clean"] == f"{100 * worst['clean_accuracy'].iloc[0]:.1f}"
        low, high = worst.iloc[-1][["robust_accuracy_low", "robust_accuracy_high"]]
        assert first["95 %"] == f"{100 * low:.1f}-{100 * high:.1f}"
        for attack in ("nes", "square"):
            expected = cells.loc[name, attack].sort_values("budget")["robust_accuracy"]
            assert second[attack] == " / ".join(f"{100 * share:.1f}" for share in expected)
    assert row_of(page, "none")["rank"] == "3" and row_of(page, "b")["rank"] == "1"
    assert "drop" not in row_of(page, "a")  # nothing is known of it, so there is no column


def test_every_picture_is_a_drawing_and_stands_in_its_page(made):
    _, files = made
    pictures = {name for name in files if name.endswith(".svg")}
    page = files["plain.md"].decode()
    assert pictures == set(re.findall(r"\]\((.+?\.svg)\)", page)) and len(pictures) == 2
    for name in pictures:
        text = "".join(ElementTree.fromstring(files[name]).itertext())
        for word in ("nes", "square", "worst-case", "none"):
            assert word in text, name
    assert "tables hold no drops" in page


def test_the_index_links_every_page(tmp_path):
    plain(tmp_path, "one")
    plain(tmp_path, "deeper/two")
    files = leaderboard.build(tmp_path / "reference")
    links = re.findall(r"\]\((.+?)\)", files["README.md"].decode())
    assert links == ["deeper/two.md", "one.md"]
    for name, data in files.items():
        for link in re.findall(r"\]\((.+?)\)", data.decode() if name.endswith("md") else ""):
            assert (Path(name).parent / link).as_posix() in files


def test_equal_tables_give_equal_bytes_whatever_the_order_of_rows(made):
    root, files = made
    assert leaderboard.build(root / "reference") == files
    for data in files.values():
        assert not re.search(rb"20\d\d-\d\d-\d\d|matplotlib v|/tmp/", data.lower())


def test_the_order_of_rows_does_not_matter(made, tmp_path):
    root, files = made
    folder = tmp_path / "plain"
    shutil.copytree(root / "reference/plain", folder)
    for path in folder.glob("*.csv"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([lines[0], *reversed(lines[1:])]))
    assert leaderboard.build(tmp_path) == files


def test_a_users_own_style_changes_nothing(made):
    root, files = made
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 5, "axes.facecolor": "red"}):
        assert leaderboard.build(root / "reference") == files


def test_a_defense_that_was_not_attacked_by_all_is_a_gap_and_has_no_rank(tmp_path):
    full = [cell(name, attack, rights(n)) for name, n in (("a", 30), ("none", 2))
            for attack in ("nes", "square")]  # fmt: skip
    reference(tmp_path, "r", [*full, cell("b", "nes", rights(39))])
    (board,) = boards(tmp_path)
    assert ranks(board) == {"a": 1, "none": 2, "b": None}
    assert board.standings[-1].defense == "b"
    page = leaderboard.build(tmp_path / "reference")["r.md"].decode()
    first = row_of(page, "b")
    assert (first["rank"], first["robust @ 10 / 50"], first["95 %"]) == ("", "", "")
    assert row_of(page, "b", table=1)["square"] == "" != row_of(page, "b", table=1)["nes"]
    assert "`b`: no worst case and no rank, not run against `square`." in page


def test_repeated_questions_are_no_gap_of_a_steady_defense(tmp_path):
    names = ("nes", "nes[eot=5]", "nes[eot=10]")
    shards = [cell("none", "nes", rights(5)), *(cell("a", name, rights(25)) for name in names)]
    reference(tmp_path, "r", shards)
    (board,) = boards(tmp_path)
    assert ranks(board) == {"a": 1, "none": 2}
    assert board.attacks == ["nes", "nes[eot=5]", "nes[eot=10]"]
    page = leaderboard.build(tmp_path / "reference")["r.md"].decode()
    assert "`none`: a repeated question (eot) has the same answer each time." in page
    assert row_of(page, "none")["robust @ 10 / 50"] == "12.5 / 12.5"


def test_without_comparisons_ranks_are_left_out_and_the_page_says_why(tmp_path):
    (plain(tmp_path) / "comparisons.csv").unlink()
    page = leaderboard.build(tmp_path / "reference")["plain.md"].decode()
    assert "has no `comparisons.csv`" in page and "rank" not in row_of(page, "a")
    assert [one.defense for one in boards(tmp_path)[0].standings] == ["a", "b", "none"]


def test_tables_of_an_older_version_make_a_page(tmp_path):
    folder = plain(tmp_path)
    cells = pd.read_csv(folder / "cells.csv")
    lacking = ["protocol", "budgets", "drop", "drop_error", "matched_drop"]
    cells.drop(columns=lacking).to_csv(folder / "cells.csv", index=False)
    for name in ("comparisons", "defenses", "flags", "calibrations", "defense_timings"):
        (folder / f"{name}.csv").unlink()
    page = leaderboard.build(tmp_path / "reference")["plain.md"].decode()
    assert row_of(page, "none")["robust @ 10 / 50"] == "7.5 / 7.5"


def test_matched_drops_are_boards_of_their_own(tmp_path):
    names = {"none": 2, "a[s=1]": 20, "a[s=2]": 30, "b[s=5]": 25, "b[s=9]": 26}
    found = [
        *(strength("a[s=1]", "a", 1.0), strength("a[s=2]", "a", 2.0)),
        *(strength("b[s=5]", "b", 1.0), strength("b[s=9]", "b", 2.0, saturated=True)),
    ]
    shards = [cell(name, "nes", rights(n)) for name, n in names.items()]
    reference(tmp_path, "r", shards, found)
    first, second = boards(tmp_path)
    assert (first.drop, set(ranks(first))) == ("1", {"none", "a[s=1]", "b[s=5]"})
    assert (second.drop, set(ranks(second))) == ("2", {"none", "a[s=2]", "b[s=9]"})
    files = leaderboard.build(tmp_path / "reference")
    page = files["r.md"].decode()
    assert "cost 1 point of" in page and "cost 2 points of" in page
    assert {"r-1-drop-1-queries.svg", "r-1-drop-2-attacks.svg"} <= set(files)


def test_intervals_of_every_attack_and_budget_are_folded_away(tmp_path):
    plain(tmp_path)
    page = leaderboard.build(tmp_path / "reference")["plain.md"].decode()
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "@ 10 / 50 queries" in folded
    cells = pd.read_csv(tmp_path / "reference/plain/cells.csv")
    for _, rows in cells.groupby(["defense", "attack"]):
        ends = [f"{100 * row.robust_accuracy_low:.1f}-{100 * row.robust_accuracy_high:.1f}"
                for row in rows.sort_values("budget").itertuples()]  # fmt: skip
        assert " / ".join(ends) in folded


def test_several_seeds_are_one_section_with_means_and_their_spread(tmp_path):
    kept = {("a", 0): 36, ("a", 1): 30, ("none", 0): 3, ("none", 1): 3, ("none", 2): 9}
    reference(tmp_path, "r", [cell(n, "nes", rights(k), seed=s) for (n, s), k in kept.items()])
    (setting,) = standings(read_references(tmp_path / "reference")[0])
    first, second = setting.boards[0].standings
    assert (first.defense, first.rank, second.rank) == ("a", 1, 2)
    assert first.last.robust_accuracy == pytest.approx(33 / 40)
    assert first.last.robust_accuracy_low == pytest.approx(wilson(33 / 40, 40)[0])
    assert second.last.robust_accuracy == pytest.approx(15 / 120)
    page = leaderboard.build(tmp_path / "reference")["r.md"].decode()
    assert "40 images, seeds 0, 1, 2, `draws=20`." in page
    assert f"{100 * np.std([0.9, 0.75], ddof=1):.2f}" in page
    assert "- `a`: run with 0, 1 of these seeds." in page
    assert "`none`: run with" not in page


def test_the_worst_case_is_over_the_seeds_that_met_every_attack(tmp_path):
    shards = [
        cell(n, "nes", rights(k), seed=s) for n, k in (("a", 30), ("none", 2)) for s in (0, 1)
    ]
    shards += [cell(n, a, rights(9), seed=0) for n in ("a", "none") for a in ("square", "simba")]
    shards += [cell(n, "simba", rights(30), seed=1) for n in ("a", "none")]
    reference(tmp_path, "r", shards)
    (setting,) = standings(read_references(tmp_path / "reference")[0])
    first = setting.boards[0].standings[0]
    assert (first.last.seeds, first.last.robust_accuracy) == ("0", pytest.approx(9 / 40))
    assert first.points["nes"][-1].seeds == "0+1"


def test_seeds_that_never_meet_leave_ranks_empty(tmp_path):
    reference(tmp_path, "r", [cell("a", "nes", rights(30)), cell("b", "nes", rights(2), seed=1)])
    (setting,) = standings(read_references(tmp_path / "reference")[0])
    assert [one.rank for one in setting.boards[0].standings] == [None, None]


def test_settings_are_sections_of_their_own(tmp_path):
    shards = [cell(name, "nes", rights(9), **more) for name in ("a", "none")
              for more in ({}, {"norm": "l2"}, {"eps": 8 / 255}, {"protocol": "draws=5"})
              ]  # fmt: skip
    reference(tmp_path, "r", shards)
    page = leaderboard.build(tmp_path / "reference")["r.md"].decode()
    heads = re.findall(r"^## (.*)\n\n(.*)$", page, re.MULTILINE)
    assert len(set(heads)) == 4
    head = "m on mnist, linf 8/255, untargeted, 50 queries"
    assert (head, "40 images, seed 0, `draws=20`.") in heads


def flag(setting, name, **more):
    names = {"dataset": "mnist", "model": "m", "defense": "a", "detail": "why"}
    return {**names, "setting": setting, "flag": name, **more}


def test_flags_of_this_setting_and_of_no_attack_are_shown(tmp_path):
    folder = plain(tmp_path)
    pd.DataFrame([
        flag("", "flat-scores"), flag("nes, linf 0.3, 50 queries", "unconfirmed-hits"),
        flag("nes, linf 0.3, 150 queries", "other"),
        flag("nes, l2 0.3, 50 queries", "other"), flag("", "other", model="n"),
    ]).to_csv(folder / "flags.csv", index=False)  # fmt: skip
    page = leaderboard.build(tmp_path / "reference")["plain.md"].decode()
    assert row_of(page, "a")["flags"] == "flat-scores, unconfirmed-hits"
    assert row_of(page, "b")["flags"] == "" and "other" not in page
    assert "- `a`: unconfirmed-hits, nes: why." in page


@pytest.mark.parametrize("name", ["cells", "comparisons"])
def test_a_table_that_lacks_a_column_is_refused(name, tmp_path):
    folder = plain(tmp_path)
    table = pd.read_csv(folder / f"{name}.csv")
    column = {"cells": "robust_accuracy", "comparisons": "p_holm"}[name]
    table.drop(columns=column).to_csv(folder / f"{name}.csv", index=False)
    message = refusal(StoreError, lambda: leaderboard.build(tmp_path / "reference"))
    assert f"{name}.csv" in message and f"'{column}'" in message


def test_comparisons_of_another_run_are_refused(tmp_path):
    folder = plain(tmp_path)
    table = pd.read_csv(folder / "comparisons.csv")
    table[~((table["defense_a"] == "a") & (table["defense_b"] == "b"))].to_csv(
        folder / "comparisons.csv", index=False
    )
    message = refusal(StoreError, lambda: leaderboard.build(tmp_path / "reference"))
    assert "does not compare a with b" in message


def test_two_cells_in_one_place_are_refused(tmp_path):
    folder = plain(tmp_path)
    cells = pd.read_csv(folder / "cells.csv")
    twice = pd.concat([cells, cells.assign(cell=cells["cell"].str[::-1])])
    twice.to_csv(folder / "cells.csv", index=False)
    message = refusal(StoreError, lambda: leaderboard.build(tmp_path / "reference"))
    assert "several cells of a x nes" in message


def test_the_command_writes_checks_and_clears_up(bench, made, tmp_path):
    root, files = made
    out = tmp_path / "out"
    more = ["leaderboard", "--reference", root / "reference", "--out", out]
    assert bench(*more).code == 0
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.*")} == files
    assert bench(*more, "--check").code == 0
    (out / "plain.md").write_bytes(files["plain.md"].replace(b"1 |", b"2 |", 1))
    (out / "plain-1-attacks.svg").unlink()
    shutil.copy(out / "plain-1-queries.svg", out / "gone-1-queries.svg")
    (out / "notes.md").write_text("of the user")
    before = {path: path.read_bytes() for path in out.iterdir()}
    checked = bench(*more, "--check")
    assert checked.code == 1
    assert checked.out.splitlines() == [
        f"{out / 'gone-1-queries.svg'} is left over",
        f"{out / 'plain-1-attacks.svg'} is missing",
        f"{out / 'plain.md'} differs",
    ]
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert bench(*more).code == 0 and bench(*more, "--check").code == 0
    assert (out / "notes.md").exists() and not (out / "gone-1-queries.svg").exists()


def test_what_is_not_a_leaderboard_is_not_overwritten(bench, made, tmp_path):
    (tmp_path / "README.md").write_text("of the user")
    line = refused(bench("leaderboard", "--reference", made[0] / "reference", "--out", tmp_path))
    assert "README.md" in line
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "of the user"


def test_a_folder_without_tables_is_refused(bench, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        line = refused(bench("leaderboard", "--reference", folder))
        assert str(folder) in line and "cells.csv" in line


def test_thirty_defenses_have_thirty_looks():
    looks = looks_of([*(f"d{n}" for n in range(30)), "none"])
    seen = {(look["color"], look["ls"], look["marker"]) for look in looks.values()}
    assert len(seen) == 31


def test_drops_and_costs_are_shown_and_drawn(tmp_path):
    folder = plain(tmp_path)
    drops = {"a": 0.02, "b": 0.0, "none": 0.0}
    cells = pd.read_csv(folder / "cells.csv")
    cells = cells.assign(drop=cells["defense"].map(drops), drop_error=0.003)
    cells.to_csv(folder / "cells.csv", index=False)
    rows = [
        {**dict.fromkeys(names(DefenseRow), 0), "dataset": "mnist", "model": "m", "defense": name,
         "traits": "", "look": name, "forward_equivalents": 1.5, "images": images}
        for name, images in (("a", 9), ("a", 8), ("b", 9))
    ]  # fmt: skip
    rows[1]["forward_equivalents"] = 7
    pd.DataFrame(rows).to_csv(folder / "defenses.csv", index=False)
    times = [{"look": "a", "times_bare_1": 2, "times_bare_64": 3}]
    pd.DataFrame(times).to_csv(folder / "defense_timings.csv", index=False)
    files = leaderboard.build(tmp_path / "reference")
    page = files["plain.md"].decode()
    first = row_of(page, "a")
    assert (first["drop"], first["cost"], first["time"]) == ("2.00 ± 0.30", "1.50", "2.00 / 3.00")
    assert row_of(page, "none")["cost"] == row_of(page, "b")["time"] == ""
    assert "(plain-1-drops.svg)" in page
    assert b"clean accuracy lost" in files["plain-1-drops.svg"]


def test_what_keeps_every_label_stands_on_every_board(tmp_path):
    found = [strength("a[s=1]", "a", 1.0)]
    shards = [cell(name, "nes", rights(20)) for name in ("none", "a[s=1]", "kept", "written")]
    folder = reference(tmp_path, "r", shards, found)
    row = {**dict.fromkeys(names(DefenseRow), 0), "dataset": "mnist", "model": "m"}
    row |= {"defense": "kept", "traits": "randomised, keeps_label"}
    pd.DataFrame([row]).to_csv(folder / "defenses.csv", index=False)
    (folder / "comparisons.csv").unlink()
    first, second = boards(tmp_path)
    assert set(ranks(first)) == {"none", "a[s=1]", "kept"}
    assert (second.drop, set(ranks(second))) == (None, {"none", "kept", "written"})
