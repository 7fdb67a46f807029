"""The oracle: counting, capping, region, hits, verification, and what replies show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    SHAPES,
    Recorder,
    constant,
    linear,
    refusal,
    toy_oracle,
    toy_problem,
    true_label_logits,
    turning,
)

from benchmark.errors import AccessError, QueryError
from benchmark.geometry import project
from benchmark.scores import Scores
from benchmark.types import Access, Norm, Probes, Queries

STEP = 0.1  # of a level; the ball of toy problems holds levels -2 to 2


def ask(oracle, rows, levels=None, outside=()):
    """Ask clean images with pixel (0, 0, 2) moved by a level; `outside` leave the box too."""
    images = oracle.problem.images[torch.tensor(rows, dtype=torch.int64)].clone()
    for place, level in enumerate(levels or []):
        images[place, 0, 0, 2] += STEP * level
    for place in outside:
        images[place, 0, 0, 0] = -0.01
    return oracle.ask(Queries(images, torch.tensor(rows, dtype=torch.int64)))


def by_level(problem):
    """Answer with a margin of level + 0.5: negative levels are hits."""

    def answer(images, rows):
        return true_label_logits(problem, rows, ((images[:, 0, 0, 2] - 0.5) / STEP).round() + 0.5)

    return answer


class Stubborn:
    """Refuses the first hits it is shown of each row."""

    def __init__(self, refusals):
        self.left, self.judged = list(refusals), []

    def __call__(self, images, rows):
        levels = ((images[:, 0, 0, 2] - 0.5) / STEP).round().int().tolist()
        self.judged += list(zip(rows.tolist(), levels, strict=True))
        verdicts = []
        for row in rows.tolist():
            verdicts.append(self.left[row] <= 0)
            self.left[row] -= 1
        return torch.tensor(verdicts)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 100])
def test_no_image_costs_more_than_the_budget_even_within_one_round(budget, shape):
    problem = toy_problem(shape=shape, budget=budget)
    seen = Recorder(constant(problem))
    oracle = toy_oracle(problem, seen)
    for _ in range(3):
        ask(oracle, [0] * (budget // 2 + 1) + [2])
    replies = ask(oracle, [1] * (budget + 2))
    assert (
        seen.counts(3)
        == oracle.used.tolist()
        == [min(budget, 3 * (budget // 2 + 1)), budget, min(budget, 3)]
    )
    assert replies.answered.tolist() == [True] * budget + [False] * 2
    assert replies.labels.tolist() == [1] * budget + [-1] * 2
    assert replies.scores.isnan().all(1).tolist() == [False] * budget + [True] * 2
    assert set(replies.remaining.tolist()) == {0} and set(replies.used.tolist()) == {budget}
    assert replies.finished.all() and bool(oracle.finished[1])


def test_an_attack_may_overwrite_its_tensors_after_the_reply():
    problem = toy_problem()
    oracle = toy_oracle(problem, by_level(problem), judge := Stubborn([9, 9, 9]))
    images, rows = problem.images[:2].clone(), torch.tensor([0, 1])
    oracle.ask(Queries(images, rows))
    rows.copy_(torch.tensor([2, 2]))
    images.copy_(problem.images[[2, 2]])
    assert oracle.ask(Queries(images, rows)).labels.tolist() == [2, 2]
    assert oracle.used.tolist() == [1, 1, 2] and not oracle.first_hit.any() and not judge.judged
    images.fill_(9.0)
    assert torch.equal(oracle.memory.images[2], problem.images[2])


def test_a_round_without_an_answered_query_reaches_no_victim():
    problem = toy_problem(budget=1)
    seen = Recorder(constant(problem))
    oracle = toy_oracle(problem, seen)
    ask(oracle, [0])
    replies = ask(oracle, [0, 0])
    assert ask(oracle, []).labels.shape == (0,)
    assert len(seen.rows) == 1 and not replies.answered.any()
    assert replies.scores.shape == (2, 4) and replies.scores.isnan().all()


def test_the_victim_sees_each_row_in_the_order_asked():
    problem = toy_problem(budget=3)
    seen = Recorder(constant(problem))
    ask(toy_oracle(problem, seen), [1, 0, 1, 1, 0, 1], [0, 1, 1, 2, 2, -1])
    assert seen.rows == [1, 0, 1, 1, 0]
    levels = [round((float(image[0, 0, 2]) - 0.5) / STEP) for image in seen.images]
    assert levels == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_hit_at_query_n_ends_its_row_with_n_queries_and_no_other(at):
    problem = toy_problem(budget=8)
    oracle = toy_oracle(problem, seen := Recorder(turning(problem, [99, at, 99])))
    for _ in range(20):
        ask(oracle, [2, 1, 0])
    assert oracle.first_hit.tolist() == oracle.broken_at.tolist() == [0, at, 0]
    assert oracle.used.tolist() == seen.counts(3) == [8, at, 8]
    assert oracle.reach.isnan().tolist() == [True, False, True]


def test_queries_after_a_hit_in_the_same_round_still_count():
    problem = toy_problem()
    oracle = toy_oracle(problem, turning(problem, [2, 99, 99]))
    replies = ask(oracle, [0] * 5)
    assert replies.answered.all() and replies.finished.all()
    assert (int(oracle.used[0]), int(oracle.broken_at[0])) == (5, 2)


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("region", [Probes.BOX, Probes.FREE])
def test_wrong_answers_outside_ball_or_box_are_no_hits(region, norm):
    problem = toy_problem(norm=norm)
    oracle = toy_oracle(problem, by_level(problem), region=region)
    outside = [1] if region is Probes.FREE else []
    ask(oracle, [0, 1, 2], [-3, -2 if outside else 1, -3], outside)
    assert oracle.first_hit.tolist() == oracle.broken_at.tolist() == [0, 0, 0]
    assert oracle.used.tolist() == [1, 1, 1]
    ask(oracle, [0, 1, 2], [-2, -3, 2])
    assert oracle.broken_at.tolist() == [2, 0, 0]
    assert oracle.reach[0].item() == pytest.approx(0.2)


def test_refused_hits_leave_the_attack_going_until_one_is_verified():
    problem = toy_problem()
    oracle = toy_oracle(problem, by_level(problem), judge := Stubborn([2, 0, 9]))
    for _ in range(4):
        ask(oracle, [0, 0, 1, 2], [1, -1, -2, -1])
    assert oracle.first_hit.tolist() == [2, 1, 1]  # S1
    assert oracle.broken_at.tolist() == [6, 1, 0]  # S2
    assert oracle.used.tolist() == [6, 1, 4]
    assert judge.judged.count((0, -1)) == 3 and judge.judged.count((2, -1)) == 4


def test_of_several_hits_in_a_round_the_deepest_is_judged():
    problem = toy_problem()
    oracle = toy_oracle(problem, by_level(problem), judge := Stubborn([0, 0, 0]))
    ask(oracle, [0, 1, 0, 0, 1, 0], [-1, -1, 2, -2, 1, -2])
    assert sorted(judge.judged) == [(0, -2), (1, -1)]
    assert oracle.first_hit.tolist() == [1, 1, 0]
    assert oracle.broken_at.tolist() == [3, 1, 0]


def test_hits_outside_the_ball_are_not_judged_however_deep():
    problem = toy_problem()
    terms = {"region": Probes.BOX}
    oracle = toy_oracle(problem, by_level(problem), judge := Stubborn([0, 0, 0]), **terms)
    ask(oracle, [0, 0], [-4, -1])
    assert judge.judged == [(0, -1)] and oracle.broken_at.tolist() == [2, 0, 0]


def test_label_access_shows_labels_and_no_scores():
    problem = toy_problem()
    replies = ask(toy_oracle(problem, by_level(problem), access=Access.LABEL), [1, 2], [1, 0])
    assert replies.labels.tolist() == [1, 2]
    assert "label" in refusal(AccessError, lambda: replies.scores)


@pytest.mark.parametrize("scores", ["logits", "log-probabilities"])
@pytest.mark.parametrize("rows", [[0, 1], [0, 0, 1]])
def test_scores_are_what_the_protocol_says_and_never_the_victims_tensor(scores, rows):
    problem = toy_problem(budget=1)
    oracle = toy_oracle(problem, seen := Recorder(linear(problem)), scores=Scores.parse(scores))
    replies = ask(oracle, rows)
    own = seen.logits[0]
    logged = own - own.exp().sum(1, keepdim=True).log()
    shown = replies.scores[replies.answered]
    torch.testing.assert_close(shown, own if scores == "logits" else logged)
    before = own.clone()
    replies.scores.fill_(7.0)
    assert torch.equal(own, before)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((2, 3, 7, 8), [0, 1]),
        ((2, 1, 8, 7), [0, 1]),
        ((3, 8, 7), [0]),
        ((2, 3, 8, 7), [0]),
        ((2, 3, 8, 7), [[0, 1]]),
        ((2, 3, 8, 7), [0, 3]),
        ((2, 3, 8, 7), [-1, 0]),
        ((2, 3, 8, 7), [0.0, 1.0]),
        ((2, 3, 8, 7), [True, False]),
    ],
)
def test_malformed_queries_are_refused_and_cost_nothing(shape, rows):
    problem = toy_problem()
    oracle = toy_oracle(problem, seen := Recorder(constant(problem)), region=Probes.FREE)
    queries = Queries(torch.full(shape, 0.5, dtype=torch.float64), torch.tensor(rows))
    assert "'toy'" in refusal(QueryError, lambda: oracle.ask(queries))
    assert not oracle.used.any() and not seen.rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("region", [Probes.BALL, Probes.BOX])
def test_images_of_another_type_than_the_problems_are_refused(dtype, region):
    problem = toy_problem(eps=0.9)
    oracle = toy_oracle(problem, constant(problem), region=region)
    queries = Queries(problem.images.round().to(dtype), problem.rows)
    assert "'toy'" in refusal(QueryError, lambda: oracle.ask(queries))


OUTSIDE = [
    (Norm.LINF, Probes.BALL, 0.3),
    (Norm.L2, Probes.BALL, 0.3),
    (Norm.LINF, Probes.BALL, 0.2501),
    (Norm.L2, Probes.BALL, 0.2501),
    (Norm.LINF, Probes.BALL, torch.nan),
    (Norm.L2, Probes.BALL, torch.nan),
    (Norm.LINF, Probes.BOX, 0.51),
    (Norm.L2, Probes.BOX, -0.51),
    (Norm.LINF, Probes.BOX, torch.nan),
    (Norm.LINF, Probes.FREE, torch.inf),
    (Norm.L2, Probes.FREE, torch.nan),
]


@pytest.mark.parametrize(("norm", "region", "shift"), OUTSIDE)
def test_a_query_outside_its_region_is_refused_by_attack_and_row(norm, region, shift):
    problem = toy_problem(norm=norm)
    oracle = toy_oracle(problem, seen := Recorder(constant(problem)), region=region)
    images = problem.images.clone()
    images[1, 0, 0, 2] += shift
    message = refusal(QueryError, lambda: oracle.ask(Queries(images, problem.rows)))
    assert "'toy'" in message and "row 1" in message and not seen.rows


def test_the_row_named_is_the_one_that_broke_the_rule_of_its_region():
    problem = toy_problem()
    oracle = toy_oracle(problem, constant(problem), region=Probes.FREE)
    images = problem.images.clone()
    images[0, 0, 0, 2], images[2, 0, 0, 2] = -3.0, torch.nan  # the first is allowed
    message = refusal(QueryError, lambda: oracle.ask(Queries(images, problem.rows)))
    assert "row 2" in message


@pytest.mark.parametrize("pixel", [0.010579453434976283, 0.5, 0.0])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_first_number_beyond_the_tolerance_is_refused_like_any_other(pixel, side):
    problem = toy_problem(eps=0.05)
    problem.images[1, 0, 2, 2] = pixel if side > 0 else 1.0 - pixel
    oracle = toy_oracle(problem, constant(problem))
    images = problem.images.clone()
    edge = images[1, 0, 2, 2] + side * (0.05 + 1e-6)
    images[1, 0, 2, 2] = torch.nextafter(edge, edge + side)
    message = refusal(QueryError, lambda: oracle.ask(Queries(images, problem.rows)))
    assert "row 1" in message


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from(list(Norm)), st.floats(1e-3, 6), st.integers(0, 99))
def test_projected_images_are_always_answered(shape, norm, eps, seed):
    problem = toy_problem(shape=shape, norm=norm, eps=eps)
    noise = torch.randn(problem.images.shape, generator=torch.Generator().manual_seed(seed))
    images = project(problem.images + noise, problem.images, eps, norm)
    oracle = toy_oracle(problem, constant(problem))
    assert oracle.ask(Queries(images, problem.rows)).answered.all()


def reference(rounds, rows, budget, refusals):
    """Play the rounds with plain numbers; `refusals` None is a deterministic victim."""
    used, first, broken, finished = ([0] * rows for _ in range(4))
    left, log = list(refusals or []), []
    for asks in rounds:
        closed, hits, answered = list(finished), {}, []
        for row, level, boxed in asks:
            answered.append(not closed[row] and used[row] < budget)
            if not answered[-1]:
                continue
            used[row] += 1
            if level < 0 and abs(level) <= 2 and boxed:
                hits.setdefault(row, []).append((level, used[row]))
        for row, found in hits.items():
            first[row] = first[row] or found[0][1]
            if refusals is None:
                broken[row] = found[0][1]
            else:
                broken[row] = 0 if left[row] > 0 else min(found)[1]
                left[row] -= 1
        finished = [bool(broken[r]) or used[r] >= budget for r in range(rows)]
        remaining = [0 if finished[r] else budget - used[r] for r, _, _ in asks]
        log.append((answered, [finished[r] for r, _, _ in asks], remaining))
    return used, first, broken, log


QUERY = st.tuples(st.integers(0, 2), st.integers(-3, 3), st.booleans())
ROUNDS = st.lists(st.lists(QUERY, max_size=9), max_size=6)


@settings(max_examples=200, deadline=None)
@given(
    ROUNDS,
    st.sampled_from([1, 2, 3, 7, 100]),
    st.none() | st.lists(st.integers(0, 3), min_size=3, max_size=3),
    st.sampled_from(list(Probes)),
)
def test_any_rounds_leave_what_a_plain_count_leaves(rounds, budget, refusals, region):
    allowed = [
        [
            (r, max(-2, min(2, v)) if region is Probes.BALL else v, b or region is not Probes.FREE)
            for r, v, b in asks
        ]
        for asks in rounds
    ]
    problem = toy_problem(budget=budget)
    judge = None if refusals is None else Stubborn(refusals)
    oracle = toy_oracle(problem, seen := Recorder(by_level(problem)), judge, region=region)
    log = []
    for asks in allowed:
        outside = [place for place, (_, _, boxed) in enumerate(asks) if not boxed]
        replies = ask(oracle, [a[0] for a in asks], [a[1] for a in asks], outside)
        log.append(
            (replies.answered.tolist(), replies.finished.tolist(), replies.remaining.tolist())
        )
        assert (replies.labels >= 0).tolist() == replies.answered.tolist()
    used, first, broken, expected = reference(allowed, 3, budget, refusals)
    assert log == expected
    assert oracle.used.tolist() == used == seen.counts(3)
    assert oracle.first_hit.tolist() == first
    assert oracle.broken_at.tolist() == broken


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_an_attack_that_edits_the_images_it_was_given_does_not_move_its_ball(norm):
    problem = toy_problem(norm=norm, eps=0.05)
    oracle = toy_oracle(problem, constant(problem))
    problem.images.mul_(0.5)
    problem.labels.zero_()
    message = refusal(QueryError, lambda: oracle.ask(Queries(problem.images, problem.rows)))
    assert "left its threat model for row 0" in message


def test_a_hit_after_a_checkpoint_cannot_hide_one_before_it():
    problem = toy_problem(1, budget=10)
    margins = [-1.0, 1.0, -2.0, -5.0]  # the deepest hit is the fourth query

    def answer(images, rows):
        return true_label_logits(problem, rows, margins)

    judged = []

    def judge(images, rows):
        judged.append(len(rows))
        return torch.ones(len(rows), dtype=torch.bool)

    oracle = toy_oracle(problem, answer, judge, checkpoints=(2, 10))
    oracle.ask(Queries(problem.images.repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)))
    assert oracle.broken_at.tolist() == [1] == oracle.first_hit.tolist()
    assert judged == [1]


def test_of_the_hits_between_two_checkpoints_the_deepest_is_judged():
    problem = toy_problem(1, budget=10)
    margins = [-1.0, 1.0, -2.0, -5.0]

    def answer(images, rows):
        return true_label_logits(problem, rows, margins)

    verdicts = iter([False, True])  # the hit before the checkpoint is refused
    oracle = toy_oracle(
        problem,
        answer,
        lambda images, rows: torch.tensor([next(verdicts)] * len(rows)),
        checkpoints=(2, 10),
    )
    oracle.ask(Queries(problem.images.repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)))
    assert oracle.broken_at.tolist() == [4] and oracle.first_hit.tolist() == [1]
