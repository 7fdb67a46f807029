"""Feature noise at any site of a victim: which sites, how much, and what it leaves alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from support import refusal, streams, tiny_dataset
from torch import nn

from benchmark.catalogue import DEFENSES
from benchmark.contract.toy import small_data, small_victim
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import QueryContext
from benchmark.errors import SpecError
from benchmark.victim import Victim
from registry.defenses.feature import Feature
from registry.models.resnet_cifar import CifarResNet

IMAGES = small_data().take(Split.EVAL, 6).images
ROWS = torch.arange(6)


def victim_of(network, classes=10):
    return Victim(network, mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=classes)


def preset(name, **changed):
    return Feature(**{**DEFENSES.get("feature").settings(name), **changed})


def answers(defense, victim, rng=None):
    defense.check(victim)
    defense.prepare(victim, small_data())
    return Defended(victim, defense, 64).answer(IMAGES, ROWS, rng or streams(6))


def seen(victim, images, sites):
    """What flows through sites when images are classified."""
    found = {}

    def look(features, site):
        found[site] = features.clone()
        return features

    with torch.no_grad(), victim.edited({site: partial(look, site=site) for site in sites}):
        victim(images)
    return found


@pytest.mark.parametrize("site", ["in:layer2", "in:layer1", "layer1.0", "layer2"])
def test_noise_at_a_site_is_a_share_of_what_flows_there(site):
    victim, images = small_victim(), small_data().take(Split.CALIBRATE, 18).images
    defense = Feature(sigma=0.3, stages=site)
    defense.prepare(victim, small_data())
    clean = seen(victim, images, [site])[site]
    rows = torch.zeros(2000, dtype=torch.int64)
    zeros = torch.zeros((2000, *clean.shape[1:]), dtype=torch.float64)
    noise = defense.on_features(zeros, site, QueryContext(streams(1), rows))
    assert float(noise.std()) == pytest.approx(0.3 * float(clean.std()), rel=0.01)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / noise.numel() ** 0.5


@pytest.mark.parametrize("stages", ["in:layer2", "layer1+in:linear", "all"])
def test_answers_are_those_of_the_network_with_noise_added_there(stages):
    victim = small_victim()
    sites = list(Feature(stages=stages).sites(victim))
    found = answers(Feature(stages=stages, relative=False), victim)
    noise, rng = [], streams(6)
    for features in seen(victim, IMAGES, sites).values():
        noise.append(0.1 * rng.normal(ROWS, features.shape[1:]).double())
    added = {
        site: partial(torch.add, other=value) for site, value in zip(sites, noise, strict=True)
    }
    with torch.no_grad(), victim.edited(added):
        torch.testing.assert_close(found, victim(IMAGES), rtol=0, atol=1e-12)
    bare = victim(IMAGES)
    assert bool(((found - bare).abs().amax(1) > 1e-6).all())


def test_noise_at_the_input_of_the_first_layer_is_noise_on_the_normalised_image():
    victim = small_victim()
    found = answers(Feature(stages="in:layer1", relative=False), victim)
    noise = 0.1 * streams(6).normal(ROWS, (3, 8, 8)).double()
    torch.testing.assert_close(found, victim(IMAGES + 0.25 * noise), rtol=0, atol=1e-12)


class Skip(nn.Module):
    """Gives a dead layer and the image itself, so that noise could only show in the image."""

    def __init__(self):
        super().__init__()
        self.dead = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(self.dead.weight)
        nn.init.zeros_(self.dead.bias)
        self.linear = nn.Linear(3, 4)

    def forward(self, images):
        return self.linear((self.dead(images) + images).mean((2, 3)))


def test_what_flows_past_a_site_is_left_as_it_was():
    victim = victim_of(Skip(), classes=4).double()
    defense = Feature(stages="in:dead", sigma=5.0, relative=False)
    found = Defended(victim, defense, 64).answer(IMAGES, ROWS, streams(6))
    assert torch.equal(found, victim(IMAGES))


def test_a_site_that_does_not_matter_is_refused():
    victim = victim_of(Skip(), classes=4).double()
    message = refusal(SpecError, lambda: answers(Feature(stages="in:dead"), victim))
    assert "'in:dead' does nothing" in message and "stages=" in message


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)
        self.linear = nn.Linear(5, 4)

    def forward(self, images):
        maps = self.layer1(images)
        joined = torch.cat((maps, maps))
        return self.linear(joined.mean((2, 3)))[: len(images)]


@pytest.mark.parametrize("relative", [True, False])
def test_a_site_that_is_never_reached_or_not_one_entry_an_image_is_refused(relative):
    victim = victim_of(Unused(), classes=4).double()
    message = refusal(SpecError, lambda: answers(Feature(relative=relative), victim))
    assert "'layer2' does nothing" in message
    folded = Feature(stages="in:linear", relative=relative)
    message = refusal(SpecError, lambda: answers(folded, victim))
    assert "'in:linear' holds 36 entries for 18 images" in message


@pytest.mark.parametrize("stages", ["layer1+layer1", "in:layer9", "layer9", "in:"])
def test_unknown_and_doubled_sites_are_refused(stages):
    refusal(SpecError, lambda: Feature(stages=stages).check(small_victim()))


def test_a_small_data_set_is_enough_to_measure_on():
    network = nn.Sequential(nn.Flatten(), nn.Linear(54, 5), nn.ReLU(), nn.Linear(5, 4))
    victim = Victim(network, mean=(0.5,), std=(0.5,), num_classes=4).double()
    defense = Feature()
    defense.prepare(victim, tiny_dataset(count=6))
    assert defense.sites(victim) == ("1",)


def test_each_image_and_each_site_gets_noise_of_its_own():
    victim, drawn = small_victim(), {}
    defense = Feature(sigma=1.0, relative=False)
    features = torch.zeros((6, 2, 3, 3), dtype=torch.float64)
    rng = streams(6)
    for site in defense.sites(victim):
        drawn[site] = defense.on_features(features, site, QueryContext(rng, ROWS))
    every = torch.cat([noise.flatten(1) for noise in drawn.values()])
    assert len(every) == 12 and float(torch.corrcoef(every).fill_diagonal_(0).abs().max()) < 0.9


def test_presets_name_the_sites_of_their_sources():
    cifar, resnet = victim_of(CifarResNet(1, 10)), victim_of(torchvision.models.resnet18())
    assert preset("official").sites(cifar) == ("layer1", "layer2", "layer3")
    assert preset("official").sites(resnet) == ("maxpool", "layer1", "layer2", "layer3")
    assert preset("official-cifar").sites(cifar) == ["layer3"]
    for name in ("rls-resnet18", "rls-resnet50"):
        assert preset(name).sites(resnet) == ["layer4"]
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=False)
    network = nn.Module()
    network.features = layers
    (site,) = preset("rls-vgg16").sites(victim_of(network))
    assert site == victim_of(network).stages()[-1]
    assert not any(preset(name).relative for name in DEFENSES.get("feature").facts.presets)
