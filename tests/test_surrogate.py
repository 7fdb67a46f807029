"""The surrogate: it asks nothing and learns the true labels."""

from __future__ import annotations

import torch
from stealing import SHAPE, Client, learned, spend, tiny_pool, tiny_scene
from support import refusal

from benchmark.catalogue import STEALERS
from benchmark.errors import SpecError
from benchmark.stealing.pool import Pool
from registry.parts.clones import CloneName
from registry.stealing.surrogate import Surrogate


def surrogate(pool=None, seed=0, **given):
    attack = Surrogate(network=CloneName.CNN, **{"epochs": 3, **given})
    attack.begin(tiny_scene(seed=seed, pool=pool or tiny_pool(classes=4)))
    return attack


def test_it_asks_nothing():
    attack, client = surrogate(), Client()
    assert spend(attack, 1000, client) == 0
    learned(attack)
    assert not client.sizes
    assert not STEALERS.get("surrogate").facts.asks


def test_it_learns_the_labels_of_its_pool():
    attack, pool = surrogate(epochs=10), tiny_pool(classes=4)
    learned(attack)
    with torch.no_grad():
        found = attack.clone(pool.read(torch.arange(len(pool)))).argmax(1)
    assert (found == pool.labels).float().mean() > 0.9


def test_the_same_seed_makes_the_same_network():
    one, two, other = (learned(surrogate(seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_its_samples_are_new_images():
    attack, pool = surrogate(), tiny_pool(classes=4)
    drawn = attack.sample(30, torch.Generator().manual_seed(0))
    assert drawn.shape == (30, *SHAPE) and drawn.min() >= 0 and drawn.max() <= 1
    known = pool.read(torch.arange(len(pool)))
    assert not (drawn[:, None] == known[None]).flatten(2).all(2).any()
    assert torch.equal(drawn, attack.sample(30, torch.Generator().manual_seed(0)))


def test_a_pool_of_other_classes_is_refused():
    scene = tiny_scene(pool=tiny_pool(classes=3))
    message = refusal(SpecError, lambda: Surrogate().begin(scene))
    assert "victim has 4 classes, the pool 3" in message


def test_a_last_image_alone_is_left_out_of_training():
    whole = tiny_pool(65, classes=4)
    shown = []

    def read(places):
        shown.append(len(places))
        return whole.read(places)

    learned(surrogate(Pool(whole.labels, 4, read)))
    assert shown == [64, 64, 64]
