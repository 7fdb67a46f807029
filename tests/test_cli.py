"""The command `bench`: what it prints, and that Python gives the same."""

from __future__ import annotations

import json
import re
import shutil

import command
import numpy as np
import pandas as pd
import pytest
from command import (
    LEAVES,
    SMALL,
    Outcome,
    attack,
    piped,
    refused,
    tables,
)

from benchmark import __version__, api

bench = command.bench
kept = command.kept


def test_status_counts_the_images_that_are_done(bench, kept, tmp_path):
    out = shutil.copytree(kept, tmp_path / "out")
    assert re.search(r"mnist +mnist-cnn +none +square +4/4", bench("status", "--out", out).out)
    next((out / "shards").iterdir()).unlink()
    assert re.search(r"none +square +2/4", bench("status", "--out", out).out)


@pytest.mark.parametrize("kind", ["attacks", "defenses", "models", "datasets", "suites"])
def test_every_list_is_readable_by_machines(bench, kind):
    rows = json.loads(bench("list", kind, "--json").out)
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    assert all(row["what"] for row in rows)
    assert all(row["name"] in bench("list", kind).out for row in rows)


def test_show_tells_facts_parameters_and_source(bench):
    shown = bench("show", "square").out
    for part in ("attack square: ", "scores", "linf", "horizon", "none", "arxiv.org", "Differs:"):
        assert part in shown
    assert "timm:" in bench("show", "timm").out
    assert "attacks:" in bench("show", "smoke").out


def test_check_tells_a_good_plug_in_from_a_bad_one(bench):
    good = bench("check", attack("stays", "pass"))
    assert "It stays in ball, box and budget" in good.out
    leaver = bench("check", attack("leaver", LEAVES))
    assert re.search(r"stays in ball.* failed .*left its threat model for row 1", leaver.out)
    assert leaver.code == 2
    assert re.fullmatch(r"error: \d+ checks failed\n", leaver.err)


def test_check_passes_what_is_built_in(bench):
    outcome = bench("check", "none")
    assert (outcome.code, outcome.err) == (0, "")
    assert "failed" not in outcome.out


def test_the_version_is_printed(bench):
    assert bench("--version") == Outcome(0, f"querybench {__version__}\n", "")


def test_a_piped_run_prints_one_plain_table_with_the_undefended_row_first(tmp_path, kept):
    more = ["--defenses", "rnd", *SMALL, "--out", "out"]
    done = piped("run", "--attacks", "square", *more, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r"[^\n -~]", done.stdout)
    lines = done.stdout.splitlines()
    (head,) = (n for n, line in enumerate(lines) if line.split()[:2] == ["defense", "attack"])
    assert [line.split()[0] for line in lines[head + 2 : head + 4]] == ["none", "rnd"]
    assert lines[head + 4] == ""
    assert "robust@5" in lines[head]


def test_a_bad_input_ends_the_process_with_exit_code_2(tmp_path):
    done = piped("run", "--attacks", "sqare", cwd=tmp_path)
    refused(Outcome(done.returncode, done.stdout, done.stderr))


def test_python_gives_the_cells_of_the_command(bench, tmp_path):
    command = ["run", "--attacks", "square", "--defenses", "rnd", *SMALL, "--out", "a"]
    assert bench(*command).code == 0
    request = dict(attacks=["square"], defenses=["rnd"], images=4, queries=5, shard=2)
    cells = api.run(**request, jobs=1, out=tmp_path / "b")
    assert tables(tmp_path / "a") == tables(tmp_path / "b")
    written = pd.read_csv("a/cells.csv")
    assert cells["defense"].tolist() == ["none", "rnd"]
    assert cells["cell"].tolist() == written["cell"].tolist()
    close = np.isclose(cells["robust_accuracy_low"], written["robust_accuracy_low"], atol=1e-6)
    assert close.all()
