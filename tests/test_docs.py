"""The documents' examples are run exactly as printed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import records

ROOT = Path(__file__).parents[1]
PAGES = ["docs/adding-an-attack.md", "docs/adding-a-defense.md"]
FILES = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
RUNS = re.compile(r"<!-- run -->\n```console\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for block in RUNS.findall(text) for line in block.strip().splitlines()]


@pytest.mark.parametrize(("page", "command"), [(p, c) for p in PAGES for c in commands(p)])
def test_a_page_runs_as_printed(page, command, tmp_path):
    for name, code in FILES.findall((ROOT / page).read_text(encoding="utf-8")):
        (tmp_path / name).write_text(code, encoding="utf-8")
    program = Path(sys.executable).parent / "bench"
    words = [program, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    if " run " in f" {command} ":
        assert len(list((tmp_path / "results/local/shards").iterdir())) >= 1


def test_the_newcomers_attack_is_listed(tmp_path):
    code = dict(FILES.findall((ROOT / PAGES[0]).read_text(encoding="utf-8")))
    path = tmp_path / "coordinate_walk.py"
    path.write_text(code["coordinate_walk.py"], encoding="utf-8")
    program = Path(sys.executable).parent / "bench"
    command = [program, "list", "attacks", "--plugin", str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "coordinate-walk" in listed and "square" in listed


def test_the_description_of_the_tables_is_current():
    assert (ROOT / "results/README.md").read_text(encoding="utf-8") == records.document(), (
        "run `python -m benchmark.records`"
    )


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"])
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_documents_every_option_of_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    program = Path(sys.executable).parent / "bench"
    command = [program, "run", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"(--[a-z][a-z-]+)", shown)) - {"--help"}
    assert options and {name for name in options if name not in text} == set()
