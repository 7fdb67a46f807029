"""Adversarial training and fine-tuning on noise: losses, attacks in training, what they gain."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import refusal, tiny_dataset, tiny_victim
from torch.nn.functional import cross_entropy

from benchmark.config import Config
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.errors import DataError
from benchmark.fitting import attach, train
from benchmark.loading import load_dataset, load_victim
from benchmark.rng import RowRng, seed_from
from benchmark.stack import DefenseChoice
from registry.defenses.at import At
from registry.defenses.pni import Pni
from registry.defenses.rnd_gf import RndGf, mean_softmax_loss
from registry.parts.training import Schedule, Trainer, adversarial


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6), st.integers(0, 99))
def test_the_loss_of_the_mean_softmax_is_at_most_the_mean_loss(m, n, k, seed):
    logits = 3 * draw(m, n, k, seed=seed)
    labels = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))
    found = mean_softmax_loss(logits, labels)
    mean = logits.softmax(2).mean(0)[torch.arange(n), labels]
    assert float(found) == pytest.approx(float(-mean.log().mean()))
    each = torch.stack([cross_entropy(one, labels) for one in logits])
    assert found <= each.mean() + 1e-12
    if m == 1:
        assert float(found) == pytest.approx(float(each[0]))


def test_its_gradient_is_that_of_differences():
    logits, labels = draw(2, 3, 4).requires_grad_(), torch.tensor([0, 2, 3])
    assert torch.autograd.gradcheck(lambda z: mean_softmax_loss(z, labels), logits)


def test_it_is_stable_where_probabilities_vanish():
    logits = torch.tensor([[[0.0, 70.0]], [[0.0, 69.0]]])
    expected = 69.0 - math.log((1 + math.exp(-1.0)) / 2)
    assert float(mean_softmax_loss(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("steps", "length"), [(1, 1.25), (3, 2.5 / 3)])
def test_training_images_climb_the_loss_inside_ball_and_box(steps, length):
    victim, samples = tiny_victim(), tiny_dataset().take(Split.TRAIN, 10)
    images, eps = samples.images, 0.05
    start = torch.zeros_like(images)
    moved = adversarial(victim, images, samples.labels, start, eps, steps)
    assert not moved.requires_grad
    assert (moved - images).abs().max() <= eps + 1e-12
    assert moved.min() >= 0 and moved.max() <= 1
    before = cross_entropy(victim(images), samples.labels)
    assert cross_entropy(victim(moved), samples.labels) > before
    inside = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(victim(inside), samples.labels), inside)
    first = adversarial(victim, images, samples.labels, start, eps, 1)
    wanted = (images + min(1.0, 1.25) * eps * slope.sign()).clamp(0, 1)
    assert torch.allclose(first, wanted)
    assert length > 0


def test_the_trainer_shows_every_image_once_an_epoch_and_says_how_far_it_is():
    victim, data = tiny_victim(), tiny_dataset()
    trainer = Trainer(victim, data, Schedule(epochs=2, batch=8, rate=0.1))
    labels, shares = [], []
    for images, some in trainer.batches():
        labels.append(some)
        shares.append(trainer.step(cross_entropy(victim(images), some)))
    train_labels = data.take(Split.TRAIN, 20).labels
    assert torch.equal(torch.cat(labels).bincount(), 2 * train_labels.bincount())
    assert shares == pytest.approx([i / 6 for i in range(1, 7)])


def test_a_last_image_alone_is_left_out():
    trainer = Trainer(tiny_victim(), tiny_dataset(), Schedule(epochs=1, batch=19, rate=0.1))
    sizes, shares = [], []
    for images, _ in trainer.batches():  # of 20 images
        sizes.append(len(images))
        shares.append(trainer.step(trainer._trained[0].sum()))
    assert (sizes, shares) == ([19], [1.0])


def test_training_is_the_same_again_and_other_recipes_differ():
    data = tiny_dataset()
    first, again = (train(At(epochs=2), tiny_victim(), data) for _ in range(2))
    other = train(At(epochs=2, steps=2), tiny_victim(), data)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.fingerprint != tiny_victim().fingerprint


def test_the_noise_of_queries_is_no_part_of_the_recipe():
    assert RndGf(sigma=0.1).recipe() == RndGf(sigma=0.2).recipe() != RndGf(trained=0.1).recipe()
    assert At(eps=0.1).recipe() != At(eps=0.2).recipe()


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_a_checkpoint_may_stand_under_a_prefix_beside_its_own_normalisation(prefix, tmp_path):
    trained, data = tiny_victim(), tiny_dataset()
    for value in trained.network.parameters():
        value.data.mul_(1.5)
    state = {prefix + k: v.clone() for k, v in trained.network.state_dict().items()}
    extra = {"normalizer.mean": torch.zeros(3), "model.mu": torch.zeros(3)} if prefix else {}
    save_file({**state, **extra}, tmp_path / "at.safetensors")
    text = f"at[checkpoint={tmp_path / 'at.safetensors'}]"
    choice = DefenseChoice.parse(text)
    _, behind = attach(choice, tiny_victim(), data, tmp_path)
    images = data.take(Split.EVAL, 4).images
    assert torch.equal(behind(images), trained(images))
    assert str(choice) == "at[checkpoint=at.safetensors]"
    assert choice.spelled() == text
    assert str(tmp_path) not in str(choice.record())


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    save_file({"model.other": torch.zeros(3)}, tmp_path / "at.safetensors")
    for path in (tmp_path / "at.safetensors", tmp_path / "none.pt"):
        choice = DefenseChoice.parse(f"at[checkpoint={path}]")
        refusal(DataError, lambda c=choice: attach(c, tiny_victim(), tiny_dataset(), tmp_path))


def test_training_pays_on_digits(tmp_path):
    """At the noise and the radius it was trained for, a trained victim is right more often."""
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    samples = data.take(Split.EVAL, 300)
    rows = torch.arange(300)

    def right(choice):
        defense, behind = attach(DefenseChoice.parse(choice), victim, data, tmp_path)
        answers = Defended(behind, defense, 100).answer(
            samples.images, rows, RowRng([seed_from(row) for row in range(300)])
        )
        return float((answers.argmax(1) == samples.labels).float().mean()), behind

    noisy, _ = right("rnd[sigma=0.2]")
    tuned, _ = right("rnd_gf[sigma=0.2,trained=0.2,epochs=1]")
    assert tuned > noisy + 0.3
    clean, behind = right("at[eps=0.1,epochs=3,rate=0.005]")
    assert clean > 0.95
    zero = torch.zeros_like(samples.images)
    shares = [
        float((one(moved).argmax(1) == samples.labels).float().mean())
        for one in (victim, behind)
        for moved in [adversarial(one, samples.images, samples.labels, zero, 0.1, 10)]
    ]
    assert shares[1] > shares[0] + 0.1


def test_alphas_are_trained_layer_by_layer_without_decay(tmp_path):
    choice = DefenseChoice.parse("pni[alpha=2,epochs=3]")
    defense, behind = attach(choice, tiny_victim(), tiny_dataset(), tmp_path)
    found = {name: float(alpha) for name, alpha in defense.learned.items()}
    assert list(found) == ["network.1", "network.3"]
    assert all(alpha != 0.25 for alpha in found.values())
    assert len(set(found.values())) == 2
    assert defense.alphas(behind) == pytest.approx({n: 2 * abs(a) for n, a in found.items()})
    assert behind.fingerprint != tiny_victim().fingerprint
    trainer = Trainer(
        tiny_victim(), tiny_dataset(), Schedule(1, 8, 0.1), beside=[torch.tensor(0.25)]
    )
    decays = [group["weight_decay"] for group in trainer._optimizer.param_groups]
    assert decays == [5e-4, 0.0]
    assert Pni(epochs=0).recipe() == {}
    assert Pni(epochs=1, alpha=1.0).recipe() == Pni(epochs=1, alpha=2.0).recipe() != {}
