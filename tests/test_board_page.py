"""The page of all leaderboards, in a browser without a window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from urllib.parse import urlencode

import pandas as pd
import pytest
from test_comparisons import cell
from test_leaderboard import plain, reference, rights

from benchmark import leaderboard

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium")
ROW = re.compile(r"<tr>(.*?)</tr>")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    folder = plain(root)
    pd.DataFrame([
        {"dataset": "mnist", "model": "m", "defense": "b", "setting": "", "flag": "</script><b>",
         "detail": "d"}
    ]).to_csv(folder / "flags.csv", index=False)  # fmt: skip
    reference(root, "other", [cell(name, "nes", rights(9)) for name in ("Z", "none")])
    path = root / "index.html"
    path.write_bytes(leaderboard.build(root / "reference")["index.html"])
    return path


def data(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def open_page(page, tmp_path, **state):
    """Rows (without their empty places) and drawn curves of the page in a state."""
    address = f"{page.as_uri()}#{urlencode(state)}"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               f"--user-data-dir={tmp_path}", address]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    body = re.search(r'<tbody id="rows">(.*?)</tbody>', done.stdout, re.DOTALL)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in ROW.findall(body)]
    return rows, done.stdout.count('class="curve"')


def test_the_page_holds_every_row_and_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<link|@import|src=|url\(|fetch\(", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert text.count("</script>") == 2  # a flag cannot end the data
    rows = data(page)
    assert [row["defense"] for row in rows] == ["Z", "none", "a", "b", "none"]
    assert [row["rank"] for row in rows] == [1, 1, 1, 1, 3]
    assert rows[2]["shares"]["square"] == [75.0, 75.0] and rows[3]["flags"] == "</script><b>"


@needs_browser
def test_all_boards_are_listed_at_first(page, tmp_path):
    rows, curves = open_page(page, tmp_path)
    assert [row[2] for row in rows] == ["Z", "none", "a", "b", "none"]
    assert rows[3][-1] == "&lt;/script&gt;&lt;b&gt;" and curves == 0


@needs_browser
def test_a_board_is_sorted_and_its_curves_are_drawn(page, tmp_path):
    board = data(page)[-1]["board"]
    state = {"board": board, "sort": "robust", "attack": "square"}
    rows, curves = open_page(page, tmp_path, **state)
    assert [(row[1], row[4]) for row in rows] == [("none", "50.0"), ("a", "75.0"), ("b", "77.5")]
    assert [row[0] for row in rows] == ["", "", ""]  # ranks are of the worst case alone
    assert curves == 3
    rows, _ = open_page(page, tmp_path, **state, down=1)
    assert [row[1] for row in rows] == ["b", "a", "none"]


@needs_browser
def test_a_filter_keeps_what_it_names(page, tmp_path):
    rows, _ = open_page(page, tmp_path, filter="OTHER", sort="defense", down=1)
    assert [row[2] for row in rows] == ["none", "Z"]
    rows, _ = open_page(page, tmp_path, filter="z")
    assert [row[2] for row in rows] == ["Z"]
