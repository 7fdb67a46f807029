"""Passes in fixed shapes: what is played is what the network says, and nothing is passed by."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_victim

from benchmark.config import Config
from benchmark.defended import Defended
from benchmark.graphs import Graphs, filled, unplayed
from benchmark.loading import load_dataset, load_victim
from benchmark.rng import RowRng
from benchmark.stack import DefenseChoice

SHAPE = (3, 8, 7)


class Recorder:
    """Stands for CUDA graphs: playing does the pass again on what lies in its input."""

    def __init__(self, wrong=0.0, error=None):
        self.shapes, self.played, self.wrong, self.error = [], 0, wrong, error

    def __call__(self, pass_, still):
        if self.error:
            raise self.error
        self.shapes.append(tuple(still.shape))

        def play():
            self.played += 1
            return pass_(still) + self.wrong

        return play


@pytest.fixture
def victim():
    found = tiny_victim(SHAPE).float()
    found.graphs = Graphs(Recorder())
    return found


def images(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def recorder(victim):
    return victim.graphs._record


def test_batches_are_filled_up_to_few_sizes():
    assert [filled(n) for n in (1, 16, 17, 24, 25, 32, 33, 48, 49, 100, 1000, 2731)] == [
        *(16, 16, 24, 24, 32, 32, 48, 48, 64, 128, 1024, 3072)
    ]
    assert len({filled(n) for n in range(1, 4097)}) == 17
    assert all(n <= filled(n) <= max(16, 1.5 * n) for n in range(1, 4097))


@torch.no_grad()
def test_played_passes_give_each_image_its_own_answer(victim):
    for count in (20, 3, 24, 17, 1):
        shown = images(count, count)
        torch.testing.assert_close(victim.classify(shown), victim(shown), rtol=0, atol=1e-6)
    assert recorder(victim).shapes == [(24, *SHAPE), (16, *SHAPE)]


@torch.no_grad()
def test_an_answer_outlives_the_next_pass(victim):
    first = victim.classify(images(4))
    kept = first.clone()
    victim.classify(images(4, 1))
    assert torch.equal(first, kept)


def test_a_pass_with_gradient_or_under_a_hook_is_done_in_full(victim):
    shown = images(2).requires_grad_()
    (slope,) = torch.autograd.grad(victim.classify(shown).sum(), shown)
    assert slope.abs().max() > 0
    with torch.no_grad():
        plain = victim.classify(images(2))
        with victim.edited({victim.stages()[0]: torch.zeros_like}):
            edited = victim.classify(images(2))
        assert not torch.allclose(plain, edited)
        before = recorder(victim).played
        assert victim.features(images(2)).dim() == 2
        assert recorder(victim).played == before


@torch.no_grad()
def test_a_pass_under_a_hook_of_the_victim_or_in_training_mode_is_done_in_full(victim):
    victim.classify(images(2))
    before = recorder(victim).played
    with victim.register_forward_hook(lambda *given: 2 * given[2]):
        assert torch.equal(victim.classify(images(2)), victim(images(2)))
    next(one for one in victim.network.modules() if not list(one.children())).train()
    victim.classify(images(2))
    assert recorder(victim).played == before
    victim.eval()
    victim.classify(images(2))
    assert recorder(victim).played == before + 1


@torch.no_grad()
def test_a_copy_with_other_weights_records_anew(victim):
    victim.classify(images(2))
    other = copy.deepcopy(victim)
    for value in other.network.parameters():
        value.mul_(2)
    assert torch.equal(other.classify(images(2)), other(images(2)))
    assert not torch.allclose(other.classify(images(2)), victim.classify(images(2)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Recorder(error=RuntimeError("not permitted\nwhen capturing")), "not permitted when"),
        (Recorder(wrong=0.1), "differ by"),
    ],
)
def test_a_network_that_cannot_be_recorded_is_asked_in_full_and_told_once(victim, record, reason):
    victim.graphs = Graphs(record)
    with pytest.warns(UserWarning, match=reason):
        first = victim.classify(images(2))
    for answer in (first, victim.classify(images(2)), victim.classify(images(2))):
        assert torch.equal(answer, victim(images(2)))  # a second warning would be an error


@torch.no_grad()
@pytest.mark.parametrize(
    "defense", ["none", "rnd", "feature", "aaa-linear", "unig", "rnd+rounding"]
)
def test_defenses_answer_as_without_graphs(defense):
    data = load_dataset("mnist", Config())
    samples = data.take("eval", 6)
    rows = torch.arange(6)
    answers = []
    for recorded in (None, Graphs(Recorder())):
        victim = copy.deepcopy(load_victim("mnist-cnn", "mnist", Config(), "cpu"))
        victim.graphs = recorded
        built = DefenseChoice.parse(defense).build()
        built.prepare(victim, data)
        defended = Defended(victim, built, 4)
        answers.append(defended.answer(samples.images, rows, RowRng(range(6))))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_is_counted_is_done_in_full(victim):
    with unplayed(victim):
        victim.classify(images(2))
    assert recorder(victim).played == 0
    victim.classify(images(2))
    assert recorder(victim).played == 2  # once to be checked


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_on_a_gpu_graphs_give_what_passes_give():
    victim = load_victim("mnist-cnn", "mnist", Config(), "cuda")
    assert isinstance(victim.graphs, Graphs)
    for count in (1, 100, 37, 1000, 100):
        shown = torch.rand(count, 1, 28, 28, device="cuda")
        torch.testing.assert_close(victim.classify(shown), victim(shown), rtol=1e-4, atol=1e-4)
    assert len(victim.graphs._recorded) == 4
