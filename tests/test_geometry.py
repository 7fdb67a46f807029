"""Balls, boxes, margins and the numbering of rows, by their defining properties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SHAPES, toy_problem

from benchmark.geometry import distance, project
from benchmark.objective import Objective, margin
from benchmark.rows import keep, occurrence
from benchmark.types import Norm

EPS = st.floats(1e-4, 5.0)
CASES = st.tuples(st.sampled_from(SHAPES), st.integers(0, 999), st.floats(1e-3, 10.0))


def cloud(case):
    """Centres with exact 0 and 1 pixels, and images far and near."""
    shape, seed, spread = case
    centres = toy_problem(shape=shape, seed=seed).images
    noise = torch.randn(centres.shape, generator=torch.Generator().manual_seed(seed))
    images = centres + spread * noise.double()
    images[0] = centres[0]
    return images, centres


@settings(max_examples=100, deadline=None)
@given(CASES, EPS, st.sampled_from(list(Norm)), st.sampled_from([torch.float64, torch.float32]))
def test_projected_images_lie_in_ball_and_box_and_projecting_again_changes_nothing(
    case, eps, norm, dtype
):
    images, centres = (tensor.to(dtype) for tensor in cloud(case))
    found = project(images, centres, eps, norm)
    rounding = 1e-12 if dtype is torch.float64 else 5e-7
    assert found.dtype == dtype
    assert float(found.min()) >= 0.0 and float(found.max()) <= 1.0
    assert float(distance(found, centres, norm).max()) <= eps + rounding * max(eps, 1.0)
    again = project(found, centres, eps, norm)
    torch.testing.assert_close(again, found, rtol=0, atol=0 if norm is Norm.LINF else rounding)


@settings(max_examples=60, deadline=None)
@given(CASES, EPS)
def test_linf_projection_is_the_nearest_point_of_ball_and_box(case, eps):
    images, centres = cloud(case)
    found = project(images, centres, eps, Norm.LINF).numpy()
    low = np.maximum(centres.numpy() - eps, 0.0)
    high = np.minimum(centres.numpy() + eps, 1.0)
    assert np.array_equal(found, np.clip(images.numpy(), low, high))


@settings(max_examples=60, deadline=None)
@given(CASES, EPS, st.sampled_from(list(Norm)))
def test_images_inside_stay_and_arguments_are_left_alone(case, eps, norm):
    images, centres = cloud(case)
    inside = project(images, centres, 0.9 * eps, norm)
    copies = inside.clone(), centres.clone()
    torch.testing.assert_close(project(inside, centres, eps, norm), inside, rtol=0, atol=1e-15)
    assert torch.equal(inside, copies[0]) and torch.equal(centres, copies[1])


def test_l2_projection_shrinks_towards_the_centre_and_then_cuts():
    centre = torch.tensor([[[[0.5, 0.9]]]], dtype=torch.float64)
    image = centre + torch.tensor([[[[0.3, 0.4]]]])
    found = project(image, centre, 0.25, Norm.L2)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.65, 1.0], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_distances_are_numpys_norms_of_the_flattened_difference(case):
    images, centres = cloud(case)
    flat = (images - centres).flatten(1).numpy()
    for norm, order in ((Norm.LINF, np.inf), (Norm.L2, 2)):
        expected = [np.linalg.norm(row, order) for row in flat]
        assert distance(images, centres, norm).numpy() == pytest.approx(expected, rel=1e-12)


LOGITS = st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.floats(-9, 9), st.data())
def test_a_margin_is_negative_just_where_another_label_wins_and_ignores_shifts(rows, shift, data):
    logits = torch.tensor(rows, dtype=torch.float64)
    labels = torch.tensor([data.draw(st.integers(0, 2)) for _ in rows])
    found = margin(logits, labels)
    for row, label, value in zip(rows, labels.tolist(), found.tolist(), strict=True):
        others = [score for place, score in enumerate(row) if place != label]
        assert value == row[label] - max(others)
    wrong = logits.argmax(1) != labels
    assert bool(wrong[found < 0].all()) and not bool(wrong[found > 0].any())
    shown = logits.log_softmax(1)
    torch.testing.assert_close(margin(shown + shift, labels), found, atol=1e-9, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.data())
def test_cross_entropy_is_the_log_probability_of_the_label(rows, data):
    labels = [data.draw(st.integers(0, 2)) for _ in rows]
    problem = replace(toy_problem(count=len(rows), classes=3), labels=torch.tensor(labels))
    objective = Objective(problem, "ce")
    found = objective.of(torch.tensor(rows, dtype=torch.float64), problem.rows)
    for row, label, value in zip(rows, labels, found.tolist(), strict=True):
        assert value == pytest.approx(row[label] - np.logaddexp.reduce(row), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=30))
def test_occurrence_numbers_each_rows_entries_in_their_order(rows):
    expected = [rows[:place].count(row) for place, row in enumerate(rows)]
    assert occurrence(torch.tensor(rows, dtype=torch.int64)).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=9))
def test_keep_drops_the_same_rows_of_every_tensor(stays):
    mask, count = torch.tensor(stays, dtype=torch.bool), len(stays)
    tensors = torch.arange(count), torch.arange(6.0 * count).view(count, 2, 3)
    kept = keep(mask, *tensors)
    places = [place for place, stay in enumerate(stays) if stay]
    assert kept[0].tolist() == places
    assert kept[1].tolist() == [tensors[1][place].tolist() for place in places]
    if all(stays):
        assert kept[0] is tensors[0] and kept[1] is tensors[1]
