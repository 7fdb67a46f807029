"""Every bad input is one line and exit code 2, and loses nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import command
import pytest
import torch
from command import (
    SMALL,
    refused,
    stored,
    tables,
)
from safetensors.torch import save_file

from registry.models.mnist_cnn import SHIPPED

bench = command.bench
kept = command.kept

BAD = [
    (["--attacks", "sqare"], "unknown attack 'sqare'. Did you mean: square?"),
    (["--defenses", "rmd"], "unknown defense 'rmd'"),
    (["--model", "mnist-cn"], "unknown model 'mnist-cn'"),
    (["--dataset", "mnits"], "unknown dataset 'mnits'"),
    (["smok"], "unknown suite 'smok'. Did you mean: smoke?"),
    (["none.yaml"], "unknown suite 'none.yaml'"),
    (["--attacks", "square[q=1]"], "attack 'square' has no parameter 'q'"),
    (["--attacks", "square[p=2]"], "attack 'square': p=2 is not allowed"),
    (["--attacks", "square[p=1/0]"], "p=1/0 is not allowed"),
    (["--attacks", "square[p"], "is not of the form"),
    (["--attacks", "square[p=1,p=1]"], "'p' is given twice"),
    (["--attacks", ""], "no attack was named: give --attacks a,b or a suite"),
    (["--match-drop", "0"], "match_drop=0"),
    (["--match-drop", "1,two"], "match_drop=two"),
    (["--defenses", "none+rnd"], "'none' adds nothing to a stack"),
    (["--defenses", "rnd+rnd[sigma=0.1]"], "names a defense twice"),
    (["--defenses", "rnd+ung"], "unknown defense 'ung'"),
    (["--defenses", "rnd[sigma=x]"], "defense 'rnd': sigma=x is not allowed"),
    (["--defenses", "feature[stages=stem]"], "no stage 'stem'"),
    (["--eps", "-0.1"], "eps=-0.1 is not allowed"),
    (["--eps", "0"], "eps=0.0 is not allowed"),
    (["--eps", "nan"], "eps=nan is not allowed"),
    (["--eps", "1/0"], "eps=1/0 is not allowed"),
    (["--eps", "small"], "eps=small is not allowed"),
    (["--images", "1001"], "--images 1001: split 'eval' of data set 'mnist' has only 1000"),
    (["--images", "0"], "images=0 is not allowed"),
    (["--images", "many"], "--images"),
    (["--queries", "0"], "queries=0 is not allowed"),
    (["--budgets", "6"], "--budgets 6 lies beyond --queries 5"),
    (["--budgets", "1,x"], "budgets=x is not allowed"),
    (["--norm", "l3"], "norm=l3 is not allowed"),
    (["--attacks", "nes@unik"], "attack 'nes' has no preset 'unik'. Did you mean: unig"),
    (["--attacks", "nes@unig", "--norm", "l2"], "preset 'nes@unig' is for linf"),
    (["--attacks", "nes@unig[pairz=1]"], "has no parameter 'pairz'. Did you mean: pairs"),
    (["--attacks", "square[eot=5]"], "nothing is left to run: against 'none' a repeated question"),
    (["--attacks", "square[eot=6]", "--defenses", "rnd"], "asks each question 6 times"),
    (["--attacks", "square[eot=0]"], "eot=0 is not allowed"),
    (["--attacks", "square[reduce=mean]"], "reduce=mean is not allowed"),
    (["--attacks", "square[eot=2]", "--eot", "1,2"], "both say how often a question is asked"),
    (["--eot", "0"], "eot=0 is not allowed"),
    (["--eot", "x"], "eot=x is not allowed"),
    (["--scores", "top-0"], "scores=top-0 is not allowed: Allowed: logits"),
    (["--scores", "label"], "attack 'square' needs access 'scores', but --scores label"),
    (["--scores", "top-2", "--targeted"], "but --scores top-2 shows 'topk'"),
    (["--seed", "-1"], "seed=-1 is not allowed"),
    (["--votes", "2"], "votes=2 is not allowed: must be odd"),
    (["--probes", "here"], "probes=here is not allowed"),
    (["--scores", "raw"], "scores=raw is not allowed"),
    (["--shard", "0"], "shard=0 is not allowed"),
    (["--jobs", "0"], "--jobs"),
    (["--batch", "0"], "--batch"),
    (["--sedd", "1"], "No such option: --sedd"),
    (["--device", "tpu"], "device 'tpu' is not available. Allowed: auto, cpu"),
    (["--device", "meta"], "device 'meta' is not available"),
    (["--checkpoint", "none.safetensors"], "none.safetensors' does not exist"),
    (["--data-root", "nowhere"], "'nowhere' does not exist"),
    (["--config", "none.toml"], "none.toml"),
    (["--plugin", "none.py"], "none.py' does not exist"),
    (["--dataset", "folder"], "'folder' should be written folder:"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_a_bad_request_is_one_line_and_loses_nothing(bench, kept, args, message):
    before = stored(kept), tables(kept)
    outcome = bench("run", "--attacks", "square", *SMALL, "--out", kept, *args)
    assert message in refused(outcome)
    assert (stored(kept), tables(kept)) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rum"], "No such command 'rum'"),
        (["run"], "no attack was named"),
        (["list", "attack"], "unknown kind 'attack'. Did you mean: attacks"),
        (["show", "squar"], "unknown entry 'squar'. Did you mean: square?"),
        (["check", "squar"], "unknown entry 'squar'"),
        (["check", "none.py"], "none.py' does not exist"),
        (["status", "--out", "nowhere"], "'nowhere' holds no results"),
    ],
    ids=" ".join,
)
def test_a_bad_command_is_one_line(bench, args, message):
    assert message in refused(bench(*args))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"attack: square", "unknown field 'attack'. Did you mean: attacks?"),
        (b"attacks: square\nimages: few", "images=few is not allowed"),
        (b"[1, 2]", "is not a mapping"),
        (b"attacks: [", "is not YAML"),
        (b"1: 2", "unknown field '1'"),
        (b"\xff\xfe\x00", "is not YAML"),
    ],
)
def test_a_bad_suite_file_is_one_line(bench, content, message):
    Path("mine.yaml").write_bytes(content)
    assert message in refused(bench("run", "mine.yaml"))


def _state(classes):
    return SHIPPED.network(classes).state_dict()


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


CHECKPOINTS = {
    "noise.safetensors": lambda path: path.write_bytes(bytes(range(256))),
    "cut.safetensors": lambda path: path.write_bytes(SHIPPED.weights.read_bytes()[:-100]),
    "noise.pt": lambda path: path.write_bytes(bytes(range(256))),
    "pickle.pt": lambda path: path.write_bytes(pickle.dumps({"weight": Evil()})),
    "pickle.pth": lambda path: torch.save({"weight": Evil()}, path),
    "seven.safetensors": lambda path: save_file(_state(7), path),
    "other.pt": lambda path: torch.save({"weight": torch.zeros(3)}, path),
    "weights.txt": lambda path: path.write_text("none"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint_is_one_line_and_never_executed(bench, kept, name):
    before = stored(kept)
    CHECKPOINTS[name](Path(name))
    outcome = bench("run", "--attacks", "square", *SMALL, "--out", kept, "--checkpoint", name)
    message = refused(outcome)
    assert f"checkpoint '{name}'" in message
    assert ("the checkpoint has 7 classes, the data set 10" in message) == name.startswith("seven")
    assert not Path("executed").exists()
    assert stored(kept) == before
