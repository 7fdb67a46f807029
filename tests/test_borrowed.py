"""Attacks of ART, Foolbox and torchattacks: what they ask by themselves is what is counted."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import random
from dataclasses import replace

import command
import numpy as np
import pandas as pd
import pytest
import torch
from command import refused, tables
from support import Recorder, constant, refusal, toy_problem
from torch import nn

from benchmark import api
from benchmark.backends import Workers
from benchmark.catalogue import ATTACKS
from benchmark.drive import play
from benchmark.errors import DataError, RegistryError, SpecError
from benchmark.geometry import allowed, distance
from benchmark.oracle import Oracle, Terms
from benchmark.rng import RowRng, seed_from
from benchmark.spec import Part
from benchmark.tasks.attack import _same_packages
from benchmark.types import Access, Aim, Goal, Norm
from registry.moves.apart import their_turn

bench = command.bench
PACKAGES = {"art": "art", "foolbox": "foolbox", "torchattacks": "torchattacks"}
MEMBERS = [f"{entry.name}:{name}" for entry in ATTACKS for name in entry.facts.members]
CASES = [
    pytest.param(name, norm, id=f"{name} {norm}")
    for name in MEMBERS
    for norm in ATTACKS.facts(name).norms
]
SHAPE = (3, 16, 16)
QUICK = {"art:ZooAttack": "art:ZooAttack[nb_parallel=4]"}


def installed(name):
    """Skip where the library of an attack is missing."""
    for module in (name.partition(":")[0], "greenlet"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install 'querybench[bridges]'")
    if name == "torchattacks:SPSA" and not hasattr(importlib.import_module("torchattacks"), "SPSA"):
        pytest.skip("this version of torchattacks has no SPSA")


def posed(norm, budget=40, count=3, **given):
    problem = toy_problem(count, SHAPE, norm=norm, budget=budget, **given)
    return replace(problem, images=problem.images.float())


def played(text, problem, answer=None, ids=None, eps=None):
    """Run an attack; the oracle, and every query."""
    installed(text)
    choice = ATTACKS.choose(text)
    facts, record = choice.entry.facts, Recorder(answer or constant(problem))
    region = facts.region(problem.probes)
    terms = Terms(text, facts.access, region, goal=facts.goal, run_to_budget=True)
    oracle = Oracle(problem, record, None, terms)
    ids = range(len(problem.images)) if ids is None else ids
    play(choice, problem, RowRng([seed_from("borrowed", one) for one in ids]), oracle)
    return oracle, record


def trail(record, row):
    images = [image for image, one in zip(record.images, record.rows, strict=True) if one == row]
    return torch.stack(images)


class Network(nn.Module):
    """A victim that answers row by row; counts what it is asked."""

    def __init__(self, problem):
        super().__init__()
        source = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(4, problem.images[0].numel(), generator=source))
        clean = torch.stack([self.weight @ image.flatten() for image in problem.images])
        self.bias = (3.0 * nn.functional.one_hot(problem.labels, 4) - clean).detach()
        self.asked = []

    def forward(self, images, row=0):
        self.asked += list(images.detach().clone())
        logits = [self.weight @ image.flatten().float() + self.bias[row] for image in images]
        return torch.stack(logits).log_softmax(1)


def by_itself(problem, row, attack):
    """What a library asks about one image without us: every image, with our seed of that row."""
    rng = RowRng([seed_from("borrowed", one) for one in range(len(problem.images))])
    seed = int(rng.integers(problem.rows, 2**31)[row])
    network = Network(problem).eval()

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return network(images, row)

    with their_turn():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        attack(Alone().eval(), problem.images[row : row + 1], problem.labels[row : row + 1], seed)
    return torch.stack(network.asked)


def art_classifier(model):
    blackbox = importlib.import_module("art.estimators.classification.blackbox")

    def predict(images):
        with torch.no_grad():
            return model(torch.from_numpy(images)).numpy()

    return blackbox.BlackBoxClassifierNeuralNetwork(predict, SHAPE, 4, clip_values=(0.0, 1.0))


def art_square(model, image, label, _seed):
    attack = importlib.import_module("art.attacks.evasion").SquareAttack(
        art_classifier(model), norm=np.inf, eps=0.05, max_iter=20, verbose=False
    )
    attack.generate(image.numpy(), label.numpy())


def art_hopskipjump(model, image, label, _seed):
    attack = importlib.import_module("art.attacks.evasion").HopSkipJump(
        art_classifier(model), norm=np.inf, max_iter=1, init_eval=20, verbose=False
    )
    attack.generate(image.numpy(), label.numpy())


def foolbox_hopskipjump(model, image, label, _seed):
    foolbox = importlib.import_module("foolbox")
    attack = foolbox.attacks.HopSkipJumpAttack(steps=1, constraint="linf")
    attack(foolbox.PyTorchModel(model, (0, 1), "cpu"), image, label, epsilons=None)


def foolbox_nes(model, image, label, _seed):
    foolbox = importlib.import_module("foolbox")
    made = foolbox.gradient_estimators.es_gradient_estimator(
        foolbox.attacks.LinfPGD, samples=10, sigma=0.01, bounds=(0, 1), clip=False
    )
    attack = made(steps=5)
    attack(foolbox.PyTorchModel(model, (0, 1), "cpu"), image, label, epsilons=0.05)


def torchattacks_square(model, image, label, seed):
    library = importlib.import_module("torchattacks")
    library.Square(model, eps=0.05, n_queries=60, seed=seed)(image, label)


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("art:SquareAttack[max_iter=20]", art_square),
        ("art:HopSkipJump[max_iter=1,init_eval=20]", art_hopskipjump),
        ("foolbox:HopSkipJumpAttack[steps=1]", foolbox_hopskipjump),
        ("foolbox:NES[samples=10,steps=5]", foolbox_nes),
        ("torchattacks:Square[n_queries=60]", torchattacks_square),
    ],
)
def test_it_asks_and_is_charged_what_the_library_asks_by_itself(text, attack):
    installed(text)
    problem = posed(Norm.LINF, budget=2000, eps=0.05)
    network = Network(problem).eval()

    @torch.no_grad()
    def answer(images, rows):
        pairs = zip(images, rows.tolist(), strict=True)
        return torch.cat([network(image[None], row) for image, row in pairs])

    oracle, record = played(text, problem, answer)
    for row in range(3):
        alone = by_itself(problem, row, attack)
        assert int(oracle.used[row]) == len(alone) > 2
        assert torch.equal(trail(record, row), alone)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_an_image_is_an_island_and_the_budget_is_kept(name, norm):
    problem = posed(norm)
    text = QUICK.get(name, name)
    oracle, record = played(text, problem)
    assert int(oracle.used.max()) <= 40
    assert oracle.used.tolist() == record.counts(3) == [40, 40, 40]
    for rows in ([2], [1, 0]):
        part = replace(problem, images=problem.images[rows], labels=problem.labels[rows])
        _, other = played(text, part, ids=rows)
        assert all(torch.equal(trail(other, i), trail(record, r)) for i, r in enumerate(rows))
    assert not torch.equal(
        trail(record, 0) - problem.images[0], trail(record, 1) - problem.images[1]
    )


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_aimed_at_a_target_it_keeps_the_budget(name, norm):
    if Aim.TARGETED not in ATTACKS.facts(name).aims:
        pytest.skip("it cannot aim")
    problem = posed(norm, budget=30, eps=0.02)
    threat = replace(problem.threat, aim=Aim.TARGETED)
    targets = (problem.labels + 1) % 4
    problem = replace(problem, threat=threat, targets=targets)
    starting = ATTACKS.facts(name).starts
    if starting:
        problem = replace(problem, starts=1 - problem.images)

    def answer(images, rows):  # the start is of the target's class, and what is near to it
        far = distance(images, problem.images[rows], Norm.L2) > 2.0
        labels = torch.where(far, targets[rows], problem.labels[rows])
        return nn.functional.one_hot(labels, 4).float()

    oracle, record = played(QUICK.get(name, name), problem, answer)
    assert oracle.used.tolist() == [30, 30, 30]
    if starting:
        assert any(torch.equal(image, 1 - problem.images[0]) for image in trail(record, 0))


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("name", ["art:SquareAttack", "torchattacks:Square"])
def test_norm_and_radius_are_those_of_the_run(name, norm):
    eps = 0.03 if norm is Norm.LINF else 0.4
    problem = posed(norm, eps=eps)
    _, record = played(name, problem)
    away = distance(torch.stack(record.images), problem.images[record.rows], norm)
    assert 0.9 * eps < float(away.max()) <= allowed(eps, norm)


def test_parameters_reach_the_constructor():
    problem = posed(Norm.L2)
    _, record = played("art:SimBA[attack=px,epsilon=0.25]", problem)
    first = trail(record, 1)[1] - problem.images[1]
    assert int((first != 0).sum()) <= 1
    assert float(first.abs().max()) <= 0.25 + 1e-6
    longest = (trail(record, 1) - problem.images[1]).flatten(1).abs().amax(1).max()
    assert float(longest) == pytest.approx(0.25, abs=1e-6)


def test_limits_of_its_own_are_what_the_budget_pays_for(monkeypatch):
    installed("art:")
    seen = []
    square = importlib.import_module("art.attacks.evasion").SquareAttack

    def generate(self, **_given):
        seen.append((self.max_iter, self.norm, self.eps, self.p_init))

    monkeypatch.setattr(square, "generate", generate)
    for text in ("", "[max_iter=7,p_init=0.5]", "[eot=2]"):
        played(f"art:SquareAttack{text}", posed(Norm.L2, budget=300, count=1, eps=0.5))
    assert seen == [(100, 2, 0.5, 0.8), (7, 2, 0.5, 0.5), (50, 2, 0.5, 0.8)]


def test_limits_of_its_own_are_kept_where_they_are_given():
    problem = posed(Norm.LINF, budget=100)
    oracle, _ = played("torchattacks:Square[n_queries=7]", problem)
    assert oracle.used.tolist() == [10, 10, 10]  # and a clean look, the start, its own result


def test_repeated_questions_end_at_whole_ones():
    oracle, _ = played("torchattacks:Square[eot=7]", posed(Norm.LINF, budget=40))
    assert oracle.used.tolist() == [35, 35, 35]


def test_an_assertion_of_foolbox_on_a_noisy_victim_gives_the_image_up():
    installed("foolbox:")
    problem, asked = posed(Norm.L2, budget=200), [0, 0, 0]

    def answer(_images, rows):  # adversarial at first, never again
        labels = []
        for row in rows.tolist():
            asked[row] += 1
            labels.append(1 if row == 1 or asked[row] == 2 else 0)
        labels = torch.tensor(labels)
        return nn.functional.one_hot((problem.labels[rows] + labels) % 4, 4).float()

    oracle, _ = played("foolbox:HopSkipJumpAttack", problem, answer)
    assert oracle.used[1] == 200
    assert 2 < int(oracle.used[0]) < 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("art:SquareAtack", "unknown attack 'art:SquareAtack'. Did you mean: SquareAttack"),
        ("torchattacks:PGD", "attack 'torchattacks:PGD' needs gradients, which no query answers"),
        ("foolbox:LinfPGD", "needs gradients"),
        ("art:DeepFool", "needs gradients"),
        ("art:GeoDA", "not offered: it needs numpy below 2"),
        ("torchattacks:OnePixel", "bounds the number of pixels"),
    ],
)
def test_what_is_not_borrowed_is_one_line_without_the_library_too(monkeypatch, text, said):
    monkeypatch.setattr(importlib, "import_module", None)  # nothing is imported
    assert said in refusal(RegistryError, lambda: ATTACKS.choose(text))


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("art:SimBA", "art.attacks.evasion"),
        ("foolbox:NES", "foolbox.attacks"),
        ("foolbox:NES", "greenlet"),
    ],
)
def test_a_missing_library_is_one_line(monkeypatch, text, module):
    installed(text)
    real = importlib.import_module

    def missing(name):
        if name == module:
            raise ImportError(f"No module named '{name}'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    message = refusal(SpecError, lambda: ATTACKS.choose(text))
    assert message == (
        f"attack '{text}' needs another package (No module named '{module}'): "
        f"pip install 'querybench[{text.partition(':')[0]}]'"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "art:SimBA[atack=dct]",
            "attack 'art:SimBA' has no parameter 'atack'. Did you mean: attack?",
        ),
        ("art:SimBA[attack=foo]", "refuses its parameters: ValueError: The attack type has to be"),
        ("art:SimBA[epsilon=x]", "epsilon=x is not allowed"),
        ("art:SquareAttack[eps=0.1]", "has no parameter 'eps'. Allowed: "),
        ("foolbox:NES[samples=0]", "samples=0 is not allowed"),
        ("foolbox:HopSkipJumpAttack[stepsize_search=up]", "stepsize_search=up is not allowed"),
        ("torchattacks:Square[loss=foo]", "loss=foo is not allowed"),
        ("torchattacks:Square[n_queries=0]", "n_queries=0 is not allowed"),
        ("art", "should be written art:CLASS"),
    ],
)
def test_a_wrong_parameter_is_one_line(text, said):
    installed(text.partition(":")[0])
    assert said in refusal(SpecError, lambda: ATTACKS.choose(text))


def test_facts_are_those_of_the_class_and_need_no_library(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    jump, square = ATTACKS.facts("art:HopSkipJump"), ATTACKS.facts("art:SquareAttack[p_init=0.3]")
    assert (jump.access, jump.goal) == (Access.LABEL, Goal.NEAREST)
    assert (square.access, square.goal) == (Access.SCORES, Goal.IN_BALL)


def test_the_version_of_the_library_is_part_of_the_result(monkeypatch):
    installed("foolbox:")
    choice = ATTACKS.choose("foolbox:NES[sigma=0.1]")
    assert str(choice) == "foolbox:NES[sigma=0.1]"
    assert ATTACKS.choose(choice.spelled()).values == choice.values
    here = importlib.metadata.version("foolbox")
    assert choice.record()["packages"] == {"foolbox": here}
    _same_packages(choice.entry.packages, Part("", "foolbox:NES", choice.record()))
    planned = Part("", "foolbox:NES", {**choice.record(), "packages": {"foolbox": "0.1"}})
    message = refusal(DataError, lambda: _same_packages(choice.entry.packages, planned))
    assert "foolbox" in message and here in message and "0.1" in message
    assert "packages" not in ATTACKS.choose("square").record()


def test_a_run_is_the_same_whatever_the_number_of_jobs(tmp_path):
    installed("torchattacks:")
    installed("foolbox:")
    some = "torchattacks:Square,foolbox:HopSkipJumpAttack"
    given = {"attacks": some, "defenses": "rnd", "images": 8, "queries": 25, "shard": 2}
    found = []
    for jobs in (1, 2):  # threads share what foreign code draws from
        workers = Workers(jobs, backend="threading")
        found.append(api.run(**given, workers=workers, out=tmp_path / str(jobs)))
    pd.testing.assert_frame_equal(*found)
    assert {*found[0]["attack"]} > {*some.split(",")}
    assert tables(tmp_path / "1") == tables(tmp_path / "2")


def test_a_crash_of_the_library_is_one_line(bench):
    installed("art:")
    text = "art:SimBA[freq_dim=5,stride=4]"  # that its blocks fill no image of 28 it sees late
    error = refused(
        bench("run", "--attacks", text, "--images", 2, "--queries", 9, "--jobs", 1, "--out", "out")
    )
    assert "attack 'art:SimBA' failed: ValueError: Incompatible value combination" in error


def test_lists_and_descriptions_need_no_library(bench, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    listed = bench("list", "attacks").out
    assert all(name in listed for name in MEMBERS)
    shown = bench("show", "art").out
    assert "art:CLASS" in shown and "art:HopSkipJump" in shown


def test_a_description_has_the_parameters_of_the_class(bench):
    installed("art:")
    shown = bench("show", "art:SimBA").out
    assert "epsilon" in shown and "1905.07121" in shown and "no ball bounds it" in shown
    assert "code of another library" in bench("check", "art:SimBA").out
