"""Mixup inference: what it draws, what it averages, and what that costs in accuracy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import digits, streams, tiny_dataset, tiny_victim
from torch import nn

from benchmark.catalogue import DEFENSES
from benchmark.config import Config
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.loading import load_dataset, load_victim
from registry.defenses.mixup_inference import MixupInference, Pool

IMAGES = tiny_dataset().take(Split.EVAL, 12).images
EDGES = st.one_of(st.sampled_from([0.0, 1.0, 1 - 2**-24]), st.floats(0, 1))


def sure_victim():
    """A victim whose confidence in mixtures varies widely."""
    victim = tiny_victim()
    nn.init.normal_(victim.network[3].weight, std=4.0, generator=torch.Generator().manual_seed(1))
    return victim


def answer(victim, images, data=None, rows=None, rng=None, **given_):
    """Answers to images of different owners, as the engine asks for them."""
    defense = MixupInference(**given_)
    defense.prepare(victim, data or tiny_dataset())
    rows = torch.arange(len(images)) if rows is None else rows
    return Defended(victim, defense, 64).answer(images, rows, rng or streams(len(images)))


def pool_of(labels):
    """A pool of images of one pixel, each the number of its own class and place."""
    numbers = torch.tensor(labels) * 100.0 + torch.arange(len(labels))
    return Pool(numbers.view(-1, 1, 1, 1), torch.tensor(labels))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    st.integers(0, 5),
    st.lists(st.tuples(EDGES, EDGES), min_size=1, max_size=5),
)
def test_other_classes_are_never_the_predicted_one_and_own_ones_always(labels, predicted, chances):
    pool, draws = pool_of(labels), torch.tensor([chances])
    for other in (False, True):
        (picks,) = pool.pick(torch.tensor([predicted]), draws, other=other)
        fitting = [label for label in labels if (label != predicted) == other]
        if not fitting:
            assert picks.tolist() == [-1] * len(chances)
            continue
        classes = (pool.images[picks].flatten() // 100).int().tolist()
        assert int(picks.min()) >= 0 and set(classes) <= set(fitting)


def test_classes_are_as_likely_whatever_their_size_and_so_are_the_images_of_one():
    labels = [2] * 6 + [0] * 2 + [3] * 1 + [1] * 3
    ticks = (torch.arange(36) + 0.5) / 36
    grid = torch.cartesian_prod(ticks, ticks)[None]
    pool = pool_of(labels)
    (picks,) = pool.pick(torch.tensor([1]), grid, other=True)
    chosen, counts = torch.unique(pool.images[picks].flatten().int(), return_counts=True)
    expected = {200 + i: 72 for i in range(6)} | {6: 216, 7: 216, 308: 432}
    assert dict(zip(chosen.tolist(), counts.tolist(), strict=True)) == expected
    (picks,) = pool.pick(torch.tensor([1]), grid, other=False)
    chosen, counts = torch.unique(pool.images[picks].flatten().int(), return_counts=True)
    assert dict(zip(chosen.tolist(), counts.tolist(), strict=True)) == {
        109: 432,
        110: 432,
        111: 432,
    }


def partners(known, label, chances, other):
    """The images of one query's draws, found by looking through the training images."""
    classes = sorted({int(k) for k in known.labels if (int(k) != label) == other})
    for first, second in chances.tolist():
        kind = classes[int(first * len(classes))] if other else label
        members = [i for i, k in enumerate(known.labels) if int(k) == kind]
        yield known.images[members[int(second * len(members))]]


def by_hand(victim, variant, share, draws):
    """Answers to all images, each on its own; and which were found odd."""
    known, looks = tiny_dataset().take(Split.TRAIN, 20), 5 if variant == "combined" else 0
    chances = (streams(12).cube(torch.arange(12), (looks + draws, 2)) + 1) / 2

    def mean(row, label, own, other):
        beside = partners(known, label, own, other)
        mixed = torch.stack([(1 - share) * IMAGES[row] + share * one for one in beside])
        return victim(mixed).softmax(1).mean(0)

    found, odd = [], []
    for row in range(12):
        bare = victim(IMAGES[row : row + 1]).softmax(1)[0]
        label = int(bare.argmax())
        first = mean(row, label, chances[row, :looks], other=False) if looks else bare
        odd.append(float(bare.max() - first.max()) >= 0.2)
        if odd[-1] or not looks:
            first = mean(row, label, chances[row, looks:], other=variant != "pl")
        found.append(first)
    return torch.stack(found), odd


@pytest.mark.parametrize("draws", [1, 7])
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("variant", ["ol", "pl", "combined"])
def test_an_answer_is_the_log_of_the_mean_probability(variant, share, draws):
    victim = sure_victim()
    found = answer(victim, IMAGES, variant=variant, share=share, draws=draws)
    expected, odd = by_hand(victim, variant, share, draws)
    torch.testing.assert_close(found.exp(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(12).double())
    if variant == "combined" and share == 0.6:
        assert 0 < sum(odd) < 12


def test_a_query_without_a_fitting_class_is_mixed_with_itself():
    data, victim = tiny_dataset(), sure_victim()
    bare = victim(IMAGES)
    alone = bare.argmax(1) == bare[0].argmax()
    assert not bool(alone.all())
    data = replace(data, labels=data.labels * 0 + int(bare[0].argmax()))  # one class only
    found = answer(victim, IMAGES, data, share=0.5)
    own = answer(victim, IMAGES, data, share=0.5, variant="pl")
    for mixed, left, there in ((found, alone, ~alone), (own, ~alone, alone)):
        torch.testing.assert_close(mixed[left], bare.log_softmax(1)[left])
        assert float((mixed - bare.log_softmax(1))[there].abs().amax(1).min()) > 1e-3


@pytest.mark.parametrize(("pool", "count"), [(7, 7), (1000, 20)])
def test_the_pool_is_the_first_training_images_by_true_class(pool, count):
    data, seen = tiny_dataset(), []
    watched = replace(data, read=lambda ids: seen.extend(ids) or data.read(ids))
    defense = MixupInference(pool=pool)
    defense.prepare(tiny_victim(), watched)
    assert seen == data.splits[Split.TRAIN][:count].tolist()
    samples = data.take(Split.TRAIN, count)
    every = torch.rand((4, 500, 2), generator=torch.Generator().manual_seed(0))
    for label, picks in enumerate(defense._known.pick(torch.arange(4), every, other=False)):
        drawn = {tuple(image.flatten().tolist()) for image in defense._known.images[picks]}
        wanted = samples.images[samples.labels == label].flatten(1).tolist()
        assert drawn == {tuple(image) for image in wanted}


def test_one_draw_is_unbiased():
    victim, image = sure_victim(), IMAGES[:1]
    rows = torch.zeros(600, dtype=torch.int64)
    given_ = {"share": 0.5, "rows": rows, "rng": streams(1)}
    single = answer(victim, image.expand(600, -1, -1, -1), draws=1, **given_).exp()
    given_["rows"] = rows[:1]
    many = answer(victim, image, draws=3000, **given_).exp()[0]
    errors = (single.mean(0) - many) / (single.std(0) * (1 / 600 + 1 / 3000) ** 0.5)
    assert float(errors.abs().max()) < 4
    assert float(single.std(0).max()) > 0.05


def test_no_pass_is_larger_than_the_call():
    victim, sizes = tiny_victim(), []
    handle = victim.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    answer(victim, IMAGES, draws=4)
    handle.remove()
    assert sizes == [12] * 5


def test_presets_are_those_of_the_code():
    built = {}
    for name in ("official", "official-iat", "official-pl", "official-combined", "unig"):
        choice = DEFENSES.choose(f"mixup-inference@{name}")
        made = choice.entry.build(**choice.values)
        built[name] = (made.variant, made.share, made.draws, made.pool)
    assert built == {
        "official": ("ol", 0.5, 30, 10_000),
        "official-iat": ("ol", 0.4, 30, 10_000),
        "official-pl": ("pl", 0.5, 10, 1000),
        "official-combined": ("combined", 0.5, 15, 10_000),
        "unig": ("ol", 0.1, 30, 1000),
    }


def test_digits_are_still_told_apart_at_the_default_and_not_at_half():
    problem, _ = digits(1, count=60)
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    data, right = load_dataset("mnist", Config()), []
    for share in (0.1, 0.5):
        found = answer(victim, problem.images, data, share=share, draws=10)
        right.append(float((found.argmax(1) == problem.labels).float().mean()))
    assert right[0] >= 0.95 and right[1] < 0.7
