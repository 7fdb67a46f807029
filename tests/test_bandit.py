"""The bandit over classes of a pool: its policy, its step, its rewards."""

from __future__ import annotations

import pytest
import torch
from stealing import CLASSES

from registry.parts.bandit import Bandit


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
