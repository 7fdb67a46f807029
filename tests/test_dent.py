"""DENT: its optimisers, its affine parameters, what a query may feel, what is left behind."""

from __future__ import annotations

import copy
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import digits, refusal, streams, tiny_victim
from torch import nn
from torch.nn import functional

from benchmark.catalogue import DEFENSES
from benchmark.config import Config
from benchmark.contract.toy import small_data, small_victim
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.errors import SpecError
from benchmark.loading import load_victim
from benchmark.victim import Victim
from registry.defenses.dent import Dent, layers
from registry.parts.optimisers import Optimiser

IMAGES = small_data().take(Split.EVAL, 5).images


class ReluNorm(nn.BatchNorm2d):
    """Batch normalisation with an activation inside, as some model libraries have it."""

    def forward(self, maps):
        """Normalise and cut off what is negative."""
        return super().forward(maps).relu()


class SecondNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (n, C, H, W)."""

    def forward(self, maps):
        """Normalise over the second dimension."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def victim_of(*norms, seed=2):
    """A victim in float64 with two normalisations of random affine parameters and statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = norms
        tail = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)]
        parts = [nn.Conv2d(3, 4, 3), first, nn.ReLU(), nn.Conv2d(4, 5, 3), second, *tail]
        network = nn.Sequential(*parts)
        nn.init.normal_(network[-1].weight, std=1.5)
        for norm in norms:
            nn.init.normal_(norm.weight, 1.0, 0.5)
            nn.init.normal_(norm.bias)
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return Victim(network, mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=4).double()


VICTIMS = {
    "batch": lambda: victim_of(nn.BatchNorm2d(4), nn.BatchNorm2d(5)),
    "with relu": lambda: victim_of(ReluNorm(4), nn.BatchNorm2d(5, eps=0.1)),
    "layer": lambda: victim_of(SecondNorm(4), nn.LayerNorm((5, 4, 4))),
}


def answer(victim, images, **given_):
    """Answers to images of different owners, as the engine asks for them: without gradients."""
    defense = Dent(**given_)
    defense.check(victim)
    rows = torch.arange(len(images))
    return Defended(victim, defense, 64).answer(images, rows, streams(len(images)))


def entropy(logits):
    """Entropy of each row's prediction, (n,)."""
    return torch.distributions.Categorical(logits=logits).entropy()


class Slow:
    """The method spelled out: a copy of the victim for each row, joined for batch statistics."""

    def __init__(self, victim, count, online):
        self.copies = [copy.deepcopy(victim) for _ in range(count)]
        self.online = online
        self.norms = [list(layers(each).values()) for each in self.copies]
        self.leaves = [
            p.requires_grad_() for norms in self.norms for norm in norms for p in norm.parameters()
        ]

    def logits(self, images):
        """Classify each image by its own copy, (n, K)."""
        if not self.online:
            pairs = zip(self.copies, images, strict=True)
            return torch.cat([each(image[None]) for each, image in pairs])
        maps = [(image[None] - 0.5) / 0.25 for image in images]
        for place, part in enumerate(self.copies[0].network):
            if isinstance(part, nn.BatchNorm2d):
                plain = functional.batch_norm(
                    torch.cat(maps), None, None, None, None, True, 0, part.eps
                )
                own = [each.network[place] for each in self.copies]
                pairs = zip(plain.split(1), own, strict=True)
                maps = [m * n.weight[:, None, None] + n.bias[:, None, None] for m, n in pairs]
                if isinstance(part, ReluNorm):
                    maps = [m.relu() for m in maps]
            else:
                maps = [part(m) for m in maps]
        return torch.cat(maps)


def by_hand(victim, images, loss, online, steps, rate):
    """Answers with torch's own Adam."""
    slow = Slow(victim, len(images), online)
    adam = torch.optim.Adam(slow.leaves, lr=rate)
    for _ in range(steps):
        logits = slow.logits(images)
        value = entropy(logits).mean() if online or loss == "shot" else entropy(logits).sum()
        if loss == "shot":
            p = logits.softmax(1)
            mean = p.mean(0)
            value = -(p * (p + 1e-5).log()).sum() / len(p) + (mean * (mean + 1e-5).log()).sum()
        adam.zero_grad()
        value.backward()
        adam.step()
    return slow.logits(images).detach()


@pytest.mark.parametrize(
    ("kind", "loss", "statistics"),
    [
        ("batch", "tent", "static"),
        ("batch", "shot", "static"),
        ("batch", "tent", "online"),
        ("with relu", "tent", "static"),
        ("with relu", "shot", "online"),
        ("layer", "tent", "static"),
        ("layer", "shot", "static"),
    ],
)
@pytest.mark.parametrize("steps", [1, 6])
def test_an_answer_is_that_of_the_method_spelled_out(kind, loss, statistics, steps):
    victim = VICTIMS[kind]()
    given_ = {"loss": loss, "steps": steps, "rate": 0.02}
    expected = by_hand(victim, IMAGES, online=statistics == "online", **given_)
    found = answer(VICTIMS[kind](), IMAGES, statistics=statistics, optimiser="adam", **given_)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert float((expected - victim(IMAGES)).abs().max()) > 0.01


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1e-9, 1.0, 1e3]))
def test_adam_is_torchs_own(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.randn((6, 3, 2), generator=generator, dtype=torch.float64) * scale
    values = torch.zeros((3, 2), dtype=torch.float64, requires_grad=True)
    theirs, ours, found = torch.optim.Adam([values], lr=0.1), Optimiser("adam", 0.1), 0.0
    for slope in slopes:
        values.grad = slope.clone()
        theirs.step()
        found = found - ours.step(slope)
    torch.testing.assert_close(found, values.detach(), rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5).map(lambda g: g * 1e-4), min_size=1, max_size=6))
def test_adamod_caps_each_step_size_by_the_average_of_those_so_far(slopes):
    optimiser = Optimiser("adamod", 0.006)
    sizes = []
    for count, slope in enumerate(slopes, 1):
        past = slopes[:count]
        mean = sum(0.01 * 0.99 ** (count - 1 - i) * g for i, g in enumerate(past))
        square = sum(0.001 * 0.999 ** (count - 1 - i) * g * g for i, g in enumerate(past))
        corrected = (1 - 0.999**count) ** 0.5 / (1 - 0.99**count)
        sizes.append(0.006 * corrected / (square**0.5 + 1e-8))
        average = sum(0.4 * 0.6 ** (count - 1 - i) * size for i, size in enumerate(sizes))
        taken = float(optimiser.step(torch.tensor(slope, dtype=torch.float64)))
        assert taken == pytest.approx(min(sizes[-1], average) * mean, rel=1e-9, abs=1e-18)


def test_the_default_is_the_official_optimiser_on_the_plain_entropy():
    assert Dent() == Dent(rate=6e-3, steps=6, optimiser="adamod", loss="tent", statistics="static")
    victim = VICTIMS["batch"]()
    adamod = [answer(victim, IMAGES, steps=steps) for steps in (1, 6)]
    adam = [answer(victim, IMAGES, steps=steps, optimiser="adam") for steps in (1, 6)]
    bare = victim(IMAGES)
    # The first step of AdaMod is 0.4 of Adam's: the average of step sizes starts at zero.
    shares = (adamod[0] - bare) / (adam[0] - bare)
    assert float((shares.median() - 0.4).abs()) < 0.02
    assert bool((entropy(adamod[1]) < entropy(adamod[0])).all())


def test_alone_in_its_call_a_query_is_left_alone_by_the_marginal_entropy():
    victim = small_victim()
    for statistics in ("static", "online"):
        found = answer(victim, IMAGES[:1], loss="shot", statistics=statistics)
        with torch.no_grad():
            bare = victim(IMAGES[:1])
        assert torch.equal(found, bare)
    assert not torch.allclose(answer(victim, IMAGES[:1]), bare)


@pytest.mark.parametrize("loss", ["tent", "shot"])
@pytest.mark.parametrize("statistics", ["static", "online"])
def test_queries_feel_each_other_by_the_marginal_entropy_and_batch_statistics(loss, statistics):
    victim, other = VICTIMS["batch"](), IMAGES.clone()
    other[1:] = other[1:].flip(3)
    pair = [answer(victim, i, loss=loss, statistics=statistics, rate=0.02) for i in (IMAGES, other)]
    apart = float((pair[0][0] - pair[1][0]).abs().max())
    coupled = loss == "shot" or statistics == "online"
    assert (apart > 1e-6) == coupled
    assert Dent(loss=loss, statistics=statistics).traits.coupled == coupled


@pytest.mark.parametrize(
    ("preset", "coupled", "values"),
    [
        ("official", True, ("adamod", 6e-3, "shot", "static")),
        ("aaa", False, ("adam", 1e-3, "tent", "static")),
        ("unig", True, ("adam", 1e-3, "tent", "online")),
    ],
)
def test_presets_are_those_of_the_codes(preset, coupled, values):
    choice = DEFENSES.choose(f"dent@{preset}")
    defense = choice.entry.build(**choice.values)
    assert (defense.optimiser, defense.rate, defense.loss, defense.statistics) == values
    assert defense.steps == 6 and defense.traits.coupled == coupled


def test_a_victim_without_the_normalisation_is_refused():
    assert "none" in refusal(SpecError, lambda: Dent().check(tiny_victim()))
    message = refusal(SpecError, lambda: Dent(statistics="online").check(VICTIMS["layer"]()))
    assert re.search("online.*LayerNorm", message)
    Dent().check(VICTIMS["layer"]())


def test_layer_normalisation_is_adapted_only_without_batch_normalisation():
    mixed = victim_of(nn.BatchNorm2d(4), nn.LayerNorm((5, 4, 4)))
    assert list(layers(mixed)) == ["network.1"]
    assert list(layers(VICTIMS["layer"]())) == ["network.1", "network.4"]
    fixed = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.Linear(192, 4))
    victim = Victim(fixed, mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=4)
    assert "affine" in refusal(SpecError, lambda: Dent().check(victim))


def test_a_network_that_fails_is_left_without_hooks():
    victim = VICTIMS["batch"]()
    with pytest.raises(RuntimeError):
        answer(victim, IMAGES[:, :2])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in victim.modules())
    assert not any(p.requires_grad for p in victim.parameters())


def test_the_entropy_of_digits_falls_from_step_to_step_and_accuracy_stays():
    problem, bare = digits(1, count=48)
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    images, labels = problem.images, problem.labels
    found = [bare(images, labels)] + [answer(victim, images, steps=s) for s in (1, 2, 4, 6)]
    entropies = [entropy(logits.double()) for logits in found]
    for before, after in pairwise(entropies):
        assert bool((after <= before + 1e-6).all()) and float(after.mean()) < float(before.mean())
    assert float((found[-1].argmax(1) == labels).float().mean()) >= 0.97
    alone = torch.cat([answer(victim, image[None]) for image in images[:16]])
    torch.testing.assert_close(answer(victim, images[:16]), alone, rtol=1e-4, atol=1e-4)
