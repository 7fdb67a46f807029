"""What waits for a GPU does so once a round for all images, and not for each of them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark.catalogue import ATTACKS
from benchmark.contract.playing import norms, pose
from benchmark.contract.toy import toy
from benchmark.drive import play
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng

WAITS = {  # results whose value or shape a GPU has to tell the CPU
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::_unique2",
    "aten::is_nonzero",
}
BUDGET, FEW, MANY = 60, 4, 32


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in WAITS
        return function(*args, **(kwargs or {}))


class Rounds(Oracle):
    rounds = 0

    def ask(self, queries):
        self.rounds += 1
        return super().ask(queries)


def waits(choice, count, norm):
    """Waits in a round, the victim's own aside."""
    world = toy(count=count)
    problem = pose(choice, world, norm, BUDGET)
    facts = choice.entry.facts
    terms = Terms("x", facts.access, facts.region(problem.probes), goal=facts.goal)
    weights = world.weights

    def answer(images, _rows):
        return images.flatten(1) @ weights.T

    oracle = Rounds(problem, answer, None, terms)
    with Waits() as seen:
        play(choice, problem, RowRng(range(count)), oracle)
    return seen.count / oracle.rounds


@pytest.mark.parametrize(
    "name", [one.name for one in ATTACKS if one.builtin and not one.facts.argument]
)
def test_an_attack_does_not_wait_for_every_image(name):
    choice = ATTACKS.choose(name)
    for norm in norms(choice):
        few, many = (waits(choice, count, norm) for count in (FEW, MANY))
        assert few > 0
        assert many <= 2 * few + 4, f"{norm}: {few:.1f} waits a round, {many:.1f} with more images"


def test_a_loop_over_images_is_found():
    rows = torch.arange(MANY)
    with Waits() as seen:
        for row in rows:
            int(row)
    assert seen.count == MANY
