"""Memory: batches are halved where it runs out, and the most that was used is told."""

from __future__ import annotations

from pathlib import Path

import command
import pandas as pd
import pytest
import torch
from support import refusal

from benchmark import room
from benchmark.config import Config
from benchmark.errors import SpecError, VictimError
from benchmark.surroundings import Surroundings, check_device, choose_device

bench = command.bench

HERE = Surroundings(Config(), batch=40)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(room, "_halvings", {})


def needing(most, seen):
    """Work that fits when at most so many images go together."""

    def do(surroundings):
        seen.append(surroundings.batch_for(3))
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seen[-1]

    return do


def test_batches_are_halved_until_they_fit():
    seen = []
    assert room.within_memory(needing(12, seen), HERE) == 10
    assert seen == [40, 20, 10]
    assert room.halvings(HERE) == 2


def test_what_did_not_fit_once_is_not_tried_again():
    seen = []
    room.within_memory(needing(12, []), HERE)
    room.within_memory(needing(100, seen), HERE)
    assert seen == [10]


def test_one_image_that_does_not_fit_ends_it_in_a_line():
    seen = []
    message = refusal(VictimError, lambda: room.within_memory(needing(0, seen), HERE))
    assert seen == [40, 20, 10, 5, 2, 1]
    assert "single image" in message and "--shard" in message


def test_work_that_no_batch_makes_smaller_is_not_begun_for_ever():
    seen = []

    def do(surroundings):
        seen.append(surroundings.halvings)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        room.within_memory(do, HERE)
    assert seen == list(range(25))


def test_other_errors_pass():
    def do(_surroundings):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        room.within_memory(do, HERE)
    assert room.halvings(HERE) == 0


def test_the_peak_is_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:1": 7}.get)
    assert room.peak_memory("cuda:1") == 7
    assert room.peak_memory("cpu") == 0


def test_the_mark_says_what_was_needed():
    mark = room.Mark()
    assert mark.lines("cpu") == []
    mark.see(3 * 2**29, 0)
    mark.see(2**29, 0)
    assert mark.lines("cpu") == []
    assert mark.lines("cuda") == ["peak memory: 1.50 GiB of the GPU"]
    mark.see(2**29, 2)
    first, second = mark.lines("cuda:1")
    assert first == "peak memory: 1.50 GiB of the GPU"
    assert "divided by 4" in second and "--batch" in second


@pytest.mark.parametrize(("there", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_there_is_one(there, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device("auto") == chosen
    assert choose_device("cuda:1") == "cuda:1"


def test_a_misspelt_device_is_told_of_auto():
    assert "Allowed: auto, cpu" in refusal(SpecError, lambda: check_device("gpu"))


NARROW = """
import torch
from benchmark.facts import Source
from benchmark.registry import model
from benchmark.victim import Victim
from torch import nn


class Network(nn.Module):
    def forward(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return torch.stack([images.amax((1, 2, 3)) - 0.5, 0.5 - images.amax((1, 2, 3))], 1)


@model(source=Source(paper="none", url="", year=2026))
def narrow(request):
    return Victim(Network(), mean=(0.0,), std=(1.0,), num_classes=2)
"""


def test_a_run_goes_on_with_smaller_batches_and_says_so(bench):
    more = ["--model", "narrow", "--plugin", command.plugin("narrow", NARROW), "--shard", "4"]
    whole = command.world(bench, *more, "--batch", "8")
    assert whole.code == 0, whole.err
    assert "memory ran out: the batch was divided by 4" in whole.err
    assert set(pd.read_csv("out/shards.csv")["batch"]) == {2}
    first = command.tables(Path("out"))
    quiet = command.world(bench, *more, "--batch", "2", "--out", "again")
    assert quiet.code == 0 and "ran out" not in quiet.err
    assert command.tables(Path("again")) == first
