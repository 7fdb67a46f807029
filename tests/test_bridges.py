"""Foreign attacks turned inside out: counted, capped, islands, and nothing of ours touched."""

from __future__ import annotations

import random
import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import Recorder, constant, linear, refusal, streams, toy_oracle, toy_problem, turning

from benchmark.contract.toy import global_randomness_watched
from benchmark.drive import drive
from benchmark.eot import Repeated
from benchmark.errors import ForeignError
from benchmark.rng import RowRng, seed_from
from benchmark.types import Access, Probes
from registry.moves.borrowed import Visit, host

pytest.importorskip("greenlet", reason="needs one of the extras art, foolbox, torchattacks")


def forever(case, ask):
    while True:
        ask(case.image)


def visited(problem, run, answer=None, seeds=None, **terms):
    """Play a foreign attack; the oracle, and every query."""
    shows, surrenders = terms.pop("shows", "scores"), terms.pop("surrenders", ())
    record = Recorder(answer or constant(problem))
    terms = {"region": Probes.FREE, **terms}
    oracle = toy_oracle(problem, record, **terms)
    visit = Visit("lib:Attack", run, shows, surrenders)
    drive(host(problem, seeds or streams(len(problem.images)), visit), oracle)
    return oracle, record


def test_every_image_asked_is_counted_and_belongs_to_its_row():
    problem = toy_problem(4)
    asked = {}

    def run(case, ask):
        mine = int(case.label)  # row 0 asks nothing, the others more and more, in odd sizes
        for size in range(1, mine + 1):
            answers = ask(case.image.repeat(size, 1, 1, 1))
            assert answers.shape == (size, 4)
        asked[mine] = sum(range(1, mine + 1))

    oracle, record = visited(problem, run)
    assert oracle.used.tolist() == [asked[row] for row in range(4)] == [0, 1, 3, 6]
    shown = zip(record.images, record.rows, strict=True)
    assert all(torch.equal(image.float(), problem.images[row].float()) for image, row in shown)


@pytest.mark.parametrize("size", [1, 4])
def test_the_budget_ends_it_exactly_and_its_clean_up_runs(size):
    problem, ended = toy_problem(3, budget=10), []

    def run(case, ask):
        try:
            while True:
                with suppress(Exception):
                    ask(case.image.repeat(size, 1, 1, 1))
        finally:
            ended.append(int(case.label))

    oracle, record = visited(problem, run)
    assert oracle.used.tolist() == [10, 10, 10]
    assert len(record.rows) == 30
    assert sorted(ended) == [0, 1, 2]


def test_a_finished_image_is_asked_about_no_more():
    problem = toy_problem(3, budget=50)

    oracle, record = visited(problem, forever, turning(problem, at=[4, 60, 2]))
    assert record.counts(3) == oracle.used.tolist() == [4, 50, 2]


def test_the_shortest_budget_and_no_images_at_all():
    oracle, _ = visited(toy_problem(2, budget=1), forever)
    assert oracle.used.tolist() == [1, 1]
    problem = toy_problem(2)
    nothing = replace(problem, images=problem.images[:0], labels=problem.labels[:0])
    assert list(host(nothing, streams(0), Visit("lib:Attack", forever, "scores"))) == []


def test_an_attack_that_asks_while_it_is_ended_ends_all_the_same():
    def run(case, ask):
        try:
            forever(case, ask)
        finally:
            ask(case.image)

    oracle, _ = visited(toy_problem(2, budget=5), run)
    assert oracle.used.tolist() == [5, 5]


def test_an_attack_that_will_not_end_is_an_error_and_no_hang():
    def run(case, ask):
        while True:
            with suppress(BaseException):
                ask(case.image)

    message = refusal(ForeignError, lambda: visited(toy_problem(1, budget=3), run))
    assert message == "attack 'lib:Attack' will not end when it is told to"


def test_repeated_questions_are_paid_in_full():
    problem = toy_problem(2, budget=10)
    oracle = toy_oracle(problem, constant(problem), region=Probes.FREE)
    posed = replace(problem, repeats=3)
    seen = []

    def run(case, ask):
        seen.append(case.questions)
        forever(case, ask)

    drive(host(posed, streams(2), Visit("lib:Attack", run, "scores")), Repeated(oracle, 3))
    assert seen == [3, 3]
    assert oracle.used.tolist() == [9, 9]


def noisy(case, ask):
    """Draw from every global stream there is, before and after questions."""
    private, modern = np.random.RandomState(), np.random.default_rng()
    while True:
        single = random.random(), np.random.rand(), private.rand(), modern.random()  # noqa: NPY002
        ask(case.image + 0.01 * (torch.rand(case.image.shape) + float(sum(single))))


def trails(rows, seed=0):
    problem = toy_problem(5)
    posed = replace(problem, images=problem.images[rows], labels=problem.labels[rows])
    seeds = RowRng([seed_from("bridges", seed, row) for row in rows])
    _, record = visited(posed, noisy, seeds=seeds)
    found = {row: [] for row in rows}
    for image, place in zip(record.images, record.rows, strict=True):
        found[rows[place]].append(image)
    return {row: torch.stack(images) for row, images in found.items()}


def test_images_are_islands_and_seeds_decide():
    whole = trails([0, 1, 2, 3, 4])
    for rows in ([3], [4, 1], [2, 0, 3]):
        part = trails(rows)
        assert all(torch.equal(part[row], whole[row]) for row in rows)
    other = trails([3], seed=1)
    assert other[3].shape == whole[3].shape and not torch.equal(other[3], whole[3])
    assert not torch.equal(whole[0] - whole[0][:1], whole[1] - whole[1][:1])


def test_every_global_stream_is_one_of_the_image():
    drawn = []

    def run(case, ask):
        ask(case.image)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))  # noqa: NPY002

    visited(toy_problem(4), run)
    assert all(len({*values}) == 4 for values in zip(*drawn, strict=True))


def test_our_random_streams_are_untouched():
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002
    torch.manual_seed(5)
    with global_randomness_watched():
        visited(toy_problem(2, budget=5), noisy)
    assert np.random.RandomState is np.random.mtrand.RandomState
    assert np.random.default_rng is np.random._generator.default_rng


@pytest.mark.parametrize("ours", [True, False])
def test_each_keeps_its_own_gradient_mode(ours):
    problem, seen = toy_problem(3, budget=4), []
    modes = {0: torch.no_grad, 1: torch.enable_grad, 2: torch.no_grad}

    def run(case, ask):
        with modes[int(case.label)]():
            mine = torch.is_grad_enabled()
            while True:
                ask(case.image)
                seen.append(torch.is_grad_enabled() == mine)

    def answer(images, rows):
        seen.append(torch.is_grad_enabled() == ours)
        return constant(problem)(images, rows)

    with torch.set_grad_enabled(ours):
        visited(problem, run, answer)
        assert torch.is_grad_enabled() == ours
    assert len(seen) == 4 + 3 * 3 and all(seen)


def test_what_it_prints_and_warns_stays_with_it(capsys):
    def run(case, ask):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ask(case.image)
            with pytest.raises(UserWarning):  # its own filters are in force again
                warnings.warn("noise", stacklevel=1)
        warnings.warn("noise", stacklevel=1)
        print("noise")
        ask(case.image)

    before = list(warnings.filters)
    oracle, _ = visited(toy_problem(2), run)
    assert oracle.used.tolist() == [2, 2]
    assert warnings.filters == before
    assert capsys.readouterr() == ("", "")


def test_its_own_error_is_one_line_with_its_name():
    def run(case, ask):
        ask(case.image)
        raise KeyError("two\nlines")

    message = refusal(ForeignError, lambda: visited(toy_problem(2), run))
    assert message == "attack 'lib:Attack' failed: KeyError: 'two\\nlines'"


def surrendering(case, ask):
    ask(case.image)
    if int(case.label) == 1:
        raise AssertionError("no longer adversarial")
    forever(case, ask)


def test_an_image_that_it_gives_up_is_asked_about_no_more():
    problem = toy_problem(3, budget=6)
    oracle, _ = visited(problem, surrendering, surrenders=("AssertionError: no longer",))
    assert oracle.used.tolist() == [6, 1, 6]
    assert not bool((oracle.broken_at > 0).any())
    other = ("AssertionError: never",)
    refusal(ForeignError, lambda: visited(problem, surrendering, surrenders=other))


def test_giving_up_before_the_first_question_is_an_error():
    def run(case, ask):
        raise AssertionError("malformed")

    refusal(ForeignError, lambda: visited(toy_problem(1), run, surrenders=("AssertionError",)))


def test_label_access_shows_the_label_and_nothing_else():
    problem, seen = toy_problem(3, budget=2), []

    def run(case, ask):
        seen.append(ask(case.image))

    visited(problem, run, linear(problem), shows="label", access=Access.LABEL)
    wanted = torch.nn.functional.one_hot(problem.labels, 4).float()
    assert torch.equal(torch.cat(seen), wanted)


@pytest.mark.parametrize("shows", ["scores", "probabilities"])
def test_score_access_shows_what_the_library_expects(shows):
    problem, seen = toy_problem(3, budget=2), []

    def run(case, ask):
        seen.append(ask(case.image))

    visited(problem, run, linear(problem), shows=shows)
    logits = linear(problem)(problem.images.float().double(), problem.rows)
    wanted = logits.log_softmax(1) if shows == "scores" else logits.softmax(1)
    torch.testing.assert_close(torch.cat(seen), wanted.float())


def test_what_is_no_number_is_asked_as_the_clean_pixel():
    problem = toy_problem(1, budget=2)

    def run(case, ask):
        image = case.image + 0.125
        image[0, 0, 0], image[0, 1, 0] = torch.nan, torch.inf
        ask(image)

    _, record = visited(problem, run)
    wanted = problem.images[0].float() + 0.125
    wanted[0, 0], wanted[1, 0] = problem.images[0, 0, 0].float(), problem.images[0, 1, 0].float()
    assert torch.equal(record.images[0].float(), wanted)


def test_an_image_of_another_shape_is_its_error():
    def run(case, ask):
        ask(torch.zeros(1, 3, 8, 9))

    message = refusal(ForeignError, lambda: visited(toy_problem(1), run))
    assert message.endswith("ValueError: it asked about an image of shape (3, 8, 9)")


def test_hits_outside_ball_or_box_are_charged_and_never_count():
    problem = toy_problem(2, budget=6, eps=0.125)
    steps = (0.25, 2.0, 0.0625)

    def run(case, ask):
        for step in steps:
            ask(case.image + step * (case.image < 0.5))

    wrong = lambda _images, rows: -constant(problem)(_images, rows)  # noqa: E731
    oracle, _ = visited(problem, run, wrong)
    assert oracle.first_hit.tolist() == [3, 3]
