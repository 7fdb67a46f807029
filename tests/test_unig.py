"""UniG: its gradient, its limits, what its answers may depend on, what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import streams, tiny_dataset, tiny_victim

from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.defense import QueryContext
from registry.defenses.unig import UniG, unify_gradient

VARIANTS = ["fresh", "official", "noise-only", "step-only"]
COMPOSITIONS = ["context", "batch"]
IMAGES = tiny_dataset().take(Split.EVAL, 12).images
ROWS = torch.arange(12)


def made(**given_):
    """A prepared UniG and its victim; settings that do not saturate A at once."""
    victim = tiny_victim()
    defense = UniG(**{"alpha": 0.3, "context": 4, "batch": 8, **given_})
    defense.prepare(victim, tiny_dataset())
    return defense, victim


def answer(defense, victim, rows, rng=None, images=None):
    """Answers for rows, asked together, with fresh streams unless given."""
    rows = torch.tensor(rows)
    images = IMAGES[rows] if images is None else images
    return Defended(victim, defense, 64).answer(images, rows, rng or streams(12))


def scales_used(defense, victim, rows, rng=None):
    """The matrix A that multiplied the features of each row."""
    generator = torch.Generator().manual_seed(8)
    features = 1 + torch.rand((len(rows), 6), generator=generator, dtype=torch.float64)
    victim.features(IMAGES)  # finds the head
    changed = defense.on_penultimate(features, victim, QueryContext(rng or streams(12), rows))
    return changed / features


def loss_gradient(features, labels, scales, head, span):
    """Section 3.2 of the specification as it stands there, by automatic differentiation."""
    weight, bias = head
    scales = scales.clone().requires_grad_()
    gradients, spans = [], []
    for n in range(len(features)):
        f = features[n].clone().requires_grad_()
        z = (f * scales[n]) @ weight.T + bias
        cross_entropy = torch.nn.functional.cross_entropy(z, labels[n])
        (g,) = torch.autograd.grad(cross_entropy, f, create_graph=True)
        if span is None:
            low, high = g.min().detach(), g.max().detach()
        else:
            low, high = torch.zeros(()), span[n].squeeze()
        spans.append(high - low)
        normalised = (g - low) / (high - low)
        loss = (normalised[:-1] - normalised[1:]).norm(dim=1).sum()
        gradients.append(torch.autograd.grad(loss, scales)[0][n])
    return torch.stack(gradients), torch.stack(spans).view(-1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(2, 6), st.integers(1, 7), st.integers(2, 5), st.integers(0, 999)
)
def test_the_gradient_is_that_of_the_loss_at_the_first_and_at_later_steps(n, r, d, k, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features, scales, later = draw(n, r, d), 1 + 0.5 * draw(n, r, d), 1 + 0.2 * draw(n, r, d)
    labels = torch.randint(k, (n, r), generator=generator)
    head = draw(k, d), draw(k)
    found, span = unify_gradient(features, labels, scales, head, None)
    expected, expected_span = loss_gradient(features, labels, scales, head, None)
    torch.testing.assert_close(span, expected_span, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))
    again, kept = unify_gradient(features, labels, later, head, span)
    expected, _ = loss_gradient(features, labels, later, head, span)
    assert torch.equal(kept, span)
    torch.testing.assert_close(again, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


def test_equal_rows_pull_nowhere_and_sure_rows_give_no_nan():
    features, scales = torch.ones((1, 3, 4)), torch.ones((1, 3, 4))
    labels = torch.zeros((1, 3), dtype=torch.int64)
    head = torch.eye(5, 4), torch.zeros(5)
    found, span = unify_gradient(features, labels, scales, head, None)
    assert torch.equal(found, torch.zeros_like(found)) and float(span) > 0
    sure, _ = unify_gradient(features, labels, scales, (1e4 * head[0], 1e4 * torch.eye(5)[0]), None)
    assert bool(sure.isfinite().all())


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [1, 3])
def test_strength_zero_is_bitwise_the_bare_victim(variant, composition, steps):
    defense, victim = made(delta=0.0, variant=variant, composition=composition, steps=steps)
    rng = streams(12)
    with torch.no_grad():
        expected = victim(IMAGES)
    for _ in range(2):
        assert torch.equal(answer(defense, victim, list(range(12)), rng), expected)


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("delta", [0.1, 0.5, 1.0])
def test_no_entry_of_a_leaves_its_limits_and_some_entry_moves(variant, composition, delta):
    given_ = {"delta": delta, "variant": variant, "composition": composition, "steps": 2}
    defense, victim = made(**given_, alpha=10.0)
    used = scales_used(defense, victim, ROWS)
    assert float((used - 1).abs().max()) <= delta + 1e-12
    assert float((used - 1).abs().max()) > 0.5 * delta
    assert len(used.unique(dim=0)) > 1


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_history_changes_answers_just_where_the_momentum_is_kept(variant, composition):
    first, second = (made(variant=variant, composition=composition) for _ in range(2))
    answer(*second, [3, 1, 2])
    answer(*second, [3])
    found = [answer(*pair, [1, 2, 3]) for pair in (first, second)]
    assert torch.equal(*found) == (variant != "official")
    assert first[0].traits.stateful == (variant == "official")


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_noise_changes_answers_just_where_there_is_noise(variant, composition):
    defense, victim = made(variant=variant, composition=composition)
    rng = streams(12)
    found = [answer(defense, victim, [1, 2, 3], rng) for _ in range(2)]
    assert torch.equal(*found) == (variant == "step-only")
    assert defense.traits.randomised == (variant != "step-only")


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_query_is_answered(variant, composition):
    defense, victim = made(variant=variant, composition=composition)
    assert answer(defense, victim, [7]).shape == (1, 4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_context_a_query_is_answered_alike_alone_and_among_others(variant):
    together = answer(*made(variant=variant), [5, 0, 9, 2])
    backwards = answer(*made(variant=variant), [2, 9, 0, 5]).flip(0)
    alone = torch.cat([answer(*made(variant=variant), [row]) for row in (5, 0, 9, 2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(together, backwards, rtol=0, atol=1e-12)
    assert not made(variant=variant)[0].traits.coupled


@pytest.mark.parametrize("variant", ["fresh", "official"])
def test_in_context_repeated_queries_are_answered_as_if_asked_in_turn(variant):
    rows = [4, 1, 4, 4, 1]
    together, pair, rng = answer(*made(variant=variant), rows), made(variant=variant), streams(12)
    in_turn = torch.cat([answer(*pair, [row], rng) for row in rows])
    torch.testing.assert_close(together, in_turn, rtol=0, atol=1e-12)
    assert len(together.unique(dim=0)) == 5


def test_the_momentum_of_one_owner_does_not_touch_anothers():
    (busy, victim), (calm, _) = made(variant="official"), made(variant="official")
    rng = streams(12)
    for rows in ([0], [2], [2], [11]):  # the buffer grows in between
        answer(busy, victim, rows, rng)
    torch.testing.assert_close(
        answer(busy, victim, [1, 5], rng), answer(calm, victim, [1, 5]), rtol=0, atol=1e-12
    )
    again = streams(12)
    answer(calm, victim, [2], again)
    answer(calm, victim, [2], again)
    torch.testing.assert_close(
        answer(busy, victim, [2], rng), answer(calm, victim, [2], again), rtol=0, atol=1e-12
    )


def momentum_by_hand(defense, victim, owner, calls):
    """Play the released optimiser with torch's own SGD for queries of one owner alone."""
    features = victim.features(IMAGES[owner : owner + 1]).detach()
    beside = tiny_dataset().take(Split.TRAIN, 4)
    block = torch.cat((features, victim.features(beside.images).detach()))
    labels = torch.cat((victim.head(features).argmax(1), beside.labels))
    rng, parameter = streams(12), torch.nn.Parameter(torch.empty_like(block))
    optimiser = torch.optim.SGD([parameter], lr=defense.alpha, momentum=0.9, weight_decay=5e-4)
    for _ in range(calls):
        noise = rng.normal(torch.tensor([owner]), tuple(block.shape)).double()
        parameter.data = 1 + 0.5 * noise[0]
        span = None
        for _ in range(defense.steps):
            head = victim.last_linear.weight, victim.last_linear.bias
            gradient, span = loss_gradient(block[None], labels[None], parameter[None], head, span)
            parameter.grad = gradient[0].detach()
            optimiser.step()
            parameter.data.clamp_(1 - defense.delta, 1 + defense.delta)
    return victim.head(features * parameter[:1]).detach()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("variant", "calls"), [("fresh", 1), ("official", 1), ("official", 3)])
def test_an_answer_is_that_of_the_released_optimiser(variant, calls, steps):
    defense, victim = made(variant=variant, steps=steps, delta=0.7)
    rng = streams(12)
    for _ in range(calls):
        found = answer(defense, victim, [6], rng)
    expected = momentum_by_hand(defense, victim, 6, calls)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_a_short_batch_is_padded_to_its_nominal_size(monkeypatch):
    sizes = []

    def spy(features, *rest):
        sizes.append(tuple(features.shape))
        return unify_gradient(features, *rest)

    monkeypatch.setattr("registry.defenses.unig.unify_gradient", spy)
    for rows in ([3], [3, 1, 2], list(range(8)), list(range(11))):
        answer(*made(composition="batch"), rows)
    assert sizes == [(1, 8, 6)] * 5
    defense, victim = made(composition="batch")
    found = [answer(defense, victim, rows)[0] for rows in ([3, 1], [3, 2])]
    assert not torch.allclose(*found) and defense.traits.coupled


@pytest.mark.parametrize("variant", ["fresh", "official"])
def test_batches_shrink_even_where_training_images_are_scarce(variant):
    defense, victim = made(composition="batch", variant=variant, batch=40)  # 20 to pad with
    rng = streams(12)
    for rows in ([0, 1, 2, 3], [0, 1], [0]):
        assert answer(defense, victim, rows, rng).shape == (len(rows), 4)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_backbone_is_left_as_it_was(composition):
    defense, victim = made(composition=composition, variant="official")
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    for _ in range(3):
        assert not answer(defense, victim, [0, 1, 1]).requires_grad
    assert all(p.grad is None and not p.requires_grad for p in victim.parameters())
    assert not victim.training
    assert all(torch.equal(before[name], now) for name, now in victim.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in victim.modules())
