"""Blacklight: digests, what is flagged, what a flagged query is answered, memory."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import digits, refusal, streams, tiny_dataset, tiny_victim, toy_oracle

from benchmark.api import run
from benchmark.catalogue import ATTACKS
from benchmark.config import Config
from benchmark.contract.toy import small_data, small_victim
from benchmark.data import Split
from benchmark.defended import Defended
from benchmark.drive import play
from benchmark.errors import SpecError
from benchmark.loading import load_dataset, load_victim
from registry.defenses.blacklight import Blacklight, window_hashes
from registry.parts.history import NOTHING, History, common, room

IMAGES = small_data().take(Split.EVAL, 8).images
OWNER = torch.zeros(1, dtype=torch.int64)


def made(victim=None, data=None, **given_):
    victim, data = victim or small_victim(), data or small_data()
    defense = Blacklight(**given_)
    defense.prepare(victim, data)
    return defense, Defended(victim, defense, 64)


def ask(defended, images, rows=None):
    rows = OWNER.expand(len(images)) if rows is None else torch.tensor(rows)
    return defended.answer(images, rows, streams(64))


# --- digests ---


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(9, 40), st.integers(0, 999))
def test_windows_have_equal_hashes_just_where_they_are_equal(window, stride, length, seed):
    levels = torch.randint(3, (2, length), generator=torch.Generator().manual_seed(seed))
    found = window_hashes(levels, window, stride)
    windows = levels.unfold(1, window, stride)
    assert found.shape == windows.shape[:2]
    hashes, pieces = found.flatten().tolist(), windows.flatten(0, 1).tolist()
    by_content = {}
    for value, piece in zip(hashes, pieces, strict=True):
        by_content.setdefault(tuple(piece), set()).add(value)
    assert all(len(values) == 1 for values in by_content.values())
    assert len({value for values in by_content.values() for value in values}) == len(by_content)


def test_hashes_do_not_collide_and_their_order_tells_nothing():
    levels = torch.randint(6, (40, 20_000), generator=torch.Generator().manual_seed(0))
    hashes = window_hashes(levels, 20, 1).flatten()
    assert len(torch.unique(hashes)) == len(hashes)
    smallest = hashes.view(40, -1).argmin(1).double() / 20_000
    assert 0.35 < float(smallest.mean()) < 0.65
    for bit in range(64):
        assert 0.49 < float(((hashes >> bit) & 1).double().mean()) < 0.51
    # Pictures are regular, and so are the sequences that a polynomial confuses first.
    periodic = torch.stack([torch.arange(4000) // width % 2 * 5 for width in (1, 2, 3, 8, 50)])
    pieces = periodic.unfold(1, 50, 1).flatten(0, 1)
    hashes = window_hashes(periodic, 50, 1).flatten()
    assert len(torch.unique(hashes)) == len(torch.unique(pieces, dim=0))


def plain_digest(defense, image):
    """The digest as the paper describes it, with SHA-256: which windows are kept is another."""
    salted = (image + defense._image) % 1.0 * 255
    levels = (salted / defense.round).round().flatten().int().tolist()
    window, stride = defense.window, defense.stride
    pieces = [bytes(levels[i : i + window]) for i in range(0, len(levels) - window + 1, stride)]
    return sorted({hashlib.sha256(piece).digest()[::-1] for piece in pieces})[: defense.kept]


def test_similarity_agrees_with_digests_by_sha256():
    data = load_dataset("mnist", Config())
    victim = load_victim("mnist-cnn", "mnist", Config(), "cpu")
    defense, _ = made(victim, data, window=20, stride=1)
    images = data.take(Split.EVAL, 30).images
    digests, sizes = defense.digest(images)
    assert sizes.tolist() == [50] * 30
    ours = common(digests, digests.expand(30, -1, -1)).double()
    reference = [set(plain_digest(defense, image)) for image in images]
    theirs = torch.tensor([[len(a & b) for a in reference] for b in reference]).double()
    assert torch.equal(ours.diagonal(), theirs.diagonal())
    apart = ~torch.eye(30, dtype=torch.bool)
    assert float(ours[apart].mean()) == pytest.approx(float(theirs[apart].mean()), abs=1.5)


@pytest.mark.parametrize(("side", "window", "stride"), [(28, 20, 1), (64, 20, 1), (65, 50, 25)])
def test_windows_follow_the_size_of_the_images(side, window, stride):
    images = torch.rand((2, 1, side, side), generator=torch.Generator().manual_seed(0))
    data = tiny_dataset((1, side, side))
    usual, named = made(tiny_victim(), data)[0], made(tiny_victim(), data)[0]
    named.window, named.stride = window, stride
    assert torch.equal(usual.digest(images)[0], named.digest(images)[0])
    named.window = window + 1
    assert not torch.equal(usual.digest(images)[0], named.digest(images)[0])


def test_a_digest_holds_the_first_different_hashes_in_order():
    defense, _ = made(tiny_victim(), tiny_dataset((1, 6, 9)), window=3, stride=1, kept=40)
    defense._image = torch.zeros(1, 6, 9, dtype=torch.float64)
    flat = torch.zeros((1, 1, 6, 9), dtype=torch.float64)
    ramp = (torch.arange(54).view(1, 1, 6, 9).double() * 4.7 + 1) / 255  # over 6 levels
    levels = (ramp * 255 / 50).round().long().flatten(1)
    steps = len(torch.unique(levels.unfold(1, 3, 1)[0], dim=0))
    assert 10 < steps < 40
    for image, different in ((flat, 1), (ramp, steps)):
        digests, sizes = defense.digest(image)
        known = digests[0, :different]
        assert sizes.tolist() == [different]
        assert bool((known.diff() > 0).all()) and bool((known < NOTHING).all())
        assert bool((digests[0, different:] == NOTHING).all())
    every = window_hashes(levels, 3, 1)
    assert torch.equal(known, torch.unique(every))
    defense.kept = 5
    assert torch.equal(defense.digest(ramp)[0][0], torch.unique(every)[:5])


def test_rounding_hides_small_changes_and_not_large_ones():
    defense, _ = made(tiny_victim(), tiny_dataset((1, 6, 9)), window=3, kept=60)
    defense._image = torch.zeros(1, 6, 9, dtype=torch.float64)
    grey = torch.full((1, 1, 6, 9), 100 / 255, dtype=torch.float64)
    for change, same in ((24, True), (-24, True), (26, False), (-26, False)):
        assert torch.equal(defense.digest(grey)[0], defense.digest(grey + change / 255)[0]) == same
    black, white = torch.zeros_like(grey), torch.ones_like(grey)
    assert torch.equal(defense.digest(black)[0], defense.digest(white)[0])  # modulo 255


# --- what is flagged ---


def test_an_exact_repeat_is_always_flagged_and_answered_alike():
    defense, defended = made()
    first = ask(defended, IMAGES[:1])
    assert torch.equal(first, small_victim()(IMAGES[:1])) and defense.flagged[0] == 0
    for turn in range(1, 4):
        assert torch.equal(ask(defended, IMAGES[:1]), first)
        assert int(defense.flagged[0]) == turn and int(defense.asked[0]) == turn + 1


@pytest.mark.parametrize("salt", [0, 1, 2])
@pytest.mark.parametrize("given_", [{}, {"window": 5, "stride": 3, "kept": 7}, {"round": 10}])
def test_different_images_are_not_flagged_and_repeats_are_whatever_the_salt(given_, salt):
    defense, defended = made(salt=salt, **given_)
    bare = small_victim()(IMAGES)
    torch.testing.assert_close(ask(defended, IMAGES), bare)
    assert int(defense.flagged.sum()) == 0
    torch.testing.assert_close(ask(defended, IMAGES.flip(0)), bare.flip(0))
    assert int(defense.flagged[0]) == len(IMAGES)


def test_the_salt_changes_every_digest():
    first, again, other = (made(salt=salt)[0].digest(IMAGES)[0] for salt in (0, 0, 1))
    assert torch.equal(first, again)
    assert int(common(first, other[:, None]).sum()) == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_flagged_query_gets_the_answer_of_the_query_it_resembles_most(order):
    near, nearer = IMAGES[0].clone(), IMAGES[0].clone()
    near[0], nearer[0, :2] = 1 - near[0], 1 - nearer[0, :2]  # one channel of three, two rows of it
    earlier = torch.stack((near, nearer))
    defense, defended = made(threshold=2.0)
    answers = ask(defended, earlier[list(order)])
    defense.threshold = 0.1
    found = ask(defended, IMAGES[:1])
    assert torch.equal(found[0], answers[order.index(1)]) and defense.flagged.tolist() == [1]
    # It resembles itself most, and was answered for another.
    assert torch.equal(ask(defended, IMAGES[:1]), found)


def test_of_equally_near_queries_the_earliest_answers():
    history = History(3, torch.zeros(1, 2))
    digest = torch.tensor([[1, 2, 3]])
    for value in range(300):  # more than are compared at once
        history.add(OWNER, digest, torch.full((1, 2), float(value)))
    shared, answer = history.nearest(OWNER, torch.tensor([[2, 3, 9]]))
    assert shared.tolist() == [2] and answer.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("threshold", "flagged"), [(0.5, True), (0.5001, False), (0.51, False), (1.01, False)]
)
def test_the_threshold_is_reached_at_the_named_share(threshold, flagged):
    defense, _ = made(threshold=threshold, kept=10)
    first, second = torch.arange(10)[None], torch.arange(5, 15)[None]
    ten, logits = torch.tensor([10]), torch.rand(2, 1, 4, dtype=torch.float64)
    assert torch.equal(defense._one_each(OWNER, first, ten, logits[0]), logits[0])
    found = defense._one_each(OWNER, second, ten, logits[1])
    assert torch.equal(found, logits[0] if flagged else logits[1])
    assert defense.flagged.tolist() == [int(flagged)]


@pytest.mark.parametrize("hundredth", range(2, 101, 2))
def test_no_share_is_missed_by_rounding(hundredth):
    defense, _ = made(threshold=hundredth / 100)
    count, fifty = hundredth // 2, torch.tensor([50])
    first = torch.arange(50)[None]
    second = first + 50 - count
    logits = torch.rand(1, 4, dtype=torch.float64)
    defense._one_each(OWNER, first, fifty, logits)
    defense._one_each(OWNER, second, fifty, logits)
    assert defense.flagged.tolist() == [1]


def test_a_threshold_above_one_disables():
    defense, defended = made(threshold=1.001)
    for _ in range(2):
        assert torch.equal(ask(defended, IMAGES), small_victim()(IMAGES))
    assert int(defense.flagged.sum()) == 0 and defense.asked[0] == 16


def test_images_of_few_windows_are_compared_by_those_they_have():
    victim, data = tiny_victim(), tiny_dataset()
    defense, defended = made(victim, data, window=20)  # 35 windows, fewer than 50
    images = data.take(Split.EVAL, 4).images
    ask(defended, images)
    assert defense.flagged.tolist() == [0]
    ask(defended, images)
    assert defense.flagged.tolist() == [4]


def test_a_window_larger_than_an_image_is_refused():
    defense = Blacklight(window=193)
    message = refusal(SpecError, lambda: defense.prepare(small_victim(), small_data()))
    assert "window=193" in message and "192" in message


# --- owners, turns, memory ---


def test_owners_have_memories_of_their_own():
    defense, defended = made()
    ask(defended, IMAGES[:2], [0, 5])
    ask(defended, IMAGES[:2], [5, 0])
    assert defense.flagged.tolist()[:6] == [0] * 6
    ask(defended, IMAGES[:2], [5, 0])
    assert defense.flagged.tolist()[:6] == [1, 0, 0, 0, 0, 1]
    assert defense.asked.tolist()[:6] == [3, 0, 0, 0, 0, 3]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=24))
def test_answers_in_one_call_are_those_of_calls_in_turn(questions):
    noise = 0.002 * torch.rand((24, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    images = torch.stack([IMAGES[which] for _, which in questions]) * 0.99
    images = images + noise[: len(images)].double()
    rows = [owner for owner, _ in questions]
    (one, together), (other, in_turn) = made(), made()
    found = ask(together, images, rows)
    single = [ask(in_turn, images[i : i + 1], rows[i : i + 1]) for i in range(len(rows))]
    torch.testing.assert_close(found, torch.cat(single), rtol=0, atol=1e-12)
    owners = 1 + max(rows)
    assert one.flagged.tolist()[:owners] == other.flagged.tolist()[:owners]
    assert int(one.asked.sum()) == len(rows)
    # Near-copies of four different images: each after the first of its owner and image is flagged.
    assert int(one.flagged.sum()) == len(rows) - len(set(questions))


def test_reset_forgets_one_owner():
    defense, defended = made()
    for _ in range(2):
        ask(defended, IMAGES[:2], [0, 1])
    defense.reset(0)
    assert defense.asked.tolist()[:2] == [0, 2] and defense.flagged.tolist()[:2] == [0, 1]
    ask(defended, IMAGES[:2], [0, 1])
    assert defense.asked.tolist()[:2] == [1, 3] and defense.flagged.tolist()[:2] == [0, 2]
    ask(defended, IMAGES[:2], [0, 1])
    assert defense.flagged.tolist()[:2] == [1, 3]
    defense.reset(99)  # never asked


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6))
def test_shared_hashes_are_counted_as_sets_would(seed, kept):
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        digests = torch.full((count, kept), NOTHING)
        for row in digests:
            values = torch.unique(torch.randint(9, (kept,), generator=generator))
            row[: len(values)] = values
        return digests

    digests, others = draw(3), draw(12).view(3, 4, kept)
    found = common(digests, others)
    for one, row, counts in zip(digests, others, found, strict=True):
        mine = set(one.tolist()) - {NOTHING}
        assert counts.tolist() == [len(mine & set(other.tolist())) for other in row]


def test_a_long_history_is_searched_to_its_ends():
    history, generator = History(4, torch.zeros(1, 1)), torch.Generator().manual_seed(0)
    rows = torch.tensor([2, 0])
    digests = torch.randint(1 << 60, (600, 2, 4), generator=generator).sort(2).values
    for number, digest in enumerate(digests):
        history.add(rows, digest, torch.full((2, 1), float(number)))
    for number in (0, 1, 255, 256, 257, 511, 512, 599):
        shared, answer = history.nearest(rows, digests[number])
        assert shared.tolist() == [4, 4] and answer.tolist() == [[number], [number]]
        shared, _ = history.nearest(rows.flip(0), digests[number])
        assert shared.tolist() == [0, 0]
    shared, _ = history.nearest(torch.tensor([1, 7]), digests[0])
    assert shared.tolist() == [0, 0]


def test_a_query_takes_little_memory():
    history = History(50, torch.zeros(1, 10))
    digests = torch.arange(500 * 50).view(500, 1, 50)
    for digest in digests:
        history.add(OWNER, digest, torch.zeros(1, 10))
    buffers = [value for value in vars(history).values() if isinstance(value, torch.Tensor)]
    stored = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    assert stored <= 2 * 500 * (50 * 8 + 10 * 4 + 8) * 1.05


@pytest.mark.parametrize(("old", "size", "new"), [(0, 1, 1), (3, 2, 3), (3, 4, 6), (3, 9, 9)])
def test_a_buffer_grows_at_least_by_half(old, size, new):
    buffer = torch.arange(1, old + 1)
    grown = room(buffer, size)
    assert grown.tolist() == [*range(1, old + 1), *[0] * (new - old)]


# --- a real victim ---


@pytest.fixture(scope="module")
def real():
    data = load_dataset("mnist", Config())
    return load_victim("mnist-cnn", "mnist", Config(), "cpu"), data


def test_different_digits_of_one_client_are_seldom_flagged(real):
    victim, data = real
    defense, defended = made(victim, data)
    samples = data.take(Split.EVAL, 200)
    answers = ask(defended, samples.images)
    assert int(defense.flagged[0]) <= 4
    bare = victim(samples.images).argmax(1) == samples.labels
    right = answers.argmax(1) == samples.labels
    assert float(right.float().mean()) >= float(bare.float().mean()) - 0.02


@pytest.mark.parametrize("attack", ["square", "simba"])
def test_an_attack_is_flagged_nearly_always_and_breaks_fewer_images(real, attack):
    victim, data = real
    problem, bare = digits(100, 30)
    defense, defended = made(victim, data)
    hits = []
    for answer in (bare, lambda images, rows: defended.answer(images, rows, streams(64))):
        oracle = toy_oracle(problem, lambda images, rows, answer=answer: answer(images, rows))
        play(ATTACKS.choose(attack), problem, streams(64, purpose=1), oracle)
        hits.append(int((oracle.first_hit > 0).sum()))
    assert int(defense.asked.sum()) == int(oracle.used.sum()) > 1000
    assert int(defense.flagged.sum()) > 0.95 * int(defense.asked.sum())
    assert hits[0] > 3 and hits[1] < 0.7 * hits[0]


def test_the_tables_say_how_many_queries_were_flagged(tmp_path):
    cells = run(attacks="simba", defenses="blacklight", images=10, queries=20, out=tmp_path, jobs=1)
    last = cells.set_index("defense")
    assert last.loc["none", "flagged_queries"] == 0
    assert (
        0.8 < last.loc["blacklight", "flagged_queries"] / last.loc["blacklight", "queries_used"] < 1
    )
