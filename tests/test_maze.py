"""MAZE and MAZE-PD: bill, phases, estimate, replay, schedules, resuming, pairing, strength."""

from __future__ import annotations

import copy
import io
import itertools
import math
from itertools import chain

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from benchmark.catalogue import STEALERS
from benchmark.errors import SpecError
from benchmark.stealing.divergence import divergence
from benchmark.stealing.pool import Pool
from benchmark.stealing.stealer import Scene
from registry.parts.critic import critic_loss
from registry.parts.differences import forward_differences, units
from registry.parts.generator import pixels
from registry.parts.replay import Replay
from registry.stealing import maze
from registry.stealing.maze import Maze
from registry.stealing.maze_pd import MazePd

SHAPE, CLASSES, CPU = (1, 8, 8), 4, torch.device("cpu")
TINY = {"batch": 8, "directions": 3, "clone_steps": 3, "replay_steps": 2, "width": 8, "latent": 6}
COST = 8 * (2 + 1 + 3)
BOTH = pytest.mark.parametrize("build", [Maze, MazePd])


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(budget=10 * COST + 20, shape=SHAPE, seed=0, images=120):
    pictures = torch.rand((images, *shape), generator=stream(99))
    labels = torch.zeros(images, dtype=torch.int64)
    return Scene(shape, CLASSES, budget, seed, Pool(labels, 2, lambda at: pictures[at]), CPU)


def begun(build=Maze, where=None, **given):
    attack = build(**{**TINY, **({"seeds": 20} if build is MazePd else {}), **given})
    attack.begin(where or scene())
    return attack


def oracle(seed=0, scale=3.0, shape=SHAPE):
    """Answer softmax(W x), sharply enough that classes differ."""
    weight = torch.randn((CLASSES, math.prod(shape)), generator=stream(seed)) * scale
    return lambda images: ((images.flatten(1) - 0.5) @ weight.T).softmax(1)


def step(attack, ask, left=10**9):
    """Drive one step; return every batch it asked about."""
    asking, asked = attack.step(left), []
    try:
        images = next(asking)
        while True:
            asked.append(images)
            images = asking.send(ask(images))
    except StopIteration:
        return asked


def spent(attack, ask, budget):
    """Drive to the end of a budget; return the batches of each step that asked."""
    steps = []
    while asked := step(attack, ask, budget):
        budget -= sum(map(len, asked))
        steps.append(asked)
    return steps


def weights(network):
    return torch.cat([value.detach().flatten().clone() for value in network.parameters()])


def everything(network):
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


# --- the bill ---


@pytest.mark.parametrize(
    ("given", "cost"),
    [
        ({}, COST),
        ({"repeats": 3}, COST + 2 * 8),
        ({"generator_steps": 2}, COST + 4 * 8),
        ({"clone_steps": 1}, COST - 2 * 8),
    ],
)
@BOTH
def test_an_iteration_costs_just_what_it_says_and_less_than_one_is_unspent(build, given, cost):
    attack = begun(build, **given)
    budget = attack.scene.budget
    steps = spent(attack, oracle(), budget)
    bills = [sum(map(len, asked)) for asked in steps]
    first = [20] if build is MazePd else []
    assert attack.cost == cost
    assert bills == first + [cost] * ((budget - sum(first)) // cost)
    assert 0 <= budget - sum(bills) < cost


def test_by_default_an_iteration_costs_1920_queries():
    assert Maze().cost == MazePd().cost == 1920


@BOTH
def test_a_step_that_is_not_allowed_an_iteration_asks_nothing_and_changes_nothing(build):
    attack = begun(build)
    needed = 20 if build is MazePd else COST
    before = everything(attack.generator), everything(attack.clone)
    assert step(attack, oracle(), needed - 1) == []
    assert torch.equal(before[0], everything(attack.generator))
    assert torch.equal(before[1], everything(attack.clone))
    assert sum(map(len, step(attack, oracle(), needed))) == needed


def test_after_its_iterations_it_asks_nothing_however_much_is_left():
    attack = begun(where=scene(2 * COST))
    assert [len(step(attack, oracle())) for _ in range(4)] == [4, 4, 0, 0]


# --- questions ---


@BOTH
def test_questions_are_images_in_the_box_that_carry_no_gradient(build):
    attack = begun(build)
    asked = [images for _ in range(3) for images in step(attack, oracle())]
    assert len(asked) == 12 if build is Maze else 9
    for images in asked:
        assert images.shape[1:] == SHAPE and images.dtype == torch.float32
        assert not images.requires_grad and images.grad_fn is None
        assert 0 <= images.min() < images.max() <= 1


@pytest.fixture
def fits(monkeypatch):
    """Record what the clone is trained on, and both networks before each of these steps."""
    seen, fit = [], Maze._fit

    def recorded(self, images, answers):
        before = everything(self.clone), weights(self.generator)
        seen.append((images.clone(), answers.clone(), *before, everything(self.generator)))
        fit(self, images, answers)

    monkeypatch.setattr(Maze, "_fit", recorded)
    return seen


def moody(seed=7):
    """Answer at random, never the same twice."""
    draws = stream(seed)
    return lambda images: torch.rand((len(images), CLASSES), generator=draws).softmax(1)


def test_the_first_clone_batch_is_the_base_batch_which_is_not_asked_again(fits):
    attack, ask, answers = begun(), moody(), []

    def keeping(images):
        answers.append(ask(images))
        return answers[-1]

    asked = step(attack, keeping)
    assert [len(images) for images in asked] == [8, 24, 8, 8]
    assert torch.equal(fits[0][0], asked[0]) and torch.equal(fits[0][1], answers[0])
    assert torch.equal(fits[1][0], asked[2]) and torch.equal(fits[1][1], answers[2])
    assert len(torch.cat(asked).flatten(1).unique(dim=0)) == COST


def test_a_repeated_base_is_averaged_for_the_clone_and_its_losses_for_the_estimate(
    fits, monkeypatch
):
    bases = []

    def recorded(losses, base, *rest):
        bases.append(base)
        return forward_differences(losses, base, *rest)

    monkeypatch.setattr(maze, "forward_differences", recorded)
    attack, ask, answers = begun(repeats=3), moody(), []
    clone = copy.deepcopy(attack.clone).eval()

    def keeping(images):
        answers.append(ask(images))
        return answers[-1]

    asked = step(attack, keeping)
    base = asked[0].view(3, 8, *SHAPE)
    assert torch.equal(base[0], base[1]) and torch.equal(base[0], base[2])
    replies = answers[0].view(3, 8, CLASSES)
    assert torch.allclose(fits[0][1], replies.mean(0))
    losses = torch.stack([-divergence(each, clone(base[0])) for each in replies]).mean(0)
    assert torch.allclose(bases[0], losses, atol=1e-6)
    # The divergence of the mean is another number: noise would shift base against probes.
    assert not torch.allclose(-divergence(replies.mean(0), clone(base[0])), losses, atol=1e-3)


def test_probes_are_mu_away_from_the_base_before_tanh():
    asked = step(begun(mu=0.5), oracle())
    base, probes = (images.double().mul(2).sub(1).atanh() for images in asked[:2])
    far = (probes.view(3, 8, -1) - base.view(1, 8, -1)).norm(dim=2)
    assert torch.allclose(far, torch.full_like(far, 0.5), atol=1e-3)


# --- phases ---


@BOTH
def test_the_clone_rests_while_the_generator_learns_and_the_reverse(build, fits):
    attack = begun(build)
    if build is MazePd:
        step(attack, oracle())
    clone, generator = everything(attack.clone), weights(attack.generator)
    step(attack, oracle())
    assert len(fits) == 5  # three clone batches, two of the replay
    assert torch.equal(fits[0][2], clone)  # its statistics included: it is probed in eval mode
    assert not torch.equal(fits[0][3], generator)
    assert all(torch.equal(seen[3], fits[0][3]) for seen in fits)
    assert torch.equal(weights(attack.generator), fits[0][3])
    clones = [seen[2] for seen in fits] + [everything(attack.clone)]
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(clones))


def test_the_replay_gets_the_last_clone_batch_alone(fits):
    attack = begun()
    asked = step(attack, oracle())
    last = asked[-1].mul(255).round().div(255)
    for images, answers, *_ in fits[3:5]:
        near = torch.cdist(images.flatten(1), last.flatten(1)).argmin(1)
        assert torch.allclose(images, last[near])
        assert torch.allclose(answers, oracle()(asked[-1])[near])
    sizes = [len(attack.kept)]
    for _ in range(3):
        step(attack, oracle())
        sizes.append(len(attack.kept))
    assert sizes == [8, 16, 24, 32]


def test_an_oracle_that_is_the_clone_gives_the_generator_nothing_to_learn():
    attack = begun(mu=1.0)
    twin = copy.deepcopy(attack.clone).eval()
    seen = []

    @torch.no_grad()
    def same(images):
        seen.append(divergence(twin(images).softmax(1), twin(images)).abs().max())
        return twin(images).softmax(1)

    def moved(ask):
        one = begun(mu=1.0)
        shrunk = weights(one.generator) * (1 - one.generator_rate * 5e-4)  # decay alone
        step(one, ask)
        return (weights(one.generator) - shrunk).norm()

    assert moved(same) < 1e-4 * moved(oracle())
    assert max(seen) < 1e-6


def test_the_generator_follows_the_mean_of_its_images_estimates(monkeypatch):
    found = []

    def recorded(*given):
        found.append(forward_differences(*given))
        return found[-1]

    monkeypatch.setattr(maze, "forward_differences", recorded)
    attack = begun()
    step(attack, oracle())
    bias = attack.generator.layers[-1].bias  # added to every pre-activation
    assert torch.allclose(bias.grad, found[0].sum((0, 2, 3)) / 8, rtol=1e-4)


def test_the_gradient_of_the_generator_is_clipped():
    free, tied = begun(), begun(clip=1e-3)
    for attack in (free, tied):
        step(attack, oracle())

    def norm(attack):
        return torch.cat([value.grad.flatten() for value in attack.generator.parameters()]).norm()

    assert norm(free) > 2e-3
    assert norm(tied) == pytest.approx(1e-3, rel=1e-3)


# --- estimate ---


def quadratic(count=400, size=48):
    slope = torch.randn((count, size), generator=stream(1), dtype=torch.float64)
    curve = torch.randn(size, generator=stream(2), dtype=torch.float64)
    points = torch.randn((count, size), generator=stream(3), dtype=torch.float64)

    def loss(at):
        return (slope * at).sum(-1) + (curve * at.square()).sum(-1) / 2

    return points, loss, slope + curve * points


@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_estimate_has_the_expected_cosine_and_the_gradient_as_its_mean(count):
    points, loss, true = quadratic()
    size = points.shape[1]
    found = []
    for seed in range(40):
        ways = units(count, points, stream(seed))
        losses = loss(points + 1e-4 * ways)
        found.append(forward_differences(losses, loss(points), ways, 1e-4))
    cosines = cosine_similarity(torch.stack(found), true, dim=-1)
    assert cosines.square().mean().sqrt().item() == pytest.approx(
        math.sqrt(count / (count + size - 1)), rel=0.1
    )
    mean = torch.stack(found).mean(0)
    share = ((mean * true).sum() / true.square().sum()).item()
    assert share == pytest.approx(1, abs=0.03)
    expected = math.sqrt(40 * count / (40 * count + size - 1))
    assert cosine_similarity(mean, true).mean().item() == pytest.approx(expected, rel=0.1)


def test_directions_are_uniform_units():
    ways = units(200, torch.zeros(50, 1, 2, 3), stream())
    assert ways.shape == (200, 50, 1, 2, 3)
    flat = ways.flatten(0, 1).flatten(1)
    assert torch.allclose(flat.norm(dim=1), torch.ones(len(flat)))
    assert torch.allclose(flat.T @ flat / len(flat), torch.eye(6) / 6, atol=0.01)
    assert flat.mean(0).abs().max() < 0.02


def test_divergence_is_that_of_kullback_and_leibler_and_bears_certain_answers():
    logits = torch.randn((5, CLASSES), generator=stream())
    answers = torch.randn((5, CLASSES), generator=stream(1)).softmax(1)
    expected = nn.functional.kl_div(logits.log_softmax(1), answers, reduction="none").sum(1)
    assert torch.allclose(divergence(answers, logits), expected)
    certain = torch.eye(CLASSES)
    crossed = nn.functional.cross_entropy(logits[:4], torch.arange(4), reduction="none")
    assert torch.allclose(divergence(certain, logits[:4]), crossed)


# --- replay ---


def ring(room=10):
    return Replay(room, (1, 2, 2), 3, CPU)


def put(kept, values):
    values = torch.tensor(values)
    kept.add(values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 255, values[:, None].expand(-1, 3))


@pytest.mark.parametrize("size", [1, 3, 4, 10, 25])
def test_the_ring_drops_the_oldest_and_never_grows(size):
    kept, given = ring(), 0.0
    for _ in range(9):
        put(kept, [given + number for number in range(size)])
        given += size
        assert len(kept) == min(10, given)
        images, answers = kept.draw(300, stream())
        wanted = set(range(max(0, int(given) - 10), int(given)))
        assert set(answers[:, 0].int().tolist()) == wanted
        assert torch.allclose(images[:, 0, 0, 0] * 255, answers[:, 0])


def test_the_ring_keeps_images_to_8_bits_and_answers_in_full():
    kept = ring()
    images, answers = torch.rand((10, 1, 2, 2), generator=stream()), torch.rand(10, 3)
    kept.add(images, answers)
    drawn, replies = kept.draw(50, stream())
    nearest = torch.cdist(replies, answers).argmin(1)
    assert torch.equal(replies, answers[nearest])
    assert (drawn - images[nearest]).abs().max() <= 0.5 / 255 + 1e-6


def test_a_ring_comes_back_as_it_was():
    for count in (4, 17):
        kept, again = ring(), ring()
        put(kept, [float(number) for number in range(count)])
        again.load_state_dict(kept.state_dict())
        for one in (kept, again):
            put(one, [100.0, 101.0])
        drawn = [one.draw(60, stream())[1] for one in (kept, again)]
        assert len(kept) == len(again) and torch.equal(*drawn)


def test_the_replay_stays_below_its_cap():
    attack = begun(replay=20)
    spent(attack, oracle(), attack.scene.budget)
    assert len(attack.kept) == 20 and attack.done == 10


# --- lasting ---


def through_a_file(attack):
    file = io.BytesIO()
    torch.save(attack.state(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("given", [{}, {"replay": 20, "generator_steps": 2, "clip": 0.1}])
@BOTH
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(build, given):
    whole, first = begun(build, **given), begun(build, **given)
    expected = [step(whole, oracle()) for _ in range(6)]
    found = [step(first, oracle()) for _ in range(3)]
    list(first.learn())
    second = begun(build, **given)
    second.resume(through_a_file(first))
    found += [step(second, oracle()) for _ in range(3)]
    for one, other in zip(chain(*expected), chain(*found), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(everything(whole.clone), everything(second.clone))
    assert whole.done == second.done


def test_looking_at_the_clone_and_sampling_changes_no_later_step():
    plain, looked = begun(), begun()
    for number in range(4):
        list(looked.learn())
        assert not looked.clone.training
        assert torch.equal(looked.sample(20, stream(3)), looked.sample(20, stream(3)))
        pairs = zip(step(plain, oracle()), step(looked, oracle()), strict=True)
        assert all(torch.equal(*pair) for pair in pairs), number
    assert torch.equal(everything(plain.generator), everything(looked.generator))


def test_samples_are_new_images_in_the_box_each_on_its_own():
    attack = begun()
    step(attack, oracle())
    images = attack.sample(20, stream(3))
    assert images.shape == (20, *SHAPE) and 0 <= images.min() < images.max() <= 1
    assert not images.requires_grad
    attack.generator.eval()  # its running statistics: no image depends on those beside it
    alone = pixels(attack.generator(torch.randn((20, 6), generator=stream(3))[:3]))
    assert torch.allclose(images[:3], alone, atol=1e-6)
    assert len(images.flatten(1).unique(dim=0)) == 20
    assert attack.sample(0, stream(3)).shape == (0, *SHAPE)


@BOTH
def test_rates_fall_along_a_cosine_over_the_whole_budget(build):
    for iterations in (4, 10):
        attack = begun(build, scene(iterations * COST + 20))
        shares = []
        for _ in range(iterations + 1):
            if step(attack, oracle()) and attack.done:
                shares.append([o.param_groups[0]["lr"] / rate for o, rate in attack._trained()])
        expected = [(1 + math.cos(math.pi * t / iterations)) / 2 for t in range(iterations)]
        assert len(shares[0]) == (3 if build is MazePd else 2)
        for each in zip(*shares, strict=True):
            assert list(each) == pytest.approx(expected)


@BOTH
def test_runs_are_paired_networks_and_noise_do_not_depend_on_answers(build):
    one, other = begun(build), begun(build)
    for seed, attack in enumerate((one, other)):
        for _ in range(3):
            asked = step(attack, oracle(seed))
        assert asked
    names = ("latents", "ways", "draws", *(["contrasts"] if build is MazePd else []))
    for name in names:
        assert torch.equal(getattr(one, name).get_state(), getattr(other, name).get_state())
    fresh = [begun(build, scene(seed=seed)) for seed in (0, 0, 1)]
    for name in ("clone", "generator"):
        initial = [weights(getattr(attack, name)) for attack in fresh]
        assert torch.equal(*initial[:2]) and not torch.equal(*initial[1:])
    first = [torch.cat(step(attack, oracle(n))[:1]) for n, attack in enumerate(fresh)]
    assert torch.equal(*first[:2]) and not torch.equal(*first[1:])


# --- PD ---


def test_seeds_are_images_of_the_pool_asked_once_and_kept():
    attack = begun(MazePd)
    (asked,) = step(attack, oracle())
    pictures = attack.scene.pool.read(torch.arange(120))
    same = (asked[:, None] == pictures).flatten(2).all(2)
    assert same.any(1).all() and same.any(0).sum() == 20
    assert len(attack.kept) == 20
    assert len(step(attack, oracle())) == 4
    assert not torch.equal(attack.real, begun(MazePd, scene(seed=1)).real)


def test_without_alpha_the_generator_is_that_of_maze():
    plain, drawn, pulled = begun(), begun(MazePd, alpha=0), begun(MazePd)
    for attack in (drawn, pulled):
        step(attack, oracle())
    for attack in (plain, drawn, pulled):
        step(attack, oracle())
    assert torch.equal(weights(plain.generator), weights(drawn.generator))
    assert not torch.equal(weights(plain.generator), weights(pulled.generator))


def test_the_pull_of_the_critic_is_its_exact_gradient_and_leaves_the_critic_alone():
    attack = begun(MazePd, alpha=2.5)
    attack.critic.double()
    at = torch.randn((3, *SHAPE), generator=stream(4), dtype=torch.float64)
    way = torch.randn((3, *SHAPE), generator=stream(5), dtype=torch.float64)
    slopes = attack._known_slopes(at.clone())
    with torch.no_grad():
        ends = [attack.critic(pixels(at + sign * 1e-5 * way)) for sign in (1, -1)]
    measured = -2.5 * (ends[0] - ends[1]) / 2e-5
    assert torch.allclose((slopes * way).flatten(1).sum(1), measured, rtol=1e-4)
    assert all(value.grad is None for value in attack.critic.parameters())


def test_the_loss_of_the_critic_is_that_of_wgan_gp():
    real, made = (torch.rand((6, *SHAPE), generator=stream(n)) for n in (1, 2))

    class Linear(nn.Module):
        def forward(self, images):
            return images.flatten(1).sum(1) / 2  # slope of norm 8 / 2

    loss = critic_loss(Linear(), real, made, torch.rand((6, 1, 1, 1)))
    expected = (made.sum() - real.sum()) / 12 + 10 * (4 - 1) ** 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_critic_learns_in_every_clone_step_and_not_from_the_replay(monkeypatch):
    made, fit = [], MazePd._fit_critic
    monkeypatch.setattr(
        MazePd, "_fit_critic", lambda self, images: (made.append(images), fit(self, images))
    )
    attack = begun(MazePd)
    step(attack, oracle())
    before = weights(attack.critic)
    asked = step(attack, oracle())
    assert [torch.equal(*pair) for pair in zip(made, (asked[0], *asked[2:]), strict=True)]
    assert not torch.equal(before, weights(attack.critic))


# --- refusals, registry ---


@pytest.mark.parametrize(
    ("build", "where", "given", "words"),
    [
        (Maze, scene(shape=(1, 10, 8)), {}, "10x8.*multiples of 4"),
        (Maze, scene(COST - 1), {}, f"budget of {COST - 1} queries.*{COST} before"),
        (MazePd, scene(COST + 19), {}, f"budget of {COST + 19} queries.*{COST + 20} before"),
        (MazePd, scene(images=19), {}, "seeds=20.*19 images"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(build, where, given, words):
    with pytest.raises(SpecError, match=words) as refused:
        begun(build, where, **given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["maze[mu=0]", "maze[batch=1]", "maze[width=65]", "maze[clip=-1]", "maze[network=vgg]"]
)
def test_parameters_out_of_range_are_refused(text):
    with pytest.raises(SpecError, match=r"is not allowed"):
        STEALERS.choose(text)


@pytest.mark.parametrize("name", ["maze", "maze-pd"])
def test_presets_are_the_official_and_the_adaptive_attack(name):
    official = STEALERS.choose(f"{name}@official").values
    assert (official["mu"], official["clone_rate"]) == (0.001, 0.1)
    assert official["generator_rate"] == 1e-4
    assert (official["clip"], official["repeats"]) == (None, 1)
    adaptive = STEALERS.choose(f"{name}@adaptive").values
    assert adaptive["mu"] >= 0.1 and adaptive["clip"] and adaptive["repeats"] > 1


# --- strength ---


def smooth(count, seed):
    rough = torch.rand((count, 1, 4, 4), generator=stream(seed))
    return nn.functional.interpolate(rough, scale_factor=3, mode="bilinear")


def convolutional():
    """Make a small fixed victim whose classes are equally frequent on smooth images."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = (nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten())
        network = nn.Sequential(*layers, nn.Linear(256, CLASSES)).requires_grad_(False)
    logits = network(smooth(500, 1))
    return lambda images: ((network(images) - logits.mean(0)) / logits.std(0) * 2).softmax(1)


@BOTH
def test_the_clone_comes_to_agree_with_the_victim_on_images_it_never_asked(build):
    ask, held = convolutional(), smooth(400, 2)
    attack = build(batch=32, width=32, latent=20, replay_steps=5)
    attack.begin(scene(20 * attack.cost + attack.upfront, (1, 12, 12)))

    def agreement():
        list(attack.learn())
        return (attack.clone(held).argmax(1) == ask(held).argmax(1)).float().mean().item()

    start = agreement()
    spent(attack, ask, attack.scene.budget)
    assert start < 0.3
    assert agreement() > 0.5
