"""Calls of the command `bench` for tests, and plug-ins of strangers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmark import api, catalogue, cli, loading

BENCH = Path(sys.executable).with_name("bench")
SMALL = ["--images", "4", "--queries", "5", "--shard", "2", "--jobs", "1"]
TABLES = ("cells.csv", "shards.csv", "images.parquet")
KINDS = (
    catalogue.ATTACKS,
    catalogue.DEFENSES,
    catalogue.MODELS,
    catalogue.DATASETS,
    catalogue.STEALERS,
)

# Eight images of label 0, told apart by their first pixel: 0, 0.1, 0.2, 0.3 in split eval.
WORLD = '''
import numpy as np
import torch
from torch import nn

from benchmark.data import Dataset, Split
from benchmark.facts import Source
from benchmark.registry import dataset, model
from benchmark.types import Norm
from benchmark.victim import Victim

SOURCE = Source(paper="none", url="", year=2026)


def _images(name, scale):
    images = torch.zeros(8, 1, 6, 6)
    images[:, 0, 0, 0] = torch.arange(8) * scale
    splits = dict(zip(Split, (np.arange(4), np.arange(4, 6), np.arange(6, 8))))
    labels = np.zeros(8, dtype=np.int64)
    return Dataset(name, labels, ("a", "b"), splits, lambda ids: images[ids], "f" * 16)


@dataset(source=SOURCE, model="steady", eps={Norm.LINF: 0.01})
def grey(request):
    """Images in [0, 1]."""
    return _images("grey", 0.1)


@dataset(source=SOURCE, model="steady", eps={Norm.LINF: 0.01})
def bright(request):
    """The third image is outside [0, 1]."""
    return _images("bright", 0.6)


class Network(nn.Module):
    def __init__(self, limit, classes):
        super().__init__()
        self.limit, self.classes = limit, classes

    def forward(self, images):
        logits = torch.zeros(len(images), self.classes)
        logits[:, 0] = 1.0
        logits[images[:, 0, 0, 0] > self.limit] = torch.nan
        return logits


def _victim(limit=2.0, classes=2, said=2):
    return Victim(Network(limit, classes), mean=(0.0,), std=(1.0,), num_classes=said)


@model(source=SOURCE)
def steady(request):
    """Always answers class 0."""
    return _victim()


@model(source=SOURCE)
def halfway(request):
    """Answers NaN for the third image and the fourth."""
    return _victim(limit=0.15)


@model(source=SOURCE)
def seven(request):
    """Has seven classes and says so."""
    return _victim(classes=7, said=7)


@model(source=SOURCE)
def liar(request):
    """Has seven classes and says two."""
    return _victim(classes=7)
'''

ATTACK = '''
from benchmark.facts import Source
from benchmark.registry import attack
from benchmark.types import Access, Norm, Queries


@attack(
    source=Source(paper="none", url="", year=2026),
    access=Access.SCORES, norms=(Norm.LINF,), randomised=False,
)
def {name}(problem, rng):
    """Does what its only line says."""
    images, rows = problem.images.clone(), problem.rows
    while True:
        {line}
        yield Queries(images, rows)
'''
LEAVES = "images[1] += 0.02"
RAISES = "if images[0, 0, 0, 0] > 0.15: raise RuntimeError('two\\nlines')"


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """Call the command in this process; what it registers or loads is forgotten afterwards."""
    for name in [name for name in os.environ if name.startswith("QUERYBENCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, args)])
        code = cli._guarded()
        return Outcome(code, *capsys.readouterr())

    catalogue.load_all()
    names = [{entry.name for entry in kind} for kind in KINDS]
    files = set(catalogue._loaded)
    call.forget = lambda: _forget(names, files)
    call.forget()
    yield call
    call.forget()


def _forget(names, files):
    for kind, known in zip(KINDS, names, strict=True):
        for entry in list(kind):
            if entry.name not in known:
                kind.remove(entry.name)
                sys.modules.pop(entry.module, None)
    catalogue._loaded.intersection_update(files)
    loading.forget()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the finished shards of one cell; no test may change it."""
    out = tmp_path_factory.mktemp("kept")
    cells = api.run(attacks="square", images=4, queries=5, shard=2, jobs=1, out=out)
    assert len(cells) == 1
    return out


def plugin(name, text):
    path = Path(f"{name}.py").resolve()
    path.write_text(text)
    return path


def attack(name, line):
    return plugin(name, ATTACK.format(name=name, line=line))


def stored(out):
    """Content and time of every finished shard."""
    files = (out / "shards").iterdir()
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def tables(out):
    return [(out / name).read_bytes() for name in TABLES]


def refused(outcome, code=2):
    """Check that there is one line and nothing else; return it."""
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert (outcome.code, outcome.out) == (code, "")
    return outcome.err


def world(bench, *args):
    world = plugin("world", WORLD)
    more = ["--attacks", "square", "--plugin", world, *SMALL, "--out", "out", *args]
    return bench("run", "--dataset", "grey", *more)


def piped(*args, cwd):
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYBENCH_")}
    command = [str(part) for part in (BENCH, *args)]
    return subprocess.run(
        command, check=False, cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )
