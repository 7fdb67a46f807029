"""`bench regress` on a small suite: planted regressions are caught, an unchanged rerun passes."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import command
import pytest
from command import refused

from benchmark import api, oracle
from benchmark.acceptance import accept
from benchmark.recorded import Recorded
from benchmark.regression import compare
from benchmark.tasks import look
from registry.moves import windows

bench = command.bench
SUITE = """
attacks: "square,nes[pairs=5]"
defenses: [rnd]
images: 30
queries: 100
budgets: [50, 100]
eps: 0.1
"""


@pytest.fixture(scope="module", autouse=True)
def _untimed():
    """Times of a query are not compared; they need a second a defense."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "_SECONDS", 1e-9)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, _untimed):
    """A suite and the root of its reference; no test may change them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.yaml").write_text(SUITE)
    api.run(str(folder / "tiny.yaml"), jobs=1, out=folder / "run")
    accept(folder / "run", "tiny", "first numbers", folder / "reference", ("images.parquet",))
    return folder


@pytest.fixture
def regress(bench, made):
    def call(*args, reference=made / "reference"):
        given = [made / "tiny.yaml", "--reference", reference, "--jobs", 1, *args]
        return bench("regress", *given)

    return call


@pytest.fixture
def elsewhere(made, tmp_path):
    """The reference as if it was made on another processor."""
    folder = shutil.copytree(made / "reference", tmp_path / "elsewhere")
    path = folder / "tiny" / "shards.csv"
    text = path.read_text()
    assert " cpu=" in text
    path.write_text(text.replace(" cpu=", " cpu=Other-"))
    return folder


def test_an_unchanged_rerun_passes(regress, elsewhere, tmp_path):
    outcome = regress("--out", "kept")
    assert (outcome.code, outcome.out.splitlines()[1:]) == (0, ["every number is equal"])
    verdict = compare(Recorded.read(elsewhere / "tiny"), Recorded.read(tmp_path / "kept"))
    assert (verdict.moved, verdict.still[:23]) == ([], "0 of 120 images moved, ")
    assert "cpu " in verdict.how


def halved(patch):
    """Square's p."""
    real = windows.sides
    patch.setattr(
        "registry.attacks.square.sides", lambda n, span, p, *a, **k: real(n, span, p / 2, *a, **k)
    )


def shared(patch):
    """RND's noise, by all images of a batch."""
    rnd = importlib.import_module("registry.defenses.rnd").Rnd
    real = rnd.on_images

    def same(self, images, context):
        return images + (real(self, images, context) - images)[:1]

    patch.setattr(rnd, "on_images", same)


def early(patch):
    """The count begins with none."""

    class Gathered(oracle._Gathered):
        rank = property(
            lambda self: self._rank - 1, lambda self, value: setattr(self, "_rank", value)
        )

    patch.setattr(oracle, "_Gathered", Gathered)


PLANTS = {"Square's p halved": halved, "RND's noise shared": shared, "count off by one": early}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_regression_is_caught_here_and_elsewhere(regress, elsewhere, monkeypatch, plant):
    PLANTS[plant](monkeypatch)
    outcome = regress("--out", "kept")
    assert outcome.code == 3
    assert outcome.out.count("images moved; exact: cannot differ by chance") >= 1
    found = compare(Recorded.read(elsewhere / "tiny"), Recorded.read(Path("kept")))
    assert found.moved and all("(p " in line for line in found.moved)


def test_a_suite_without_a_reference_is_refused(bench, regress, tmp_path):
    nowhere = refused(regress(reference=tmp_path))
    assert nowhere.endswith(f"has no reference: there is no folder '{tmp_path / 'tiny'}'\n")
    assert "unknown suite 'smok'. Did you mean: smoke?" in refused(bench("regress", "smok"))


@pytest.mark.parametrize("name", ["cells.csv", "shards.csv", "images.parquet"])
def test_a_reference_that_lacks_what_is_needed_is_refused(regress, elsewhere, name):
    path = elsewhere / "tiny" / name
    path.write_bytes(b"none")
    assert f"'{path}' is no table with the columns" in refused(regress(reference=elsewhere))
    path.unlink()
    assert f"has no {name}" in refused(regress(reference=elsewhere))


def test_images_of_another_run_are_refused(regress, elsewhere, made):
    path = elsewhere / "tiny" / "shards.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "is not of the same run as shards.csv" in refused(regress(reference=elsewhere))


def test_a_rerun_does_nothing_from_memory(regress, made):
    said = refused(regress("--out", made / "run"))
    assert "has results already: a rerun begins with nothing" in said
