"""The anti-adversary layer: its signs, its steps, and that labels stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import digits, streams
from torch import nn
from torch.nn.functional import cross_entropy

from benchmark.config import Config
from benchmark.contract.toy import small_data, small_victim
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.loading import load_victim
from benchmark.victim import Victim
from registry.defenses.anti_adversary import AntiAdversary, ascent

IMAGES = small_data().take(Split.EVAL, 12).images


def answer(victim, images, **given_):
    """Answers to images of different owners, as the engine asks for them: without gradients."""
    rows = torch.arange(len(images))
    return Defended(victim, AntiAdversary(**given_), 64).answer(images, rows, streams(len(images)))


def two_classes(seed, scale=1.0):
    """A linear victim of two classes in float64, and four images."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    victim = Victim(network, mean=(0.5,) * 3, std=(0.2, 0.3, 0.4), num_classes=2).double()
    weight = torch.randn((2, 12), generator=generator, dtype=torch.float64) * scale
    network[1].weight.copy_(weight)
    return victim, torch.rand((4, 3, 2, 2), generator=generator, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.sampled_from([0.01, 0.3]))
def test_in_a_linear_victim_each_pixel_goes_the_way_of_its_weight(seed, steps, alpha):
    victim, images = two_classes(seed)
    weight, label = victim.network[1].weight, victim(images).argmax(1)
    towards = (weight[label] - weight[1 - label]).sign().view_as(images)
    found = answer(victim, images, alpha=alpha, steps=steps)
    torch.testing.assert_close(found, victim(images + steps * alpha * towards))
    assert torch.equal(found.argmax(1), label)
    assert bool((cross_entropy(found, label, reduction="none") < 0.7).all())


@pytest.mark.parametrize("labels", [None, torch.arange(12) % 4])
def test_the_way_is_that_of_the_gradient_of_the_cross_entropy(labels):
    victim, leaf = small_victim(), IMAGES.clone().requires_grad_()
    logits = victim(leaf)
    wanted = logits.argmax(1) if labels is None else labels
    losses = cross_entropy(logits, wanted, reduction="none")
    (expected,) = torch.autograd.grad(losses.sum(), leaf)
    found, own = ascent(victim, IMAGES, labels)
    assert torch.equal(own, logits.argmax(1))
    assert torch.equal(found.sign(), expected.sign())
    # d CE = (1 - p_label) d (logsumexp of the others - z_label)
    torch.testing.assert_close(found * (1 - (-losses).exp()).view(-1, 1, 1, 1), expected)


class Waves(nn.Module):
    """Logits that rise and fall along every line, so that a long step changes the label."""

    def forward(self, images):
        """Map (n, C, H, W) to (n, 3)."""
        return (images.mean((1, 2, 3))[:, None] * torch.tensor([5.0, 8.0, 11.0])).sin()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("alpha", [4 / 255, 0.5])
@pytest.mark.parametrize("waves", [False, True])
def test_an_answer_is_that_of_the_algorithm_as_printed(steps, alpha, waves):
    victim, moves = small_victim(), torch.zeros_like(IMAGES)
    if waves:
        victim = Victim(Waves(), mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=3).double()
    labels, changed = victim(IMAGES).argmax(1), False
    for _ in range(steps):
        leaf = moves.clone().requires_grad_()
        logits = victim(IMAGES + leaf)
        changed |= not torch.equal(logits.argmax(1), labels)
        (slopes,) = torch.autograd.grad(cross_entropy(logits, labels), leaf)
        moves = moves - alpha * slopes.sign()
    found = answer(victim, IMAGES, alpha=alpha, steps=steps)
    torch.testing.assert_close(found, victim(IMAGES + moves), rtol=1e-9, atol=1e-9)
    outside = bool(((IMAGES + moves < 0) | (IMAGES + moves > 1)).any())
    assert outside or waves  # clipping would show
    assert changed or not (waves and alpha == 0.5 and steps > 1)  # another label would show


def test_a_victim_that_is_very_sure_is_moved_all_the_same():
    victim, images = two_classes(3, scale=300.0)
    victim, images = victim.float(), images.float()
    label = victim(images).argmax(1)
    leaf = images.clone().requires_grad_()
    (flat,) = torch.autograd.grad(cross_entropy(victim(leaf), label, reduction="sum"), leaf)
    assert bool((flat.flatten(1).abs().amax(1) == 0).any())  # the loss has rounded to zero
    weight = victim.network[1].weight
    towards = (weight[label] - weight[1 - label]).sign().view_as(images)
    torch.testing.assert_close(answer(victim, images), victim(images + 8 / 255 * towards))


def test_a_sample_of_digits_keeps_its_labels_and_gains_margin():
    problem, bare = digits(1, count=200)
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    images = problem.images
    logits, found = bare(images, problem.labels), answer(victim, images)
    kept = (found.argmax(1) == logits.argmax(1)).float().mean()
    assert float(kept) >= 0.95
    before, after = (z.topk(2).values.diff().neg().mean() for z in (logits, found))
    assert float(after) > 1.3 * float(before)
    alone = torch.cat([answer(victim, image[None]) for image in images[:16]])
    torch.testing.assert_close(found[:16], alone, rtol=0, atol=1e-4)
