"""Knockoff nets: what is asked, in which order, what is learned of it, and the bandit."""

from __future__ import annotations

import io

import pytest
import torch
from stealing import CLASSES, SHAPE, Client, learned, spend, tiny_pool, tiny_scene
from support import refusal
from torch.nn.functional import cross_entropy

from benchmark.catalogue import STEALERS
from benchmark.config import Config
from benchmark.data import Split
from benchmark.errors import SpecError
from benchmark.loading import load_dataset, load_victim
from benchmark.stealing.pool import open_pool
from benchmark.stealing.stealer import Scene
from registry.parts.bandit import Bandit
from registry.parts.clones import CloneName
from registry.parts.transfer import blend
from registry.stealing.knockoff import Knockoff, Labels, Strategy

BOTH = pytest.mark.parametrize("strategy", list(Strategy))


def knockoff(budget=100, seed=0, pool=None, **given):
    attack = Knockoff(network=CloneName.CNN, **{"epochs": 2, **given})
    attack.begin(tiny_scene(budget, seed, pool))
    return attack


def run(budget, **given):
    attack, client = knockoff(budget, **given), Client()
    spend(attack, budget, client)
    return attack, client


def places(images, pool):
    """Places in the pool of images; -1 of those that are not in it."""
    whole = pool.read(torch.arange(len(pool)))
    same = (images[:, None] == whole[None]).flatten(2).all(2)
    return torch.where(same.any(1), same.float().argmax(1), -1).tolist()


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


@BOTH
def test_no_image_of_the_pool_comes_twice_before_all_came(strategy):
    pool = tiny_pool()
    _, client = run(150, strategy=strategy)
    assert sorted(places(client.images, pool)) == list(range(150))
    _, client = run(400, strategy=strategy)
    assert sorted(places(client.images[:150], pool)) == list(range(150))
    assert set(places(client.images[150:], pool)) == {-1}
    assert len(client.images.flatten(1).unique(dim=0)) == 400


def test_a_pool_of_one_image_is_shifted():
    _, client = run(30, pool=tiny_pool(1, classes=1))
    assert len(client.images) == 30
    assert 5 <= len(client.images.flatten(1).unique(dim=0)) <= 9


def test_a_pool_smaller_than_a_step_is_gone_through_several_times():
    _, client = run(50, pool=tiny_pool(5))
    assert sorted(places(client.images[:5], tiny_pool(5))) == list(range(5))
    assert len(client.images.flatten(1).unique(dim=0)) == 50


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


def test_a_state_holds_no_image():
    attack, _ = run(150)
    sizes = {tuple(value.shape) for value in attack.state()["transfer"].values()}
    assert sizes == {(150,), (150, CLASSES)}
    assert set(attack.state()) == {"transfer"}


@BOTH
def test_samples_are_images_that_were_not_asked_about_and_move_no_stream(strategy):
    pool = tiny_pool()
    attack, client = run(100, strategy=strategy)
    drawn = attack.sample(40, torch.Generator().manual_seed(3))
    found = places(drawn, pool)
    assert len(set(found)) == 40 and -1 not in found
    assert not set(found) & set(places(client.images, pool))
    many = places(attack.sample(70, torch.Generator().manual_seed(3)), pool)
    assert many.count(-1) == 20 and len(set(many)) == 51
    calm, other = run(100, strategy=strategy)
    spend(attack, 100, client)
    spend(calm, 100, other)
    assert torch.equal(client.images, other.images)
    used_up = attack.sample(30, torch.Generator().manual_seed(3))
    assert set(places(used_up, pool)) == {-1} and used_up.shape == (30, *SHAPE)
    assert torch.equal(used_up, attack.sample(30, torch.Generator().manual_seed(3)))


def test_a_blend_mixes_two_images_and_shifts_the_mixture():
    one, other = torch.rand(2, 3, 16, 8), torch.rand(2, 3, 16, 8)
    drawn = torch.tensor([[0.25, 0.5, 0.5], [1.0, 0.0, 0.99]])  # in the middle; up to 2 either way
    found = blend(one, other, drawn)
    assert found[0].allclose(0.25 * one[0] + 0.75 * other[0])
    moved = torch.zeros(3, 16, 8)
    moved[:, 2:, :-2] = one[1, :, :-2, 2:]
    assert torch.equal(found[1], moved)


def bandit(classes=4, count=400):
    return Bandit(torch.arange(count) % classes, classes, CLASSES)


def test_the_policy_adds_up_to_one_and_stays_uniform_when_rewards_are():
    chooser, stream = bandit(), torch.Generator().manual_seed(0)
    for _ in range(8):
        numbers = chooser.choose(16, stream)
        chooser.reinforce(numbers, torch.full((16,), 0.7, dtype=torch.float64))
        assert float(chooser.policy().sum()) == pytest.approx(1)
    assert chooser.policy().allclose(torch.full((4,), 0.25, dtype=torch.float64))
    chooser = bandit()
    for _ in range(3):
        numbers = chooser.choose(16, stream)
        answer = torch.tensor([[0.6, 0.3, 0.1, 0.0]]).expand(16, -1)
        chooser.update(numbers, answer, torch.full((16,), 1.3))
    assert chooser.policy().allclose(torch.full((4,), 0.25, dtype=torch.float64))


def test_the_policy_prefers_the_class_with_the_higher_reward():
    chooser, stream = bandit(count=40_000), torch.Generator().manual_seed(0)
    for _ in range(20):
        numbers = chooser.choose(64, stream)
        chooser.reinforce(numbers, (numbers % 4 == 2).double())
    policy = chooser.policy()
    assert policy.argmax() == 2 and policy[2] > 0.4
    assert chooser.drawn.argmax() == 2
    assert policy[[0, 1, 3]].std() < 0.05


def test_one_step_of_the_bandit_is_the_formula():
    chooser, stream = bandit(), torch.Generator().manual_seed(0)
    numbers = chooser.choose(10, stream)
    rewards = torch.arange(10).double()
    chooser.reinforce(numbers, rewards)
    wanted = [0.0] * 4
    actions = (numbers % 4).tolist()
    for action, reward in zip(actions, rewards.tolist(), strict=True):
        gain = (reward - 4.5) / actions.count(action)
        for label in range(4):
            wanted[label] += gain * ((label == action) - 0.25)
    assert chooser.preferences.tolist() == pytest.approx(wanted)


def test_rewards_are_mean_z_scores_over_all_images_so_far():
    chooser, stream = bandit(), torch.Generator().manual_seed(0)
    answers = torch.rand((30, CLASSES), generator=stream, dtype=torch.float64)
    answers, losses = answers / answers.sum(1, keepdim=True), torch.rand(30, dtype=torch.float64)
    chooser.choose(30, stream)
    found = chooser.rewards(answers, losses)
    best = answers.sort(1, descending=True).values
    above = (answers - answers.mean(0)).clamp_min(0).sum(1)
    signals = torch.stack((best[:, 0] - best[:, 1], above, losses), 1)
    wanted = ((signals - signals.mean(0)) / signals.std(0, correction=0)).mean(1)
    assert found.allclose(wanted)
    chooser.choose(1, stream)
    certain = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    found = chooser.rewards(certain, losses.mean()[None])
    mean = torch.cat((answers, certain)).mean(0)
    last = torch.stack((torch.ones(()), (certain[0] - mean).clamp_min(0).sum(), losses.mean()))
    signals = torch.cat((signals, last[None]))
    wanted = ((signals - signals.mean(0)) / signals.std(0, correction=0)).mean(1)
    assert found.allclose(wanted[-1:])


def test_a_class_that_is_used_up_or_has_no_image_is_not_drawn():
    labels = torch.tensor([0] * 3 + [2] * 5)
    chooser = Bandit(labels, 4, CLASSES)
    numbers = chooser.choose(8, torch.Generator().manual_seed(0))
    assert sorted(numbers.tolist()) == list(range(8))
    chooser = Bandit(labels, 4, CLASSES)
    chooser.preferences[0] = 2000.0  # beyond what an exponential can hold
    numbers = chooser.choose(4, torch.Generator().manual_seed(0)).tolist()
    assert sorted(numbers[:3]) == [0, 1, 2] and labels[numbers[3]] == 2
    assert chooser.policy().tolist() == [0, 0, 1, 0]


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
