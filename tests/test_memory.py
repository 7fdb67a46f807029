"""The best image so far and at every checkpoint, against a search through the whole history."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import toy_problem

from benchmark.memory import BestImages
from benchmark.types import Norm

STEP = 0.1  # levels -2 to 2 lie in the ball
QUERY = st.tuples(st.integers(0, 2), st.integers(-4, 4), st.booleans(), st.integers(-3, 3))
ROUNDS = st.lists(st.lists(QUERY, min_size=1, max_size=10), max_size=6)
MARKS = st.lists(st.integers(1, 12), unique=True, max_size=4).map(sorted)


def shown(problem, row, level, boxed):
    image = problem.images[row].clone()
    image[0, 0, 2] += STEP * level
    if not boxed:
        image[0, 0, 0] = -0.01
    return image


class Played:
    """Shows rounds to a memory and keeps all that happened."""

    def __init__(self, problem, marks):
        self.problem, self.memory = problem, BestImages(problem, marks)
        self.history = {row: [] for row in range(len(problem.images))}
        self.settled = {}

    def show(self, asks):
        asks = [a for a in asks if a[0] not in self.settled]
        images, numbers = [], []
        for row, level, boxed, margin in asks:
            images.append(shown(self.problem, row, level, boxed))
            inside = boxed and abs(level) <= 2
            self.history[row].append((margin if inside else None, images[-1]))
            numbers.append(len(self.history[row]))
        if asks:
            rows = torch.tensor([a[0] for a in asks])
            margins = torch.tensor([float(a[3]) for a in asks], dtype=torch.float64)
            self.memory.see(torch.stack(images), rows, torch.tensor(numbers), margins)

    def settle(self, row, number):
        image = self.history[row][number - 1][1]
        self.memory.settle(image[None], torch.tensor([row]), torch.tensor([number]))
        self.settled[row] = (number, image)

    def best(self, row, mark):
        """The image with the lowest margin among the first `mark`, the earliest of equals."""
        if row in self.settled and self.settled[row][0] <= mark:
            return self.settled[row][1]
        best, lowest = self.problem.images[row], float("inf")
        for margin, image in self.history[row][:mark]:
            if margin is not None and margin < lowest:
                best, lowest = image, margin
        return best

    def check(self, marks):
        for mark in marks:
            found = self.memory.at(mark)
            for row in self.history:
                assert torch.equal(found[row], self.best(row, mark)), (row, mark)


@settings(max_examples=250, deadline=None)
@given(ROUNDS, MARKS, st.sampled_from(list(Norm)), st.data())
def test_the_best_image_at_every_checkpoint_is_what_a_full_search_finds(rounds, marks, norm, data):
    played = Played(toy_problem(norm=norm), marks)
    for asks in rounds:
        before = {row: len(seen) for row, seen in played.history.items()}
        played.show(asks)
        for row, seen in played.history.items():
            fresh = range(before[row] + 1, len(seen) + 1)
            if fresh and data.draw(st.integers(0, 5)) == 0:
                played.settle(row, data.draw(st.sampled_from(fresh)))
        played.check(marks)


def test_a_round_may_cross_several_checkpoints_for_some_rows_and_none_for_others():
    played = Played(toy_problem(), [1, 3, 4])
    played.show([(0, n - 2, True, 5 - n) for n in range(5)] + [(1, 1, True, 2), (2, 2, True, 3)])
    played.show([(1, 2, True, 1), (2, 1, True, 4), (1, 0, True, 0), (1, -1, True, -1)])
    played.check([1, 3, 4])
    assert [float(played.memory.at(m)[0, 0, 0, 2]) for m in (1, 3, 4)] == pytest.approx(
        [0.3, 0.5, 0.6]
    )


def test_without_queries_the_clean_image_is_the_best():
    problem = toy_problem()
    assert torch.equal(BestImages(problem, [3]).at(3), problem.images)


def test_what_an_attack_does_to_its_images_afterwards_is_not_remembered():
    problem = toy_problem()
    memory = BestImages(problem, [1, 2])
    images, rows = problem.images + 0.0, problem.rows
    images[:, 0, 0, 2] = 0.6
    memory.see(images, rows, torch.ones_like(rows), -torch.ones(3, dtype=torch.float64))
    memory.settle(images[:1], rows[:1], torch.ones_like(rows[:1]))
    images.fill_(9.0)
    assert memory.at(1).amax() <= 1.0 and memory.at(2).amax() <= 1.0
    assert problem.images[0, 0, 0, 2] == 0.5
