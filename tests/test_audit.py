"""Uncounted looks: clean accuracy, the majority that verifies a hit, the expected label."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import Scripted, streams, tiny_dataset, tiny_victim, toy_problem

from benchmark.audit import Judge, clean_hits, submit
from benchmark.defended import Defended
from benchmark.defense import Defense
from benchmark.memory import BestImages
from registry.defenses.none import NoDefense
from registry.defenses.rnd import Rnd

SHAPE = (1, 6, 9)
PATTERNS = list(itertools.product([True, False], repeat=9))  # right, for each of nine answers


def scripted(right, batch=64):
    problem = toy_problem(len(right), SHAPE)
    defense = Scripted(problem.labels, right)
    return problem, defense, Defended(tiny_victim(SHAPE), defense, batch)


@pytest.mark.parametrize("together", [True, False])
def test_the_judge_decides_every_pattern_of_votes_like_a_full_majority_of_nine(together):
    problem, defense, defended = scripted(PATTERNS)
    judge = Judge(defended, problem, 9, streams(len(PATTERNS)))
    if together:
        verdicts = judge(problem.images, problem.rows).tolist()
    else:
        pairs = zip(problem.images.split(1), problem.rows.split(1), strict=True)
        verdicts = [bool(judge(image, row)) for image, row in pairs]
    assert verdicts == [sum(pattern) < 5 for pattern in PATTERNS]
    for pattern, asked in zip(PATTERNS, defense.asked, strict=True):
        settled = next(n for n in range(5, 10) if max(sum(pattern[:n]), n - sum(pattern[:n])) >= 5)
        assert asked == settled
    assert int(judge.asked.sum()) == sum(defense.asked) == defended.forwards


@pytest.mark.parametrize("votes", [1, 3, 5])
def test_other_numbers_of_votes_are_majorities_too(votes):
    patterns = list(itertools.product([True, False], repeat=votes))
    problem, defense, defended = scripted(patterns, batch=3)
    verdicts = Judge(defended, problem, votes, streams(len(patterns)))(problem.images, problem.rows)
    assert verdicts.tolist() == [2 * sum(pattern) < votes for pattern in patterns]
    assert max(defense.asked) <= votes and min(defense.asked) >= votes // 2 + 1


def test_rows_that_are_judged_are_the_rows_that_were_named():
    problem, defense, defended = scripted([[True], [False], [True], [False]])
    judge = Judge(defended, problem, 9, streams(4))
    rows = torch.tensor([3, 0])
    assert judge(problem.images[rows], rows).tolist() == [True, False]
    assert defense.asked == [5, 0, 0, 5]


def test_verification_leaves_the_counted_stream_where_it_was():
    problem = toy_problem(3, SHAPE)
    counted, untouched = streams(3), streams(3)
    defended = Defended(tiny_victim(SHAPE), Rnd(), 8)
    judge = Judge(defended, problem, 9, streams(3, purpose=1))
    answers = []
    for rng in (counted, untouched):
        answers.append(defended.answer(problem.images, problem.rows, rng))
        if rng is counted:
            judge(problem.images, problem.rows)
        answers[-1] = torch.cat((answers[-1], defended.answer(problem.images, problem.rows, rng)))
    assert int(judge.asked.sum()) >= 15
    assert torch.equal(*answers)
    assert not torch.equal(answers[0][:3], answers[0][3:])


def test_clean_hits_counts_the_right_answers_of_each_image():
    scripts = [[True, False, True], [False, False, False], [True, True, True]]
    problem, defense, defended = scripted(scripts, batch=2)
    assert clean_hits(defended, problem.images, problem.labels, 3, streams(3)).tolist() == [2, 0, 3]
    assert defense.asked == [3, 3, 3]


def test_clean_hits_of_a_plain_victim_are_its_right_labels():
    victim, samples = tiny_victim(SHAPE), tiny_dataset(SHAPE).take("eval", 12)
    with torch.no_grad():
        right = victim(samples.images).argmax(1) == samples.labels
    defended = Defended(victim, NoDefense(), 5)
    found = clean_hits(defended, samples.images, samples.labels, 1, streams(12))
    assert found.tolist() == right.int().tolist()
    assert 0 < int(right.sum()) < 12


class Noisy(Defense):
    """Mostly answers barely right, sometimes surely wrong: the mean is wrong, the vote is not."""

    def __init__(self, labels):
        self._labels, self.calls, self.shown = labels, 0, []

    def answer(self, victim, images, context):
        self.calls += 1
        self.shown.append(context.rows.tolist())
        logits = images.new_zeros((len(images), victim.num_classes))
        own = self._labels[context.rows]
        wrong = images[:, 0, 0, 2] > 0.5  # moved images only
        logits[torch.arange(len(images)), own] = 0.1
        if self.calls % 3 == 0:
            logits[wrong, (own[wrong] + 1) % victim.num_classes] = 50.0
        return logits


def moved(memory, problem, row, number):
    """Let the memory see twelve queries of a row, of which this one is the best."""
    for asked in range(1, 13):
        image = problem.images[row][None].clone()
        image[:, 0, 0, 2] += 0.1 * (asked == number)
        margin = torch.tensor([-1.0 if asked == number else 9.0], dtype=torch.float64)
        memory.see(image, torch.tensor([row]), torch.tensor([asked]), margin)


def test_the_expected_label_is_that_of_the_mean_probability_at_each_checkpoint():
    problem = toy_problem(4, SHAPE)
    marks = (2, 5, 10)
    memory = BestImages(problem, marks)
    moved(memory, problem, 0, 1)
    moved(memory, problem, 1, 3)
    moved(memory, problem, 2, 8)
    moved(memory, problem, 3, 11)
    defense = Noisy(problem.labels)
    defended = Defended(tiny_victim(SHAPE), defense, 64)
    broken, wrong, asked = submit(defended, memory, problem, marks, 6, streams(4))
    assert int(asked.sum()) == defended.forwards
    assert wrong.tolist() == [[2, 2, 2], [0, 2, 2], [0, 0, 2], [0, 0, 0]]  # every third answer
    assert broken.int().tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("count", [3, 0])
def test_checkpoints_at_which_no_image_changed_need_no_answers(count):
    problem = toy_problem(count, SHAPE)
    memory = BestImages(problem, (1, 2))
    defended = Defended(tiny_victim(SHAPE), Noisy(problem.labels), 64)
    broken, wrong, asked = submit(defended, memory, problem, (1, 2), 6, streams(count))
    assert asked.tolist() == [6] * count
    assert wrong.tolist() == [[0, 0]] * count
    assert broken.tolist() == [[False, False]] * count
    assert defended.forwards == 6 * count
