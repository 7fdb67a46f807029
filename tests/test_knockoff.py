"""Knockoff nets: what is asked, in which order, and what is learned of it."""

from __future__ import annotations

import io
import math

import pytest
import torch
from stealing import CLASSES, SHAPE, Client, knockoff, learned, run, spend
from support import refusal
from torch.nn.functional import cross_entropy

from benchmark.catalogue import STEALERS
from benchmark.config import Config
from benchmark.data import Split
from benchmark.errors import SpecError
from benchmark.loading import load_dataset, load_victim
from benchmark.stealing.pool import open_pool
from benchmark.stealing.stealer import Scene
from registry.parts import distil
from registry.parts.clones import CloneName
from registry.stealing.knockoff import Knockoff, Labels, Strategy

BOTH = pytest.mark.parametrize("strategy", list(Strategy))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@BOTH
@pytest.mark.parametrize(("budget", "repeats"), [(100, 1), (100, 4), (130, 1), (600, 150), (7, 7)])
def test_exactly_the_budget_is_asked(strategy, budget, repeats):
    attack, client = knockoff(budget, strategy=strategy, repeats=repeats), Client()
    assert spend(attack, budget, client) == budget == len(client.images)
    assert len(attack.transfer) == budget // repeats
    assert attack.transfer.targets.shape == (budget // repeats, CLASSES)
    assert attack.transfer.targets.sum(1).allclose(torch.ones(budget // repeats))


@BOTH
def test_what_cannot_pay_all_repeats_of_an_image_is_left(strategy):
    attack, client = run(23, strategy=strategy, repeats=4)
    assert len(client.images) == 20
    assert spend(attack, 3, client) == 0


def test_a_random_step_asks_128_queries_and_an_adaptive_one_64_images():
    assert run(300)[1].sizes == [128, 128, 44]
    assert run(300, repeats=3)[1].sizes == [126, 126, 48]
    assert run(300, strategy=Strategy.ADAPTIVE)[1].sizes == [64, 64, 22, 128, 22]
    assert run(300, strategy=Strategy.ADAPTIVE, repeats=3)[1].sizes == [192, 108]


def test_the_random_order_is_that_of_the_seed_alone():
    first, client = knockoff(400), Client(1)
    spend(first, 400, client)
    second, other = knockoff(400, repeats=1, labels=Labels.ARGMAX), Client(2)
    for left in (100, 30, 270):  # checkpoints do not matter either
        spend(second, left, other)
    assert torch.equal(client.images, other.images)
    third, another = knockoff(400, seed=1), Client(1)
    spend(third, 400, another)
    assert not torch.equal(client.images[:150], another.images[:150])
    assert not torch.equal(client.images[150:], another.images[150:])


@BOTH
def test_a_larger_budget_begins_with_the_same_questions(strategy):
    _, small = run(90, strategy=strategy)
    attack, large = knockoff(190, strategy=strategy), Client()
    spend(attack, 90, large)
    learned(attack)
    spend(attack, 100, large)
    assert torch.equal(large.images[:90], small.images)
    assert len(large.images) == 190


@BOTH
def test_a_clone_is_trained_anew_at_each_checkpoint(strategy):
    one, client = knockoff(120, strategy=strategy), Client()
    spend(one, 64, client)
    early = {name: value.clone() for name, value in learned(one).items()}
    spend(one, 56, client)
    late = learned(one)
    other, client = knockoff(120, strategy=strategy), Client()
    spend(other, 64, client)
    spend(other, 56, client)
    assert same(late, learned(other))
    assert not same(late, early)


def test_learning_asks_nothing_and_uses_the_answers_that_were_given():
    attack, client = run(100)
    targets = attack.transfer.targets.clone()
    learned(attack)
    assert len(client.images) == 100
    assert torch.equal(attack.transfer.targets, targets)
    assert torch.equal(targets, client.answer(client.images))
    again = attack.transfer.again(torch.tensor([99, 3, 57]))
    assert torch.equal(again, client.images[[99, 3, 57]])


def test_answers_to_the_same_image_are_averaged():
    attack, client = knockoff(repeats=3), Client()
    step = attack.step(6)
    images = next(step)
    assert torch.equal(images[[0, 2, 4]], images[:1].expand(3, *SHAPE))
    assert torch.equal(images[[1, 3, 5]], images[1:2].expand(3, *SHAPE))
    weights = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])[:, None]
    told = weights * torch.tensor([1.0, 0, 0, 0]) + (1 - weights) * client.answer(images)
    with pytest.raises(StopIteration):
        step.send(told)
    first = (torch.tensor([1.0, 0, 0, 0]) + 2 * client.answer(images[:1])) / 3
    assert attack.transfer.targets[:1].allclose(first)
    assert attack.transfer.targets[1:].allclose(
        (torch.tensor([1.0, 0, 0, 0]) + 2 * client.answer(images[1:2])) / 3
    )


@BOTH
def test_the_best_class_alone_is_learned_where_that_is_wanted(strategy):
    attack, client = run(64, strategy=strategy, labels=Labels.ARGMAX)
    targets = attack.transfer.targets
    assert set(targets.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(targets.argmax(1), client.answer(client.images).argmax(1))
    assert torch.equal(targets.sum(1), torch.ones(64))


def test_the_loss_is_at_least_the_entropy_of_the_answers():
    attack, client = run(128, epochs=20)
    learned(attack)
    with torch.no_grad():
        logits = attack.clone(client.images)
    answers = attack.transfer.targets
    losses = cross_entropy(logits, answers, reduction="none")
    entropies = -(answers * answers.log()).sum(1)
    assert (losses >= entropies - 1e-5).all()
    untrained = cross_entropy(torch.zeros_like(logits), answers)
    assert losses.mean() - entropies.mean() < 0.6 * (untrained - entropies.mean())


def test_with_no_answer_the_clone_is_an_untrained_one():
    attack = knockoff(3, repeats=5)
    assert spend(attack, 3, Client()) == 0
    untouched = {name: value.clone() for name, value in learned(attack).items()}
    fresh = attack._network("learn", 0).state_dict()
    assert same(untouched, fresh)


@BOTH
@pytest.mark.parametrize("first", [64, 200])
def test_a_run_that_is_taken_up_again_equals_one_that_was_not_cut(strategy, first):
    one, client = knockoff(300, strategy=strategy), Client()
    spend(one, first, client)
    learned(one)
    file = io.BytesIO()
    torch.save(one.state(), file)
    file.seek(0)
    other, later = knockoff(300, strategy=strategy), Client()
    other.resume(torch.load(file, weights_only=True))
    spend(one, 300 - first, client)
    spend(other, 300 - first, later)
    assert torch.equal(client.images[first:], later.images)
    assert same(learned(one), learned(other))
    assert torch.equal(one.transfer.targets, other.transfer.targets)
    if strategy is Strategy.ADAPTIVE:
        assert same(one.bandit.state_dict(), other.bandit.state_dict())
        assert same(one.online.state_dict(), other.online.state_dict())


def test_the_rate_falls_to_zero_along_a_cosine_over_all_steps(monkeypatch):
    rates = []
    monkeypatch.setattr(distil, "descend", lambda _clone, by, *_: rates.append(rate(by)))
    attack, _ = run(100, epochs=3, batch=33, rate=0.4)
    with pytest.warns(UserWarning, match="lr_scheduler.step"):  # nothing is trained here
        list(attack.learn())
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 9)) for i in range(9)])


def rate(optimizer):
    return optimizer.param_groups[0]["lr"]


def test_while_asking_a_clone_learns_from_every_batch_but_from_no_single_image():
    attack, client = knockoff(strategy=Strategy.ADAPTIVE), Client()
    weights = [value.clone() for value in attack.online.state_dict().values()]
    spend(attack, 1, client)
    assert all(map(torch.equal, weights, attack.online.state_dict().values()))
    spend(attack, 2, client)
    assert not any(map(torch.equal, weights, attack.online.state_dict().values()))


def test_answers_steer_the_adaptive_strategy():
    one, other = Client(1), Client(2)
    spend(knockoff(strategy=Strategy.ADAPTIVE), 128, one)
    spend(knockoff(strategy=Strategy.ADAPTIVE), 128, other)
    assert torch.equal(one.images[:64], other.images[:64])
    assert not torch.equal(one.images[64:], other.images[64:])


def test_presets_and_parameters_are_checked():
    official = STEALERS.choose("knockoff@official").values
    assert (official["momentum"], official["decay"], official["epochs"]) == (0.5, 0.0, 100)
    assert STEALERS.choose("knockoff[strategy=adaptive]").values["strategy"] is Strategy.ADAPTIVE
    assert "repeats=0" in refusal(SpecError, lambda: STEALERS.choose("knockoff[repeats=0]"))
    assert "batch=1" in refusal(SpecError, lambda: STEALERS.choose("knockoff[batch=1]"))


def test_a_clone_of_the_digit_victim_agrees_with_it():
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    pool = open_pool(data, None, (1, 28, 28))
    attack = Knockoff(network=CloneName.CNN, epochs=5)
    attack.begin(Scene((1, 28, 28), 10, 1500, 0, pool, torch.device("cpu")))
    client = Client()
    client.images = torch.zeros(0, 1, 28, 28)
    client.answer = torch.no_grad()(lambda images: victim(images).softmax(1))
    assert spend(attack, 1500, client) == 1500
    list(attack.learn())
    images = data.take(Split.EVAL, 500).images
    with torch.no_grad():
        agreed = (attack.clone(images).argmax(1) == victim(images).argmax(1)).float().mean()
    assert agreed > 0.9
