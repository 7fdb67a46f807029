"""Moves of attacks that see labels: phases, bisections, the search for a start, votes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from labels import trail
from support import Recorder, constant, streams, toy_oracle, toy_problem, true_label_logits, turning

from benchmark.drive import drive
from benchmark.types import Access, Aim, Goal, Probes, Queries
from registry.moves.bracket import Bisection
from registry.moves.phases import DONE, Phase, group_size, phased
from registry.moves.starting import Search
from registry.moves.votes import Votes

FILL = (1, 2, 3)


def play(problem, phases, at, answer, **terms):
    record = Recorder(answer)
    terms = {"run_to_budget": True, "goal": Goal.NEAREST, **terms}
    oracle = toy_oracle(problem, record, access=Access.LABEL, region=Probes.BOX, **terms)
    drive(phased(problem, phases, at), oracle)
    return oracle, record


def beyond(problem, thresholds):
    """Adversarial where the first value is at least the row's threshold."""

    def answer(images, rows):
        miss = images[:, 0, 0, 0] < torch.tensor(thresholds, dtype=torch.float64)[rows]
        return true_label_logits(problem, rows, torch.where(miss, 1.0, -1.0))

    return answer


def ending(at):
    """What to call with rows that are through, and those calls."""
    over = []

    def then(rows):
        over.append(rows.tolist())
        at[rows] = DONE

    return then, over


def test_a_bisection_keeps_a_hit_above_and_a_miss_below_and_ends_when_narrow():
    problem, thresholds = toy_problem(5, FILL), [0.3, 0.59, 0.0, 0.1, 2.0]
    brackets = [(0.0, 1.0, 1e-3), (0.2, 0.6, 0.1), (0.0, 0.9, 1e-2), (0.5, 0.50005, 1e-4)]
    brackets.append((0.0, 0.8, 0.0))  # would never end, nor hit
    at = torch.zeros_like(problem.labels)
    then, over = ending(at)
    bisection = Bisection(problem, lambda _, place: place.view(-1, 1, 1, 1).expand(-1, *FILL), then)
    bisection.begin(problem.rows, *torch.tensor(brackets, dtype=torch.float64).T)
    _, record = play(problem, [bisection.phase], at, beyond(problem, thresholds))
    assert record.counts(5) == [10, 2, 7, 0, 20]
    assert over == [[3], [1], [2], [0], [4]]
    for row, (low, high, width) in enumerate(brackets):
        asked = trail(record, row)[:, 0, 0, 0] if row != 3 else torch.zeros(0)
        hit = asked >= thresholds[row]
        assert float(bisection.high[row]) == min([high, *asked[hit].tolist()])
        assert float(bisection.low[row]) == max([low, *asked[~hit].tolist()])
        assert float(bisection.high[row] - bisection.low[row]) <= max(width, 1e-6)


def sought(problem, answer, noise="uniform"):
    at, found = torch.zeros_like(problem.labels), {}

    def then(queries):
        at[queries.rows] = DONE
        found.update(zip(queries.rows.tolist(), queries.images.clone(), strict=True))

    search = Search(problem, streams(len(problem.images)), at, then, noise)
    return *play(problem, [search.phase], at, answer), found


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("noise", "early"), [("uniform", 10), ("growing", 30)])
def test_a_search_shows_noise_then_plain_colours_then_noise_and_gives_up(channels, noise, early):
    problem = toy_problem(1, (channels, 40, 30), budget=500)
    oracle, record, found = sought(problem, constant(problem), noise)
    corners = list(itertools.product((0.0, 1.0), repeat=channels)) if channels < 4 else [0.0, 1.0]
    late, asked = early + len(corners), trail(record, 0)
    assert oracle.used.tolist() == [100 + len(corners)] and not found
    plain = torch.tensor(corners, dtype=torch.float64).view(len(corners), -1, 1, 1)
    assert torch.equal(asked[early:late], plain.expand(-1, channels, 40, 30))
    drawn = torch.cat((asked[:early], asked[late:])).flatten(1)
    assert len(drawn.unique(dim=0)) == 100
    assert noise == "growing" or float((drawn.std(1) - 12**-0.5).abs().max()) < 0.02


def test_growing_noise_grows_by_the_same_with_each_draw():
    problem = toy_problem(1, (3, 60, 60), budget=200)
    problem = replace(problem, images=0.5 + 0 * problem.images)
    _, record, _ = sought(problem, constant(problem), "growing")
    drawn = torch.cat((trail(record, 0)[:30], trail(record, 0)[38:]))
    normal = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    for number in (1, 2, 7, 30, 31, 32):
        spread = float((0.5 + 0.02 * number * normal).clamp(0, 1).std())
        assert float(drawn[number - 1].std()) == pytest.approx(spread, rel=0.02)


def test_a_search_charges_every_look_and_images_end_on_their_own():
    problem = toy_problem(4, (3, 4, 3), budget=500)
    oracle, record, found = sought(problem, turning(problem, [1000, 1, 15, 60]))
    assert oracle.used.tolist() == [108, 1, 15, 60] == record.counts(4)
    assert set(found) == {1, 2, 3}
    assert all(torch.equal(image, trail(record, row)[-1]) for row, image in found.items())


def test_the_image_of_the_target_is_shown_three_times_at_most():
    problem = toy_problem(3, FILL, classes=2, aim=Aim.TARGETED)
    starts = torch.rand(problem.images.shape, generator=torch.Generator().manual_seed(1)).double()
    problem = replace(problem, targets=1 - problem.labels, starts=starts)
    oracle, record, found = sought(problem, turning(problem, [1, 3, 4]))
    assert oracle.used.tolist() == [1, 3, 3] and set(found) == {0, 1}
    assert torch.equal(torch.stack(record.images), starts[torch.tensor(record.rows)])


def test_votes_are_summed_in_groups_as_if_at_once():
    problem = toy_problem(4, FILL, budget=1000)  # some values on the box's faces
    generator, drawn = torch.Generator().manual_seed(2), [[] for _ in range(4)]
    at = torch.zeros_like(problem.labels)
    then, over = ending(at)

    def draw(owners):
        ways = torch.randn((len(owners), *FILL), generator=generator, dtype=torch.float64)
        for way, row in zip(ways.clone(), owners.tolist(), strict=True):
            drawn[row].append(way)
        return ways

    votes = Votes(problem, draw, problem.images, then)
    counts, radius = torch.tensor([1, 64, 65, 150]), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    votes._sums += 1.0  # what an earlier estimate left behind
    votes._counts += 1.0
    votes.begin(problem.rows, counts, radius)
    thresholds = [2.0, 0.0, 0.1, 0.1]  # none hits, all do, some do
    _, record = play(problem, [votes.phase], at, beyond(problem, thresholds))
    assert [group_size(pixels) for pixels in (6, 3072, 150_528)] == [64, 32, 1]
    assert over == [[0, 1], [2], [3]]
    assert record.counts(4) == counts.tolist()
    assert [len(logits) for logits in record.logits] == [1 + 64 + 64 + 64, 1 + 64, 22]
    for row, image in enumerate(problem.images):
        asked, rows = trail(record, row), torch.tensor([row])
        expected = (image + radius[row] * torch.stack(drawn[row])).clamp(0, 1)
        torch.testing.assert_close(asked, expected)
        moved = (asked - image).flatten(1)
        signs = torch.where(asked[:, 0, 0, 0] >= thresholds[row], 1.0, -1.0).double()
        assert float(votes.hits(rows)) == pytest.approx(float((signs > 0).double().mean()))
        torch.testing.assert_close(votes.mean(rows).flatten(), signs @ moved / len(asked))
        if row > 1:
            assert 0 < float(votes.hits(rows)) < 1
            signs = (signs - signs.mean()) / 2
        torch.testing.assert_close(votes.normal(rows).flatten(), signs @ moved)


def test_images_in_different_phases_are_asked_in_one_round_and_told_apart():
    problem = toy_problem(5, FILL)
    at, heard = torch.tensor([0, 1, DONE, 1, 0]), []

    def phase(number, times, following):
        def ask(rows):
            owners = rows.repeat_interleave(times)
            return Queries(torch.full((len(owners), *FILL), number / 4).double(), owners)

        def tell(queries, hit):
            heard.append((number, queries.rows.tolist(), hit.tolist()))
            assert bool((queries.images == number / 4).all())
            at[queries.rows] = following

        return Phase(ask, tell)

    answer = beyond(problem, [0.2, 0.2, 0.2, 0.3, 0.2])
    oracle, record = play(problem, [phase(0, 2, 1), phase(1, 1, DONE)], at, answer)
    assert heard[:2] == [(0, [0, 0, 4, 4], [False] * 4), (1, [1, 3], [True, False])]
    assert heard[2:] == [(1, [0, 4], [True, True])]
    assert [len(logits) for logits in record.logits] == [6, 2]
    assert oracle.used.tolist() == [3, 1, 0, 1, 3]


def test_finished_images_are_asked_no_more():
    problem = toy_problem(3, FILL, eps=1.0, budget=6)
    at, rounds = torch.zeros_like(problem.labels), []

    def ask(rows):
        rounds.append(rows.tolist())
        return Queries(torch.full((len(rows), *FILL), 0.5).double(), rows)

    answer = turning(problem, [2, 1000, 4])
    oracle, _ = play(problem, [Phase(ask, lambda *_: None)], at, answer, run_to_budget=False)
    assert rounds == [[0, 1, 2]] * 2 + [[1, 2]] * 2 + [[1]] * 2
    assert oracle.used.tolist() == [2, 6, 4]
