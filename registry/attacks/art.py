"""Attacks of the Adversarial Robustness Toolbox (ART), run under our oracle."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch

from benchmark.facts import AttackFacts
from benchmark.registry import Member, Source, family
from benchmark.types import Access, Aim, Goal, Norm
from registry.moves.borrowed import Ask, Case
from registry.moves.libraries import EVERY, Borrowed, Library

_CODE = "https://github.com/Trusted-AI/adversarial-robustness-toolbox"
_BOTH = (Norm.LINF, Norm.L2)
_UNTARGETED = (Aim.UNTARGETED,)


def _source(paper: str, url: str, year: int, *differences: str) -> Source:
    return Source(paper, url, year, _CODE, (*EVERY, *differences))


def _norm(case: Case) -> float:
    return math.inf if case.threat.norm is Norm.LINF else 2


def _targeted(case: Case) -> bool:
    return case.threat.aim is Aim.TARGETED


_ATTACKS = {
    "BoundaryAttack": Borrowed(
        AttackFacts(
            _source(
                "Brendel et al.: Decision-Based Adversarial Attacks (ICLR)",
                "https://arxiv.org/abs/1712.04248",
                2018,
            ),
            Access.LABEL,
            (Norm.L2,),
            randomised=True,
            goal=Goal.NEAREST,
            starts=True,
            free=True,
        ),
        ends={"max_iter": 1},
        sets={"targeted": _targeted},
    ),
    "HopSkipJump": Borrowed(
        AttackFacts(
            _source(
                "Chen et al.: HopSkipJumpAttack (IEEE S&P)",
                "https://arxiv.org/abs/1904.02144",
                2020,
            ),
            Access.LABEL,
            _BOTH,
            randomised=True,
            goal=Goal.NEAREST,
            starts=True,
            free=True,
        ),
        ends={"max_iter": 1},
        sets={"targeted": _targeted, "norm": _norm},
    ),
    "SignOPTAttack": Borrowed(
        AttackFacts(
            _source("Cheng et al.: Sign-OPT (ICLR)", "https://arxiv.org/abs/1909.10773", 2020),
            Access.LABEL,
            (Norm.L2,),
            randomised=True,
            goal=Goal.NEAREST,
            aims=_UNTARGETED,
            free=True,
        ),
        ends={"max_iter": 1, "query_limit": 1},
        sets={"targeted": _targeted},
    ),
    "SimBA": Borrowed(
        AttackFacts(
            _source(
                "Guo et al.: Simple Black-box Adversarial Attacks (ICML)",
                "https://arxiv.org/abs/1905.07121",
                2019,
                "no ball bounds it: it steps until the label is another, and ends there",
            ),
            Access.SCORES,
            _BOTH,
            randomised=True,
            goal=Goal.NEAREST,
            free=True,
        ),
        ends={"max_iter": 2},
        sets={"targeted": _targeted},
        shows="probabilities",
    ),
    "SquareAttack": Borrowed(
        AttackFacts(
            _source(
                "Andriushchenko et al.: Square Attack (ECCV)",
                "https://arxiv.org/abs/1912.00049",
                2020,
                "a proposal costs three queries: the kept image is asked twice more",
            ),
            Access.SCORES,
            _BOTH,
            randomised=True,
            aims=_UNTARGETED,
            free=True,
        ),
        ends={"max_iter": 3},
        sets={"norm": _norm, "eps": lambda case: case.threat.eps},
    ),
    "ZooAttack": Borrowed(
        AttackFacts(
            _source(
                "Chen et al.: ZOO (AISec)",
                "https://arxiv.org/abs/1708.03999",
                2017,
                "a step costs 257 queries by default: --queries in the thousands",
            ),
            Access.SCORES,
            (Norm.L2,),
            randomised=True,
            goal=Goal.NEAREST,
            free=True,
        ),
        ends={"max_iter": 1},
        sets={"targeted": _targeted},
    ),
}

_GRADIENTS = """
    AutoAttack AutoConjugateGradient AutoProjectedGradientDescent BasicIterativeMethod
    BrendelBethgeAttack CarliniL0Method CarliniL2Method CarliniLInfMethod
    CompositeAdversarialAttackPyTorch DeepFool ElasticNet FastGradientMethod
    FeatureAdversariesNumpy FeatureAdversariesPyTorch FeatureAdversariesTensorFlowV2
    FrameSaliencyAttack GRAPHITEWhiteboxPyTorch HighConfidenceLowUncertainty LowProFool
    MomentumIterativeMethod NewtonFool ProjectedGradientDescent ProjectedGradientDescentNumpy
    ProjectedGradientDescentPyTorch ProjectedGradientDescentTensorFlowV2
    RescalingAutoConjugateGradient SaliencyMapMethod ShadowAttack TargetedUniversalPerturbation
    UniversalPerturbation VirtualAdversarialMethod Wasserstein
"""


def _start(target: Any, case: Case, ask: Ask, parameters: dict[str, Any]) -> Callable[[], object]:
    blackbox = importlib.import_module("art.estimators.classification.blackbox")

    def predict(images: Any) -> Any:
        return ask(torch.from_numpy(images)).numpy()

    shape = tuple(case.image.shape[1:])
    estimator = blackbox.BlackBoxClassifierNeuralNetwork(
        predict, shape, case.num_classes, channels_first=True, clip_values=(0.0, 1.0)
    )
    attack = target(estimator, **parameters, verbose=False)
    wanted = torch.nn.functional.one_hot(case.label, case.num_classes).numpy()
    more = {} if case.start is None else {"x_adv_init": case.start.numpy()}
    return lambda: attack.generate(x=case.image.numpy(), y=wanted, **more)


_LIBRARY = Library(
    entry="art",
    package="adversarial-robustness-toolbox",
    module="art.attacks.evasion",
    more=("art.estimators.classification.blackbox",),
    attacks=_ATTACKS,
    start=_start,
    gradients=frozenset(_GRADIENTS.split()),
    refused={
        "GeoDA": "it needs numpy below 2, and writes a file into the current folder",
        "PixelAttack": "it bounds the number of pixels, not linf or l2",
        "ThresholdAttack": "its radius is a whole number of grey levels",
        "SpatialTransformation": "it turns and shifts images, which no ball holds",
    },
    kept=frozenset({"batch_size", "eval_perform", "verbose"}),
)


@family(
    source=Source(
        paper="Nicolae et al.: Adversarial Robustness Toolbox",
        url="https://arxiv.org/abs/1807.01069",
        year=2018,
        code=_CODE,
        differences=EVERY,
    ),
    argument="CLASS",
    members=_LIBRARY.members,
)
def art(name: str) -> Member:
    """Attack CLASS of the Adversarial Robustness Toolbox, each image alone, its own parameters."""
    return _LIBRARY.member(name)
