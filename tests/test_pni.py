"""PNI: the law of its noise, whose weights a query gets, and what that costs in accuracy."""

from __future__ import annotations

import copy

import pytest
import torch
from support import digits, refusal, streams
from torch import nn

from benchmark.catalogue import DEFENSES
from benchmark.config import Config
from benchmark.contract.toy import small_data, small_victim
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.errors import SpecError
from benchmark.loading import load_victim
from benchmark.victim import Victim
from registry.defenses.pni import Pni, layers
from registry.models.resnet_cifar import CifarResNet
from registry.parts.each import classify_each

IMAGES = small_data().take(Split.EVAL, 6).images


class Tokens(nn.Module):
    """Attention over the columns of an image, with a weight that is not a linear layer's."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, images):
        """Map (n, 3, 8, 8) to (n, 4)."""
        tokens = self.norm(images.permute(0, 3, 1, 2).flatten(2))
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        fused = nn.functional.scaled_dot_product_attention(mixed, tokens, tokens)
        return self.head(fused.mean(1))


def victim_of(network, classes=4):
    """A victim in float64."""
    return Victim(network, mean=(0.5,) * 3, std=(0.2,) * 3, num_classes=classes).double()


def seeded(build):
    """Build a network from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return build()


VICTIMS = {
    "toy": small_victim,
    "resnet": lambda: victim_of(seeded(lambda: CifarResNet(1, 4))),
    "attention": lambda: victim_of(seeded(Tokens)),
}


def made(victim, defense=Pni, **given_):
    """A prepared PNI."""
    defense = defense(**given_)
    defense.check(victim)
    defense.prepare(victim, small_data())
    return defense


def answer(victim, images, rows=None, rng=None, defense=None, **given_):
    """Answers to images, of different owners unless given, as the engine asks for them."""
    defense = defense or made(victim, **given_)
    rows = list(range(len(images))) if rows is None else rows
    defended = Defended(victim, defense, 64)
    return defended.answer(images, torch.tensor(rows), rng or streams(len(images)))


def perturbed(victim, noise, alphas):
    """A copy of the victim with W + alpha * std(W) * noise, the layers' noise in their order."""
    other = copy.deepcopy(victim)
    kinds = (nn.Conv2d, nn.Linear)
    weights = [m.weight for m in other.modules() if isinstance(m, kinds)]
    assert sum(weight.numel() for weight in weights) == len(noise)
    for weight, alpha in zip(weights, alphas, strict=True):
        part, noise = noise[: weight.numel()], noise[weight.numel() :]
        spread = (weight.square().mean() - weight.mean().square()).sqrt()
        weight.add_(alpha * spread * part.view_as(weight))
    return other


def draws(victim, rows, rng):
    """The noise of queries, in the order they are asked."""
    count = sum(victim.get_parameter(f"{name}.weight").numel() for name in layers(victim))
    return [rng.normal(torch.tensor([row]), (count,))[0].double() for row in rows]


@pytest.mark.parametrize("kind", VICTIMS)
def test_each_query_meets_weights_of_its_own(kind):
    victim, rows = VICTIMS[kind](), [2, 0, 2, 1, 2]
    found = answer(victim, IMAGES[:5], rows, streams(6), alpha=0.3)
    alphas = [0.3] * len(layers(victim))
    copies = [perturbed(victim, noise, alphas) for noise in draws(victim, rows, streams(6))]
    expected = torch.cat([c(image[None]) for c, image in zip(copies, IMAGES, strict=False)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert float((found - victim(IMAGES[:5])).abs().amax(1).min()) > 1e-3


@pytest.mark.parametrize("kind", VICTIMS)
def test_per_call_all_queries_meet_the_weights_of_the_first_owner(kind):
    victim = VICTIMS[kind]()
    found = answer(victim, IMAGES, [4, 2, 0, 1, 3, 5], streams(6), alpha=0.3, draw="per-call")
    (noise,) = draws(victim, [4], streams(6))
    expected = perturbed(victim, noise, [0.3] * len(layers(victim)))(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_equal_images_differ_per_row_and_agree_per_call():
    victim, same = small_victim(), IMAGES[:1].expand(4, -1, -1, -1)
    own, shared = (answer(victim, same, draw=draw) for draw in ("per-row", "per-call"))
    assert len(own.unique(dim=0)) == 4
    torch.testing.assert_close(shared, shared[:1].expand_as(shared), rtol=0, atol=1e-12)
    assert not Pni().traits.coupled and Pni(draw="per-call").traits.coupled
    rng, defense = streams(4), made(victim, draw="per-call")
    calls = [answer(victim, same, rng=rng, defense=defense)[0] for _ in range(3)]
    assert len(torch.stack(calls).unique(dim=0)) == 3


@pytest.mark.parametrize("draw", ["per-row", "per-call"])
@pytest.mark.parametrize("kind", VICTIMS)
def test_without_noise_it_is_bitwise_the_bare_victim(kind, draw):
    victim = VICTIMS[kind]()
    assert torch.equal(answer(victim, IMAGES, alpha=0.0, draw=draw), victim(IMAGES))


def test_the_logits_of_a_linear_victim_vary_as_the_closed_form_says():
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    victim, alpha, count = victim_of(network), 0.4, 4000
    rows, image = [0] * count, IMAGES[:1]
    found = answer(victim, image.expand(count, -1, -1, -1), rows, alpha=alpha)
    weight = network[1].weight
    variance = alpha**2 * weight.var(correction=0) * ((image - 0.5) / 0.2).square().sum()
    covariance = torch.cov(found.T)
    error = float(variance) * (2 / count) ** 0.5
    assert float((covariance.diagonal() - variance).abs().max()) < 4 * error
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 4 * error
    means = (found.mean(0) - victim(image)[0]) / (variance / count).sqrt()
    assert float(means.abs().max()) < 4


@pytest.mark.parametrize(("room", "sizes"), [(1, [1] * 6), (4 * 8 * 626, [4, 2]), (1 << 27, [6])])
def test_memory_is_bounded_and_answers_do_not_show_it(monkeypatch, room, sizes):
    victim, rows, seen = small_victim(), [0, 1, 0, 0, 2, 1], []
    expected = answer(victim, IMAGES, rows)

    def spy(victim, images, parameters):
        seen.append(len(images))
        return classify_each(victim, images, parameters)

    count = sum(victim.get_parameter(f"{name}.weight").numel() for name in layers(victim))
    assert count == 626
    monkeypatch.setattr("registry.defenses.pni.classify_each", spy)
    monkeypatch.setattr("registry.defenses.pni._ROOM", room)
    found = answer(victim, IMAGES, rows)
    assert seen == sizes
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("draw", ["per-row", "per-call"])
def test_every_layer_may_have_an_alpha_of_its_own(draw):
    class Trained(Pni):
        def alphas(self, victim):
            return dict(zip(layers(victim), [0.0, 0.5, 0.1], strict=True))

    victim = small_victim()
    found = answer(victim, IMAGES[:1], defense=made(victim, Trained, draw=draw))
    (noise,) = draws(victim, [0], streams(1))
    expected = perturbed(victim, noise, [0.0, 0.5, 0.1])(IMAGES[:1])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_victim_without_such_layers_is_refused():
    bare = victim_of(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), classes=3)
    assert "none" in refusal(SpecError, lambda: Pni().check(bare))


def test_attention_keeps_its_fast_path_also_after_a_failure():
    victim = VICTIMS["attention"]()
    answer(victim, IMAGES)
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        answer(victim, IMAGES[:, :2])
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_preset_is_that_of_the_code():
    choice = DEFENSES.choose("pni@official")
    defense = choice.entry.build(**choice.values)
    assert (defense.alpha, defense.draw) == (0.25, "per-call")


def test_digits_are_still_told_apart_at_the_default():
    problem, bare = digits(1, count=100)
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    images, labels = problem.images, problem.labels
    found = answer(victim, images)
    assert float((found.argmax(1) == labels).float().mean()) >= 0.93
    change = (found - bare(images, labels)).norm(dim=1).mean()
    assert 1 < float(change) < 15
    alone = torch.cat(
        [answer(victim, i[None], [r], streams(16)) for r, i in enumerate(images[:16])]
    )
    together = answer(victim, images[:16], rng=streams(16))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)
