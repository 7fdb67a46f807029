"""The images that knockoff asks about: those of the pool, blended copies, samples."""

from __future__ import annotations

import pytest
import torch
from stealing import CLASSES, SHAPE, knockoff, places, run, spend, tiny_pool

from benchmark.stealing.pool import Pool
from registry.parts.transfer import blend
from registry.stealing.knockoff import Strategy

BOTH = pytest.mark.parametrize("strategy", list(Strategy))


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


def test_an_image_is_blended_with_another_one():
    flat = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, *SHAPE).contiguous()
    attack = knockoff(pool=Pool(torch.zeros(2, dtype=torch.int64), 1, lambda at: flat[at]))
    centres = attack.transfer.images(torch.arange(2, 60))[:, 0, 4, 4]
    assert ((centres > 0) & (centres < 1)).all()
    assert ((attack.sample(60, torch.Generator())[2:, 0, 4, 4] % 1) > 0).all()
