"""Purification: the diffusion's formulas, its solvers on a known law, its network, its weights."""

from __future__ import annotations

import math
import pickle
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import SHAPES, refusal, streams, tiny_dataset, tiny_victim
from torch import nn

from benchmark.catalogue import DEFENSES, load_file
from benchmark.checkpoints import fingerprint
from benchmark.config import Config
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import QueryContext
from benchmark.errors import DataError, SpecError
from benchmark.fitting import attach, train
from benchmark.loading import load_dataset, load_victim
from benchmark.rng import RowRng, seed_from
from benchmark.stack import DefenseChoice
from registry.defenses.purify import Purify
from registry.parts.denoiser import Denoiser
from registry.parts.diffusion import SOLVERS, ancestral, ddim, noised, reverse, scales, sde
from registry.parts.streams import query_streams
from registry.parts.training import Schedule, Trainer

SMALL = {"width": 4, "depth": 2, "epochs": 1}
IMAGES = tiny_dataset().take(Split.EVAL, 12).images
MEAN, STD = 0.2, 0.15  # of the Gaussian data; far enough from -1 and 1 for no clipping


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def at(time):
    return torch.tensor(time, dtype=torch.float64)


def silent():
    raise AssertionError("it drew noise")


class Perfect(nn.Module):
    """The best prediction of the noise where x_0 ~ N(MEAN, STD^2)."""

    def forward(self, noisy, times):
        kept, spread = (each.view(-1, 1, 1, 1) for each in scales(times))
        return spread * (noisy - kept * MEAN) / (kept**2 * STD**2 + spread**2)


class Constant(nn.Module):
    """Answers one number everywhere."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, noisy, times):
        return torch.full_like(noisy, self.value)


class Halved(nn.Module):
    """Answers half of the image."""

    def forward(self, noisy, times):
        return noisy[:, :, : noisy.shape[2] // 2]


@dataclass(kw_only=True)
class Given(Purify):
    """Purification by a network that is handed over."""

    given: object = None

    def network(self, shape):
        return self.given


def made(**given_):
    """A trained and prepared defense and its victim."""
    defense, victim, data = Given(**given_), tiny_victim(), tiny_dataset()
    victim = train(defense, victim, data)
    defense.prepare(victim, data)
    return defense, victim


def pure(defense, rows, rng=None, images=IMAGES):
    rows = torch.tensor(rows)
    return defense.on_images(images[rows], QueryContext(rng or streams(12), rows))


# The diffusion


@pytest.mark.parametrize(
    ("time", "abar", "std"), [(0.1, 0.8963, 0.32), (0.075, 0.9385, 0.25), (0.15, 0.7876, 0.46)]
)
def test_the_schedule_has_the_values_of_the_paper(time, abar, std):
    kept, spread = scales(at(time))
    assert float(kept) ** 2 == pytest.approx(math.exp(-9.95 * time**2 - 0.1 * time))
    assert float(kept) ** 2 == pytest.approx(abar, abs=1e-4)
    assert float(spread) == pytest.approx(std, abs=5e-3)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-6, 1.0))
def test_shares_add_up_and_decay_at_the_rate_beta(time):
    now = at(time).requires_grad_()
    kept, spread = scales(now)
    assert float((kept**2 + spread**2).detach()) == pytest.approx(1.0, abs=1e-12)
    (slope,) = torch.autograd.grad((kept**2).log(), now)
    assert float(slope) == pytest.approx(-(0.1 + 19.9 * time))


@pytest.mark.parametrize("level", [0.01, 0.1, 0.2])
def test_the_noise_has_the_variance_of_the_schedule(level):
    images = torch.full((4, 1, 200, 200), 0.5, dtype=torch.float64)
    times = torch.full((4,), level, dtype=torch.float64)
    found = noised(images, times, draw(*images.shape))
    kept, spread = scales(at(level))
    error = float(spread) / images.numel() ** 0.5
    assert float(found.mean()) == pytest.approx(0.5 * float(kept), abs=4 * error)
    assert float(found.var()) == pytest.approx(float(spread) ** 2, rel=0.02)


def test_every_image_gets_the_noise_of_its_own_time():
    images, noise, times = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1), torch.tensor([0.0, 0.1, 1])
    found = noised(images, times.double(), noise)
    assert torch.equal(found[0], images[0])
    for row in (1, 2):
        alone = noised(images[row : row + 1], times[row : row + 1].double(), noise[row : row + 1])
        assert torch.allclose(found[row], alone[0])


# The solvers


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.2), st.floats(0.01, 0.99), st.integers(0, 99))
def test_ancestral_sampling_draws_from_the_product_of_the_two_gaussians(time, share, seed):
    later, clean, noise = share * time, draw(2, 1, 2, 2, seed=seed).tanh(), draw(2, 1, 2, 2, seed=1)
    (kept, spread), (then, spread_then) = scales(at(time)), scales(at(later))
    noisy, ratio = kept * clean + spread * noise, kept / then
    precision = 1 / spread_then**2 + ratio**2 / (1 - ratio**2)
    mean = (then * clean / spread_then**2 + ratio * noisy / (1 - ratio**2)) / precision
    for fresh in (torch.zeros_like(noisy), draw(2, 1, 2, 2, seed=2)):
        found = ancestral(noisy, noise, (at(time), at(later)), lambda f=fresh: f)
        assert torch.allclose(found, mean + fresh / precision.sqrt(), rtol=1e-7, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 0.2), st.floats(0.0, 0.99))
def test_ddim_moves_along_the_same_noise(time, share):
    clean, noise = draw(2, 1, 2, 2).tanh(), draw(2, 1, 2, 2, seed=1)
    (kept, spread), (then, spread_then) = scales(at(time)), scales(at(share * time))
    noisy = kept * clean + spread * noise
    found = ddim(noisy, noise, (at(time), at(share * time)), silent)
    assert torch.allclose(found, then * clean + spread_then * noise, rtol=1e-7, atol=1e-9)


def test_a_step_of_the_sde_is_that_of_euler_and_maruyama():
    noisy, noise, fresh = (draw(2, 1, 2, 2, seed=seed) for seed in range(3))
    found = sde(noisy, noise, (at(0.1), at(0.099)), lambda: fresh)
    beta, score = 0.1 + 19.9 * 0.1, -noise / math.sqrt(1 - math.exp(-0.0995 - 0.01))
    wanted = noisy + 0.001 * (beta * noisy / 2 + beta * score) + math.sqrt(0.001 * beta) * fresh
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_one_step_is_the_clipped_estimate_without_fresh_noise(name):
    noisy, noise = 2 * draw(3, 1, 4, 4), draw(3, 1, 4, 4, seed=1)
    grid = torch.tensor([0.1, 0.0], dtype=torch.float64)
    found = reverse(noisy, lambda _x, _t: noise, grid, SOLVERS[name], silent)
    abar = math.exp(-0.0995 - 0.01)
    estimate = (noisy - math.sqrt(1 - abar) * noise) / math.sqrt(abar)
    assert float(estimate.abs().max()) > 1
    assert torch.allclose(found, estimate.clamp(-1, 1))


def test_the_network_is_told_the_falling_times():
    seen = []

    def network(noisy, times):
        seen.append(times)
        return noisy

    grid = torch.tensor([0.2, 0.15, 0.05, 0.0], dtype=torch.float64)
    reverse(draw(3, 1, 2, 2), network, grid, ddim, silent)
    assert torch.allclose(torch.stack(seen), grid[:3, None].expand(3, 3))


POINT = 0.55  # x_t at t = 0.1


def posterior():
    """Mean and variance of x_0 given x_t = POINT."""
    kept, spread = (float(one) for one in scales(at(0.1)))
    whole = kept**2 * STD**2 + spread**2
    return MEAN + STD**2 * kept / whole * (POINT - kept * MEAN), STD**2 * spread**2 / whole


def back(name, steps, count=20_000, start=None):
    """Run a solver with the perfect network, from POINT unless given."""
    noisy = torch.full((count, 1, 1, 1), POINT, dtype=torch.float64) if start is None else start
    generator = torch.Generator().manual_seed(3)
    grid = torch.linspace(0.1, 0, steps + 1, dtype=torch.float64)

    def fresh():
        return torch.randn(noisy.shape, generator=generator, dtype=torch.float64)

    return reverse(noisy, Perfect(), grid, SOLVERS[name], fresh)


def test_one_step_gives_the_posterior_mean_of_gaussian_data():
    for name in ("ancestral", "ddim"):
        found = back(name, 1, 2)
        assert torch.allclose(found, torch.full_like(found, posterior()[0]))


@pytest.mark.parametrize("steps", [2, 5, 400])
def test_ancestral_sampling_has_the_posterior_mean_with_any_number_of_steps(steps):
    mean, variance = posterior()
    found = back("ancestral", steps)
    assert float(found.mean()) == pytest.approx(mean, abs=4 * (variance / len(found)) ** 0.5)
    if steps == 400:
        assert float(found.var()) == pytest.approx(variance, rel=0.05)
    else:
        assert float(found.var()) < variance


def test_the_sde_samples_the_posterior():
    mean, variance = posterior()
    found = back("sde", 400)
    assert float(found.mean()) == pytest.approx(mean, abs=5e-3)
    assert float(found.var()) == pytest.approx(variance, rel=0.05)


def test_ddim_keeps_the_quantile():
    kept, spread = (float(one) for one in scales(at(0.1)))
    wanted = MEAN + STD * (POINT - kept * MEAN) / (kept**2 * STD**2 + spread**2) ** 0.5
    assert float(back("ddim", 400, 1)) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "sde"])
def test_there_and_back_keeps_the_law_of_the_data(name):
    clean = MEAN + STD * draw(20_000, 1, 1, 1)
    times = torch.full((20_000,), 0.1, dtype=torch.float64)
    found = back(name, 200, start=noised(clean, times, draw(20_000, 1, 1, 1, seed=1)))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(found.std()) == pytest.approx(STD, rel=0.04)


# The defense


@pytest.mark.parametrize("solver", SOLVERS)
def test_level_zero_is_the_image_itself(solver):
    defense, victim = made(given=Constant(1.0), level=0.0, solver=solver)
    assert torch.equal(pure(defense, list(range(12))), IMAGES)
    answer = Defended(victim, defense, 64).answer(IMAGES, torch.arange(12), streams(12))
    with torch.no_grad():
        assert torch.equal(answer, victim(IMAGES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_images_stay_in_the_box_and_keep_their_type(solver, dtype):
    defense, _ = made(given=Constant(-40.0), level=0.2, solver=solver)
    found = pure(defense, [0, 1, 2], images=IMAGES.to(dtype))
    assert found.dtype == dtype
    assert float(found.min()) >= 0 and float(found.max()) == pytest.approx(1)
    assert float(found.max()) <= 1


def test_an_image_is_noised_and_denoised_in_the_range_from_minus_one_to_one():
    defense, _ = made(given=Perfect(), steps=1, level=0.15)
    noise = query_streams(QueryContext(streams(12), torch.arange(12))).normal(
        torch.arange(12), (1, 6, 9)
    )
    kept, spread = scales(at(0.15))
    noisy = kept * (2 * IMAGES - 1) + spread * noise
    wanted = MEAN + STD**2 * kept / (kept**2 * STD**2 + spread**2) * (noisy - kept * MEAN)
    assert torch.allclose(pure(defense, list(range(12))), (wanted.clamp(-1, 1) + 1) / 2)


def test_the_steps_are_equal_and_there_are_so_many():
    class Times(Constant):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, noisy, times):
            self.seen.append(float(times[0]))
            return super().forward(noisy, times)

    network = Times()
    defense, _ = made(given=network, steps=4, level=0.2)
    network.seen.clear()
    pure(defense, [0, 1])
    assert network.seen == pytest.approx([0.2, 0.15, 0.1, 0.05])


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_noise_is_the_seeds_and_each_query_has_its_own(solver):
    defense, _ = made(given=Perfect(), solver=solver, steps=3)
    first, again, other = (pure(defense, [0, 0, 1], streams(12, purpose)) for purpose in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize("solver", SOLVERS)
def test_queries_asked_together_are_answered_as_if_asked_in_turn(solver):
    defense, _ = made(given=Perfect(), solver=solver, steps=3)
    rng = streams(12)
    together = pure(defense, [4, 1, 4, 4])
    in_turn = torch.cat([pure(defense, [row], rng) for row in (4, 1, 4, 4)])
    assert torch.allclose(together, in_turn, rtol=0, atol=1e-12)


def test_each_solver_goes_its_own_way():
    found = [pure(made(given=Perfect(), solver=solver, steps=3)[0], [0, 1]) for solver in SOLVERS]
    assert not any(torch.allclose(found[i], found[i - 1]) for i in range(3))


def test_the_settings_of_the_paper_take_steps_of_a_thousandth():
    facts = DEFENSES.get("purify").facts
    assert set(facts.presets) == {"diffpure", "diffpure-l2", "diffpure-imagenet"}
    for name in facts.presets:
        choice = DefenseChoice.parse(f"purify@{name}")
        built = choice.build()
        assert choice.fixed
        assert built.solver == "sde" and built.level / built.steps == pytest.approx(1e-3)


def test_every_solver_can_be_chosen():
    assert set(get_args(get_type_hints(Purify)["solver"])) == set(SOLVERS)


# The network and its training


@pytest.mark.parametrize("shape", [*SHAPES, (1, 5, 7), (3, 1, 1)])
def test_the_denoiser_takes_images_of_any_size_row_by_row(shape):
    torch.manual_seed(0)
    network = Denoiser(shape[0], 4, 3).double()
    noisy, times = draw(3, *shape), torch.tensor([0.05, 0.1, 0.2]).double()
    whole = network(noisy, times)
    assert whole.shape == noisy.shape
    for row in range(3):
        assert torch.allclose(whole[row], network(noisy[row : row + 1], times[row : row + 1])[0])
    first, last = (network(noisy[:1], time[None]) for time in times[[0, 2]])
    (kept, spread), (kept_last, spread_last) = scales(times[0]), scales(times[2])
    layers = (first - spread * noisy[:1]) / kept, (last - spread_last * noisy[:1]) / kept_last
    assert not torch.allclose(*layers, atol=1e-6)  # the layers are told the time
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_layers_that_answer_zero_predict_the_noise_of_a_black_and_white_guess():
    """With v = 0 the noise is sqrt(1 - abar) x_t, so the estimate of x_0 is sqrt(abar) x_t."""
    network, noisy = Denoiser(1, 4, 2), draw(2, 1, 4, 4).float()
    for weight in network.last.parameters():
        nn.init.zeros_(weight)
    kept, spread = scales(torch.tensor(0.1))
    noise = network(noisy, torch.full((2,), 0.1))
    assert torch.allclose((noisy - spread * noise) / kept, kept * noisy, atol=1e-6)


def test_the_size_of_the_network_is_a_parameter():
    small = Purify(width=3, depth=2).network((2, 8, 8))
    assert small(torch.zeros(1, 2, 8, 8), torch.zeros(1)).shape == (1, 2, 8, 8)
    assert sum(w.numel() for w in small.parameters()) == (9 * 9 + 1) * 3 + (3 * 9 + 1) * 8
    deeper = Purify(width=3, depth=4).network((2, 8, 8))
    more = sum(w.numel() for w in deeper.parameters()) - sum(w.numel() for w in small.parameters())
    assert more == 2 * (3 * 9 + 1) * 3


class Watching(nn.Module):
    """Keeps what it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, noisy, times):
        if torch.is_grad_enabled():
            self.seen.append((noisy.detach(), times))
        return self.weight * noisy


def test_training_shows_noisy_images_at_every_time_up_to_a_fifth():
    grey = replace(tiny_dataset(), read=lambda ids: torch.full((len(ids), 1, 6, 9), 0.75).double())
    network = Watching()
    train(Given(given=network, epochs=50, rate=1e-3), tiny_victim(), grey)
    noisy = torch.cat([seen[0] for seen in network.seen])[:, 0, 2:4, 2:7]  # no shift reaches these
    times = torch.cat([seen[1] for seen in network.seen])
    assert len(times) == 1000 and times.dtype == torch.float64
    assert 0 < float(times.min()) < 0.002 and 0.198 < float(times.max()) <= 0.2
    assert float(times.mean()) == pytest.approx(0.1, abs=0.008)
    kept, spread = (one[:, None, None] for one in scales(times))
    noise = (noisy - kept * 0.5) / spread
    assert float(noise.mean()) == pytest.approx(0, abs=0.04)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_the_victim_is_not_changed_and_training_is_the_same_again():
    victim, data = tiny_victim(), tiny_dataset()
    first, again, other = Purify(**SMALL), Purify(**SMALL), Purify(**SMALL | {"rate": 0.01})
    for defense in (first, again, other):
        assert train(defense, victim, data).fingerprint == fingerprint(victim)
    assert all(torch.equal(first.learned[name], again.learned[name]) for name in first.learned)
    assert any(not torch.equal(first.learned[k], other.learned[k]) for k in first.learned)
    assert all(w.dtype == torch.float64 and w.is_contiguous() for w in first.learned.values())


def test_a_trainer_of_a_network_descends_by_adam_and_leaves_the_victim_frozen():
    victim, network = tiny_victim(), nn.Linear(1, 1).double()
    network.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = Trainer(victim, tiny_dataset(), Schedule(5, 20, 0.1), network=network)
    trainer.step(1e-3 * (network.weight + network.bias).sum())
    moved = float((before["weight"] - network.weight).detach())
    assert moved == pytest.approx(0.1 / 25, rel=1e-3)  # a first step of Adam is of the rate
    assert torch.equal(before["bias"], network.bias)
    assert not any(weight.requires_grad for weight in victim.parameters())


def test_only_what_training_depends_on_is_in_the_recipe():
    usual = Purify().recipe()
    assert Purify(level=0.2, steps=9, solver="sde").recipe() == usual
    for changed in ({"width": 7}, {"depth": 3}, {"epochs": 2}, {"rate": 0.1}):
        assert Purify(**changed).recipe() != usual
    assert set(usual) == {"width", "depth", "epochs", "rate", "checkpoint"}


def test_a_copy_answers_alike_and_the_network_is_counted(tmp_path):
    choice, data = DefenseChoice.parse("purify[width=4,depth=2,epochs=1]"), tiny_dataset()
    defense, victim = attach(choice, tiny_victim(), data, tmp_path)
    original, rows = Defended(victim, defense, 64), torch.arange(12)
    copied = original.fresh()
    assert torch.equal(
        original.answer(IMAGES, rows, streams(12)), copied.answer(IMAGES, rows, streams(12))
    )
    networks = [one for one in vars(copied.defense).values() if isinstance(one, nn.Module)]
    assert [sum(w.numel() for w in one.parameters()) for one in networks] == [46 * 4 + 37 * 4]
    assert not any(w.requires_grad for one in networks for w in one.parameters())


# Weights and networks of others


def answers(text, cache):
    defense, behind = attach(DefenseChoice.parse(text), tiny_victim(), tiny_dataset(), cache)
    return Defended(behind, defense, 64).answer(IMAGES, torch.arange(12), streams(12))


def test_a_checkpoint_gives_the_network_it_was_saved_from(tmp_path):
    trained, path = Purify(**SMALL), tmp_path / "net.safetensors"
    train(trained, tiny_victim(), tiny_dataset())
    save_file(dict(trained.learned), path)
    settings_ = "width=4,depth=2"
    from_file = answers(f"purify[{settings_},checkpoint={path}]", tmp_path)
    assert torch.equal(from_file, answers(f"purify[{settings_},epochs=1]", tmp_path))
    before = Purify(checkpoint=path).recipe()
    save_file({k: 2 * v for k, v in trained.learned.items()}, path)
    assert Purify(checkpoint=path).recipe() != before
    doubled = answers(f"purify[{settings_},checkpoint={path}]", tmp_path)
    assert not torch.equal(from_file, doubled)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    save_file({"first.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "objects.pt").write_bytes(pickle.dumps({"first.weight": Path("x")}))
    for name in ("other.safetensors", "objects.pt", "none.pt"):
        text = f"purify[checkpoint={tmp_path / name}]"
        assert name in refusal(DataError, lambda t=text: answers(t, tmp_path))


def test_a_network_that_gives_other_shapes_is_refused():
    line = refusal(SpecError, lambda: made(given=Halved()))
    assert "Given" in line and "(1, 1, 6, 9)" in line and "(1, 1, 3, 9)" in line


PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from benchmark.registry import Level, Source, Traits, defense
from registry.defenses.purify import Purify

class Mine(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5), requires_grad=not frozen)

    def forward(self, noisy, times):
        return self.factor * noisy

@defense(
    source=Source(paper="none", url="", year=2026),
    level=Level.IMAGES,
    traits=Traits(randomised=True),
    strength="level",
)
@dataclass(kw_only=True)
class Own(Purify):
    '''Purify with a network of one weight.'''
    frozen: bool = False

    def network(self, shape):
        return Mine(self.frozen)
"""


@pytest.fixture
def own_purify(tmp_path):
    path = tmp_path / "own_purify.py"
    path.write_text(PLUGIN)
    load_file(path)
    yield "own-purify"
    DEFENSES.remove("own-purify")
    del sys.modules["querybench_plugin_own_purify"]


def test_a_plug_in_brings_a_network_of_its_own(own_purify, tmp_path):
    factors = []
    for text in (own_purify, f"{own_purify}[frozen=true]"):
        choice = DefenseChoice.parse(text)
        assert choice.knob == "level" and choice.limit == 0.2
        defense, _ = attach(choice, tiny_victim(), tiny_dataset(), tmp_path)
        assert set(defense.learned) == {"factor"} and "frozen" in defense.recipe()
        factors.append(float(defense.learned["factor"]))
    assert factors[0] != 0.5 and factors[1] == 0.5
    noise = query_streams(QueryContext(streams(12), torch.arange(12))).normal(
        torch.arange(12), (1, 6, 9)
    )
    kept, spread = scales(at(0.1))
    noisy = kept * (2 * IMAGES - 1) + spread * noise
    defense.steps = 1
    found = pure(defense, list(range(12)))
    wanted = ((noisy - spread * 0.5 * noisy) / kept).clamp(-1, 1)
    assert torch.allclose(found, (wanted + 1) / 2)


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    """A network trained for a few seconds, digits, and their victim."""
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    choice = DefenseChoice.parse("purify[width=32,depth=5,epochs=3,rate=0.005]")
    defense, behind = attach(choice, victim, data, tmp_path_factory.mktemp("cache"))
    return defense, behind, data.take(Split.EVAL, 300)


def test_training_pays_on_digits(on_digits):
    defense, _, samples = on_digits
    network, clean = defense.network((1, 28, 28)), 2 * samples.images - 1
    times, noise = torch.full((300,), 0.1), draw(*clean.shape).float()
    noisy = noised(clean, times, noise)
    with torch.no_grad():
        untrained = (network(noisy, times) - noise).square().mean()
        network.load_state_dict(defense.learned)
        trained = (network(noisy, times) - noise).square().mean()
    assert trained < 0.4 < 0.8 < untrained


def test_a_purified_digit_is_nearer_to_the_clean_one_than_the_noisy_one(on_digits):
    defense, _, samples = on_digits
    rows = torch.arange(300)
    found = defense.on_images(
        samples.images, QueryContext(RowRng([seed_from(row) for row in range(300)]), rows)
    )
    error = float((found - samples.images).square().mean())
    _, spread = scales(at(0.1))
    assert error < 0.5 * (float(spread) / 2) ** 2


def test_most_digits_are_recognised_after_purification(on_digits):
    defense, victim, samples = on_digits
    rows = torch.arange(300)
    right = []
    for turned in (defense, made_noisy(defense)):
        answer = Defended(victim, turned, 100).answer(
            samples.images, rows, RowRng([seed_from(row) for row in range(300)])
        )
        right.append(float((answer.argmax(1) == samples.labels).float().mean()))
    assert right[0] > 0.85 and right[1] < 0.6


def made_noisy(defense):
    """The same without a network that removes anything: the noise stays."""
    noisy = Given(given=Constant(), level=defense.level, steps=1)
    noisy._network = Constant()
    return noisy
