"""HopSkipJump: every question of an iteration, radius of probes, normals, bounds, strength."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from labels import attacked, broken_by_noise, flat, hits, trail
from support import digits, streams, toy_oracle, true_label_logits
from torch import Tensor

from benchmark.catalogue import ATTACKS
from benchmark.drive import drive
from benchmark.geometry import distance
from benchmark.types import Access, Aim, Goal, Norm, Probes, Problem, Threat
from registry.attacks.hopskipjump import _HopSkipJump, hopskipjump

TERMS = {"access": Access.LABEL, "region": Probes.BOX, "goal": Goal.NEAREST}
NORMS = pytest.mark.parametrize("norm", list(Norm))


class Iteration(NamedTuple):
    """What one iteration asked, from the projection on."""

    far: Tensor
    point: Tensor
    halvings: int  # of the projection
    probes: Tensor
    hit: Tensor  # of the probes
    steps: Tensor


class Walk:
    """Reads the questions about one image, and checks that bisections are where they must be."""

    def __init__(self, problem, answer, asked, row):
        self.image, self.asked, self.norm = problem.images[row], asked, problem.threat.norm
        self.hit = hits(problem, answer, asked, row)
        self.place = 0

    def away(self, shown):
        return float(distance(shown[None], self.image[None], self.norm))

    def until_hit(self):
        begin = self.place
        self.place += int(self.hit[begin:].nonzero()[0]) + 1
        return self.asked[begin : self.place]

    def bisect(self, far, high, width, blending):
        low, best, begin = 0.0, far, self.place
        while high - low > width:
            middle = (low + high) / 2
            if blending:
                expected = self.image + middle * (far - self.image)
            else:
                expected = self.image + (far - self.image).clamp(-middle, middle)
            asked = self.asked[self.place]
            torch.testing.assert_close(asked, expected, rtol=0, atol=1e-9)
            low, high = (low, middle) if self.hit[self.place] else (middle, high)
            best = asked if self.hit[self.place] else best
            self.place += 1
        return best, self.place - begin

    def iterations(self, probes=100, most=10_000, share=None):
        """Every iteration that the budget did not cut short."""
        size = self.image.numel()
        share = share or 1 / size
        far, halvings = self.bisect(self.until_hit()[-1], 1.0, 1e-3, True)
        assert halvings == 10
        for turn in range(1, 1000):
            if len(self.asked) - self.place < 20:
                return
            away = self.away(far)
            if self.norm is Norm.L2:
                point, halvings = self.bisect(far, 1.0, max(share / size**0.5, 1e-6), True)
            else:
                width = max(share / size * min(away, 1.0), 1e-6)
                point, halvings = self.bisect(far, away, width, False)
            shown = slice(self.place, self.place + min(int(probes * math.sqrt(turn)), most))
            self.place = shown.stop
            if not bool(self.hit[self.place :].any()):
                return
            steps = self.until_hit()
            yield Iteration(far, point, halvings, self.asked[shown], self.hit[shown], steps)
            far = steps[-1]


def walks(problem, answer, record, **settings):
    """Each image with its iterations."""
    for row, image in enumerate(problem.images):
        yield image, list(Walk(problem, answer, trail(record, row), row).iterations(**settings))


def apart(images, image, norm=Norm.L2):
    return distance(images, image.expand_as(images), norm)


def way(found, norm):
    """Direction of the step that the probes of an iteration call for."""
    moved, answers = (found.probes - found.point).flatten(1), 2.0 * found.hit.to(found.probes) - 1
    if 0 < int(found.hit.sum()) < len(answers):
        answers -= answers.mean()
    normal = (answers @ moved).view_as(found.point)
    return normal.sign() if norm is Norm.LINF else normal / normal.norm()


@NORMS
@pytest.mark.parametrize(
    "given", [{}, {"share": 0.01}, {"floor": 0.01}, {"probes": 30, "most": 50}]
)
def test_an_iteration_asks_a_projection_and_probes_and_halves_steps(given, norm):
    problem, answer, _ = flat(norm, 1200, count=3)
    _, record = attacked(hopskipjump, problem, answer, **given)
    share, least = given.get("share", 1 / 192), given.get("floor", 1e-5) * 192**0.5
    settings = {name: value for name, value in given.items() if name != "floor"}
    for image, iterations in walks(problem, answer, record, **settings):
        assert len(iterations) >= 4
        for turn, found in enumerate(iterations, 1):
            radius = 0.1 if turn == 1 else share * float(apart(found.far[None], image, norm))
            off = apart(found.probes, found.point)
            torch.testing.assert_close(off, torch.full_like(off, max(radius, least)))
            stride = float(apart(found.point[None], image, norm)) / turn**0.5
            for halved, step in enumerate(found.steps):
                expected = found.point + stride / 2**halved * way(found, norm)
                torch.testing.assert_close(step, expected.clamp(0, 1), rtol=0, atol=1e-9)
            assert not torch.equal(found.probes[0], found.probes[1])


@pytest.mark.parametrize(
    ("shape", "norm", "halvings"),
    [((1, 28, 28), Norm.L2, 15), ((3, 32, 32), Norm.L2, 18), ((3, 32, 32), Norm.LINF, 20)],
)
def test_a_projection_takes_the_published_halvings_but_never_more_than_20(shape, norm, halvings):
    problem, answer, _ = flat(norm, 300, count=2, shape=shape)
    _, record = attacked(hopskipjump, problem, answer)
    for _, iterations in walks(problem, answer, record):
        taken = {found.halvings for found in iterations}
        assert taken == {halvings} if norm is Norm.L2 else 15 < max(taken) <= halvings


@pytest.mark.parametrize("probes", [50, 100])
def test_the_estimated_normal_is_as_good_as_theory_says(probes):
    problem, answer, _ = flat(Norm.L2, 250, count=30, shape=(3, 16, 16))
    _, record = attacked(hopskipjump, problem, answer, probes=probes)
    units = torch.eye(768, dtype=torch.float64).view(-1, 3, 16, 16)
    base = answer(units[:1] * 0, torch.tensor([0]))[0, 0]
    weight = answer(units, torch.zeros(768, dtype=torch.int64))[:, 0] - base
    cosines = []
    for row, (_, iterations) in enumerate(walks(problem, answer, record, probes=probes)):
        step = (iterations[0].steps[-1] - iterations[0].point).flatten()
        inward = weight * (1 if int(problem.labels[row]) else -1)
        cosines.append(float(step @ inward / step.norm() / weight.norm()))
    theory = math.sqrt(2 * probes / (math.pi * 768))
    assert sum(cosines) / 30 == pytest.approx(theory, rel=0.1)


@pytest.mark.parametrize(
    ("norm", "off", "floor", "kept", "cosine"),
    [
        (Norm.LINF, 0.05, 0.0, 0.98, 0.18),
        (Norm.L2, 5.0, 0.0, 0.18, 0.99),
        (Norm.LINF, 0.05, 1e-5, 0.0, 1.0),
        (Norm.L2, 5.0, 1e-5, 0.0, 1.0),
    ],
)
def test_probes_of_a_large_image_vanish_in_float32_but_for_the_floor(
    norm, off, floor, kept, cosine
):
    images = torch.rand((1, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    problem = Problem(images, torch.zeros(1, dtype=torch.int64), Threat(norm, 0.1, 9), 2)
    state, twin = (_HopSkipJump(problem, streams(1), (100, 10_000), None, floor) for _ in range(2))
    state._turn += 1  # the first estimate's radius is 0.1 in any case
    state._estimate(problem.rows, torch.tensor([off], dtype=torch.float64))
    moved = (state._votes.phase.ask(problem.rows).images - images).double().flatten()
    wanted = twin._directions(problem.rows).double().flatten()
    assert float((moved == 0).double().mean()) == pytest.approx(kept, abs=0.02)
    assert float(moved @ wanted / moved.norm()) == pytest.approx(cosine, abs=0.03)


def test_it_comes_within_a_tenth_of_the_least_distance():
    problem, answer, least = flat(Norm.L2, 5000, shape=(1, 10, 10))
    oracle, _ = attacked(hopskipjump, problem, answer)
    ratio = oracle.trace.nearest / least
    assert bool((ratio >= 1 - 1e-9).all())
    assert float(ratio.max()) < 1.1


@pytest.mark.parametrize("preset", ["official", "art"])
def test_presets_probe_at_their_share_of_the_distance(preset):
    problem, answer, _ = flat(Norm.L2, 700, count=2)
    values = ATTACKS.get("hopskipjump").settings(preset)
    given = {"share": values["share"], "floor": values["floor"]}
    _, record = attacked(hopskipjump, problem, answer, **given)
    for image, iterations in walks(problem, answer, record, share=given["share"]):
        second = iterations[1]
        radius = apart(second.far[None], image) * (0.01 if preset == "art" else 1 / 192)
        off = apart(second.probes, second.point)
        torch.testing.assert_close(off, radius.expand_as(off))
        assert second.halvings == (11 if preset == "art" else 12)
    assert values["floor"] == 0


def test_a_step_is_halved_20_times_at_most_and_then_estimated_anew():
    problem, _, _ = flat(Norm.L2, 600, count=2)
    starts, asked = problem.images + 0.1, [0, 0]
    threat = replace(problem.threat, aim=Aim.TARGETED)
    problem = replace(problem, targets=1 - problem.labels, starts=starts, threat=threat)

    def once(_images, rows):
        margins = []
        for row in rows.tolist():
            asked[row] += 1
            margins.append(-1.0 if asked[row] == 1 else 1.0)
        return true_label_logits(problem, rows, margins)

    _, record = attacked(hopskipjump, problem, once)
    for row, point in enumerate(starts):
        off = apart(trail(record, row), point)
        place, distance_kept = 1 + 10 + 12, float(apart(point[None], problem.images[row]))
        for turn, count in enumerate((100, 141, 173), 1):
            radius = 0.1 if turn == 1 else distance_kept / 192
            probes, steps = off[place:].split([count, 20, len(off) - place - count - 20])[:2]
            torch.testing.assert_close(probes, torch.full_like(probes, radius))
            strides = distance_kept / turn**0.5 / 2 ** torch.arange(20).double()
            torch.testing.assert_close(steps[1:], strides[1:])  # the first may leave the box
            place += count + 20
        assert len(off) == 600


def test_it_breaks_digits_that_noise_does_not():
    problem, answer = digits(budget=500)
    problem = replace(problem, threat=Threat(Norm.L2, 2.0, 500))
    oracle = toy_oracle(problem, answer, **TERMS)
    drive(hopskipjump(problem, streams(len(problem.images))), oracle)
    # 90 % of the images, and 15 % by noise; 60 images leave 4 points of standard error.
    assert float((oracle.broken_at > 0).float().mean()) > 0.75
    assert broken_by_noise(problem, answer) < 0.3
