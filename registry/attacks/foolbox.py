"""Attacks of Foolbox, run under our oracle."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from benchmark.facts import AttackFacts
from benchmark.registry import Member, Source, family
from benchmark.types import Access, Aim, Goal, Norm
from registry.moves.borrowed import Ask, Case, Door
from registry.moves.libraries import EVERY, Borrowed, Library

_CODE = "https://github.com/bethgelab/foolbox"
_LABEL_URL = "https://arxiv.org/abs/1904.02144"
_UNTARGETED = (Aim.UNTARGETED,)
# It asserts that what was adversarial once still is, and gives up without a start.
_SURRENDERS = ("AssertionError", "ValueError: init_attack failed", "ValueError: 1.0 of 1 starting")
_GIVES_UP = "where an image that was adversarial is asked again and is not, it gives the image up"


def _source(paper: str, url: str, year: int, *differences: str) -> Source:
    return Source(paper, url, year, _CODE, (*EVERY, *differences))


def _noise(norm: Norm) -> Borrowed:
    source = _source(
        "Rauber et al.: Foolbox Native (JOSS)", "https://doi.org/10.21105/joss.02607", 2020
    )
    facts = AttackFacts(source, Access.LABEL, (norm,), randomised=True, aims=_UNTARGETED, free=True)
    return Borrowed(facts, ends={"repeats": 1})


def _nes(
    *,
    norm: Norm,
    samples: Annotated[int, Field(ge=2)] = 40,
    sigma: Annotated[float, Field(gt=0)] = 0.01,
    clip: bool = False,
    rel_stepsize: float = 0.01 / 0.3,
    abs_stepsize: float | None = None,
    steps: int = 40,
    random_start: bool = True,
) -> Any:
    """Projected gradient descent of Foolbox along its evolutionary-strategies estimate.

    Args:
        norm: Norm of the ball.
        samples: Probes a step, in pairs; one more query tells the loss.
        sigma: Standard deviation of a probe in each pixel value.
        clip: Probes are clipped to the box.
        rel_stepsize: Step, as share of the radius.
        abs_stepsize: Step in pixel units, which takes precedence.
        steps: Steps.
        random_start: Starts at random in the ball.
    """
    estimators = importlib.import_module("foolbox.gradient_estimators")
    attacks = importlib.import_module("foolbox.attacks")
    descent = attacks.LinfPGD if norm is Norm.LINF else attacks.L2PGD
    estimated = estimators.evolutionary_strategies_gradient_estimator(
        descent, samples=samples, sigma=sigma, bounds=(0.0, 1.0), clip=clip
    )
    return estimated(
        rel_stepsize=rel_stepsize, abs_stepsize=abs_stepsize, steps=steps, random_start=random_start
    )


_ATTACKS = {
    "BoundaryAttack": Borrowed(
        AttackFacts(
            _source(
                "Brendel et al.: Decision-Based Adversarial Attacks (ICLR)",
                "https://arxiv.org/abs/1712.04248",
                2018,
                _GIVES_UP,
            ),
            Access.LABEL,
            (Norm.L2,),
            randomised=True,
            goal=Goal.NEAREST,
            starts=True,
            free=True,
        ),
        ends={"steps": 1},
        surrenders=_SURRENDERS,
    ),
    "HopSkipJumpAttack": Borrowed(
        AttackFacts(
            _source("Chen et al.: HopSkipJumpAttack (IEEE S&P)", _LABEL_URL, 2020, _GIVES_UP),
            Access.LABEL,
            (Norm.LINF, Norm.L2),
            randomised=True,
            goal=Goal.NEAREST,
            starts=True,
            free=True,
        ),
        ends={"steps": 1},
        sets={"constraint": lambda case: str(case.threat.norm)},
        surrenders=_SURRENDERS,
    ),
    "L2RepeatedAdditiveGaussianNoiseAttack": _noise(Norm.L2),
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": _noise(Norm.L2),
    "LinfRepeatedAdditiveUniformNoiseAttack": _noise(Norm.LINF),
    "NES": Borrowed(
        AttackFacts(
            _source(
                "Ilyas et al.: Black-box Adversarial Attacks with Limited Queries (ICML)",
                "https://arxiv.org/abs/1804.08598",
                2018,
                "Foolbox's evolutionary-strategies estimator around its LinfPGD or L2PGD; the "
                "number of probes and their size are those of our `nes`",
            ),
            Access.SCORES,
            (Norm.LINF, Norm.L2),
            randomised=True,
            free=True,
        ),
        ends={"steps": 1},
        sets={"norm": lambda case: case.threat.norm},
    ),
}

_GRADIENTS = """
    AdamPGD DDNAttack EADAttack FGM FGSM L0BrendelBethgeAttack L0FMNAttack
    L1AdamBasicIterativeAttack L1AdamPGD L1AdamProjectedGradientDescentAttack L1BasicIterativeAttack
    L1BrendelBethgeAttack L1FMNAttack L1FastGradientAttack L1MomentumIterativeFastGradientMethod
    L1PGD L1ProjectedGradientDescentAttack L2AdamBasicIterativeAttack L2AdamPGD
    L2AdamProjectedGradientDescentAttack L2BasicIterativeAttack L2BrendelBethgeAttack
    L2CarliniWagnerAttack L2DeepFoolAttack L2FMNAttack L2FastGradientAttack
    L2MomentumIterativeFastGradientMethod L2PGD L2ProjectedGradientDescentAttack LInfFMNAttack
    LinfAdamBasicIterativeAttack LinfAdamPGD LinfAdamProjectedGradientDescentAttack
    LinfBasicIterativeAttack LinfDeepFoolAttack LinfFastGradientAttack
    LinfMomentumIterativeFastGradientMethod LinfPGD LinfProjectedGradientDescentAttack
    LinfinityBrendelBethgeAttack MIFGSM NewtonFoolAttack PGD SparseL1DescentAttack
    VirtualAdversarialAttack
"""


def _start(target: Any, case: Case, ask: Ask, parameters: dict[str, Any]) -> Callable[[], object]:
    library = importlib.import_module("foolbox")
    criteria = importlib.import_module("foolbox.criteria")
    model = library.PyTorchModel(Door(ask), bounds=(0.0, 1.0), device="cpu")
    attack = target(**parameters)
    aimed = case.threat.aim is Aim.TARGETED
    goal = (criteria.TargetedMisclassification if aimed else criteria.Misclassification)(case.label)
    bounded = isinstance(attack, library.attacks.base.FixedEpsilonAttack)
    more = {} if case.start is None else {"starting_points": case.start}
    eps = case.threat.eps if bounded else None
    return lambda: attack(model, case.image, goal, epsilons=eps, **more)


_LIBRARY = Library(
    entry="foolbox",
    package="foolbox",
    module="foolbox.attacks",
    attacks=_ATTACKS,
    start=_start,
    gradients=frozenset(_GRADIENTS.split()),
    makers={"NES": _nes},
    kept=frozenset({"distance", "init_attack", "tensorboard"}),
)


@family(
    source=Source(
        paper="Rauber et al.: Foolbox Native (JOSS)",
        url="https://doi.org/10.21105/joss.02607",
        year=2020,
        code=_CODE,
        differences=EVERY,
    ),
    argument="CLASS",
    members=_LIBRARY.members,
)
def foolbox(name: str) -> Member:
    """Attack CLASS of Foolbox, each image alone, with its own parameters."""
    return _LIBRARY.member(name)
