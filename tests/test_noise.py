"""The noise of RND and of feature noise: moments, places, independence, effect on accuracy."""

from __future__ import annotations

import pytest
import torch

from benchmark.catalogue import DEFENSES
from benchmark.config import Config
from benchmark.contract.toy import small_data, small_victim
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import QueryContext
from benchmark.fitting import attach
from benchmark.loading import load_dataset, load_victim
from benchmark.rng import RowRng, seed_from
from benchmark.stack import DefenseChoice
from registry.defenses.feature import Feature
from registry.defenses.rnd import Rnd

ROWS = torch.zeros(2000, dtype=torch.int64)


def context(rows=ROWS):
    return QueryContext(RowRng([1, 2, 3]), rows)


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_input_noise_has_the_moments_that_were_asked_for(sigma):
    images = torch.full((2000, 1, 8, 8), 0.5)
    noise = Rnd(sigma=sigma, clip=False).on_images(images, context()) - images
    assert float(noise.std()) == pytest.approx(sigma, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=4 * sigma / (2000 * 64) ** 0.5)
    across = torch.corrcoef(torch.stack((noise[:-1].flatten(), noise[1:].flatten())))
    assert abs(float(across[0, 1])) < 4 / (2000 * 64) ** 0.5


def test_clipping_keeps_images_valid_and_its_absence_does_not():
    images = torch.rand((2000, 1, 4, 4))
    clipped = Rnd(sigma=0.1).on_images(images, context())
    loose = Rnd(sigma=0.1, clip=False).on_images(images, context())
    assert float(clipped.min()) == 0.0 and float(clipped.max()) == 1.0
    assert torch.equal(clipped, loose.clamp(0, 1)) and float(loose.min()) < 0.0


@pytest.mark.parametrize("clip", [True, False])
def test_quantising_rounds_the_noisy_image_down_to_eight_bits(clip):
    images = torch.rand((2000, 1, 4, 4), dtype=torch.float64)
    noisy = Rnd(sigma=0.1, clip=clip).on_images(images, context())
    rounded = Rnd(sigma=0.1, clip=clip, quantise=True).on_images(images, context())
    levels = rounded * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    lost = (noisy - rounded) * 255
    assert float(lost.min()) >= -1e-9 and float(lost.max()) < 1
    assert float(lost[(noisy > 0.1) & (noisy < 0.9)].mean()) == pytest.approx(0.5, abs=0.02)
    assert len(torch.unique(levels.round())) > 200


@pytest.mark.parametrize("preset", ["", *DEFENSES.get("rnd").facts.presets])
def test_without_noise_nothing_is_done_in_any_preset(preset):
    values = {**DEFENSES.get("rnd").settings(preset), "sigma": 0.0}
    images = torch.rand((20, 1, 4, 4)) * 2 - 0.5
    assert torch.equal(Rnd(**values).on_images(images, context(ROWS[:20])), images)


def test_a_linear_victim_answers_on_average_as_without_noise():
    weights = torch.randn((16, 3), generator=torch.Generator().manual_seed(0))
    image = torch.rand((1, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    noisy = Rnd(sigma=0.2, clip=False).on_images(image.expand(2000, -1, -1, -1), context())
    found = (noisy.flatten(1) @ weights).mean(0)
    error = 0.2 * weights.norm(dim=0) / 2000**0.5
    assert bool(((found - (image.flatten(1) @ weights)[0]).abs() < 4 * error).all())


@pytest.mark.parametrize(("relative", "factor"), [(True, None), (False, 1.0)])
def test_feature_noise_has_the_scale_that_was_asked_for(relative, factor):
    victim = small_victim()
    defense = Feature(sigma=0.3, relative=relative)
    defense.prepare(victim, small_data())
    seen = {}
    images = small_data().take(Split.CALIBRATE, 18).images

    def look(features):
        seen["features"] = features
        return features

    with torch.no_grad(), victim.edited({"layer1": look}):
        victim(images)
    spread = float(seen["features"].std()) if factor is None else factor
    features = torch.zeros((2000, 6, 8, 8))
    noise = defense.on_features(features, "layer1", context())
    assert float(noise.std()) == pytest.approx(0.3 * spread, rel=0.02)


def test_feature_noise_is_at_the_named_stages_only():
    victim = small_victim()
    assert Feature().sites(victim) == ("layer1", "layer2")
    assert list(Feature(stages="layer2").sites(victim)) == ["layer2"]
    assert list(Feature(stages="layer1.0+layer2").sites(victim)) == ["layer1.0", "layer2"]
    assert Feature(sigma=0.0).sites(victim) == ()


@pytest.mark.parametrize("text", ["rnd[sigma=0.3]", "feature[sigma=0.6]"])
def test_a_strong_defense_costs_clean_accuracy_and_a_weak_one_little(text, tmp_path):
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    samples = data.take(Split.EVAL, 200)
    rows = torch.arange(200)

    def accuracy(name):
        defense, _ = attach(DefenseChoice.parse(name), victim, data, tmp_path)
        answers = Defended(victim, defense, 64).answer(
            samples.images, rows, RowRng([seed_from(row) for row in range(200)])
        )
        return float((answers.argmax(1) == samples.labels).float().mean())

    bare, weak, strong = accuracy("none"), accuracy(text.partition("[")[0]), accuracy(text)
    assert weak > bare - 0.03
    assert strong < bare - 0.005
