"""Directions made of cosines: the transform, three ways to draw in it, the zigzag order."""

from __future__ import annotations

import pytest
import torch
from scipy import fft
from support import streams

from registry.moves.frequencies import Frequencies, zigzag

SHAPES = [(3, 8, 7), (1, 6, 9), (2, 1, 5), (1, 4, 1)]


def some(shape, count=3, seed=0):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed)).double()


def waves(shape, count=3, dtype=torch.float64):
    return Frequencies(streams(count), some(shape, count).to(dtype))


def transformed(images):
    return torch.from_numpy(fft.dctn(images.numpy(), axes=(-2, -1), norm="ortho"))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transform_is_the_orthonormal_cosine_transform(shape):
    images = some(shape, seed=1)
    found = waves(shape).forward(images)
    assert torch.allclose(found, transformed(images), atol=1e-12)
    assert torch.allclose(found.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_transforming_back_gives_the_image(shape):
    images = some(shape, seed=1) - 0.5
    posed = waves(shape)
    assert torch.allclose(posed.back(posed.forward(images)), images, atol=1e-12)


def test_a_corner_of_coefficients_stands_for_zeros_elsewhere():
    corner = some((3, 2, 4), seed=2)
    whole = torch.zeros(3, 3, 8, 7, dtype=torch.float64)
    whole[:, :, :2, :4] = corner
    found = waves((3, 8, 7)).back(corner)
    wanted = torch.from_numpy(fft.idctn(whole.numpy(), axes=(-2, -1), norm="ortho"))
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(("count", "kept"), [(1, (1, 1)), (3, (3, 3)), (8, (8, 7)), (99, (8, 7))])
def test_low_directions_have_no_energy_beyond_their_count(count, kept):
    drawn = transformed(waves((3, 8, 7)).low(torch.arange(3), count))
    inside = drawn[:, :, : kept[0], : kept[1]]
    assert bool((inside.abs() > 1e-6).all())
    assert float(inside.square().sum()) == pytest.approx(float(drawn.square().sum()), rel=1e-12)


def test_low_directions_have_standard_normal_coefficients():
    owners = torch.arange(3).repeat_interleave(400)
    drawn = transformed(waves((3, 8, 7)).low(owners, 3))[:, :, :3, :3].flatten(1)
    assert torch.allclose(drawn.mean(0), torch.zeros(27).double(), atol=5 / 1200**0.5)
    assert torch.allclose(drawn.T @ drawn / 1200, torch.eye(27).double(), atol=8 / 1200**0.5)


def test_an_owner_named_twice_draws_what_it_would_draw_in_turn():
    together = waves((1, 6, 9)).low(torch.tensor([0, 0, 2]), 4)
    posed = waves((1, 6, 9))
    first, second = (posed.low(torch.tensor(rows), 4) for rows in ([0, 2], [0]))
    assert torch.equal(together, torch.stack((first[0], second[0], first[1])))


@pytest.mark.parametrize("count", [1, 3, 50])
def test_single_directions_have_one_low_frequency_in_every_channel(count):
    posed = waves((3, 8, 7), count=40)
    drawn = transformed(posed.single(torch.arange(40), count))
    places = (drawn.abs() > 1e-9).nonzero()
    assert torch.equal(places[:, :2], torch.cartesian_prod(torch.arange(40), torch.arange(3)))
    down, across = places[:, 2], places[:, 3]
    assert int(down.max()) == min(count, 8) - 1  # 120 draws: none of eight is missed
    assert int(across.max()) == min(count, 7) - 1
    weights = drawn[tuple(places.T)]
    assert float(weights.square().mean()) == pytest.approx(1, abs=0.4)
    assert abs(float(weights.mean())) < 0.3
    if count > 1:
        assert bool((down.view(40, 3) != down.view(40, 3)[:, :1]).any())  # channels differ


def test_own_directions_have_the_given_strengths_or_nothing():
    strength = some((3, 8, 7), count=30, seed=3) - 0.5
    strength[:, :, 4:] = 0.0
    drawn = transformed(waves((3, 8, 7), count=30).own(torch.arange(30), strength))
    signs = drawn[:, :, :4] / strength[:, :, :4]
    assert torch.allclose(signs, signs.round(), atol=1e-9)
    assert float(drawn[:, :, 4:].abs().max()) < 1e-12
    shares = torch.stack([(signs.round() == value).double().mean() for value in (-1, 0, 1)])
    assert torch.allclose(shares, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.03)


def test_directions_have_the_type_of_the_images():
    posed = waves((1, 6, 9), dtype=torch.float32)
    rows = torch.arange(3)
    strength = posed.forward(some((1, 6, 9)).float())
    drawn = (posed.low(rows, 3), posed.single(rows, 3), posed.own(rows, strength))
    assert [images.dtype for images in drawn] == [torch.float32] * 3
    assert [images.shape for images in drawn] == [(3, 1, 6, 9)] * 3


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((1, 5), [[0, 1, 2, 3, 4]]),
        ((5, 1), [[0], [1], [2], [3], [4]]),
        ((2, 2), [[0, 1], [2, 3]]),
        ((3, 3), [[0, 1, 5], [2, 4, 6], [3, 7, 8]]),
        ((3, 4), [[0, 1, 5, 6], [2, 4, 7, 10], [3, 8, 9, 11]]),
    ],
)
def test_the_zigzag_ranks_frequencies_as_by_hand(shape, ranks):
    assert zigzag(*shape).tolist() == ranks


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (7, 3), (3, 7), (32, 32)])
def test_the_zigzag_ranks_every_frequency_once_and_walks_to_a_neighbour(shape):
    ranks = zigzag(*shape)
    assert ranks.flatten().sort().values.tolist() == list(range(ranks.numel()))
    steps = torch.stack([(ranks == rank).nonzero()[0] for rank in range(ranks.numel())]).diff(dim=0)
    assert bool((steps.abs() <= 1).all())
    assert int(ranks[0, 0]) == 0
    assert int(ranks[-1, -1]) == ranks.numel() - 1
