"""NES: projected descent along a gradient estimated from antithetic Gaussian probes."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.objective import Loss, Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Access, Norm, Problem, Queries, Steps
from registry.moves.estimates import antithetic, descend

_UNPROJECTED = "probes leave ball and box there: --probes free"
_CIFAR = 3072**0.5  # of codes that scale their directions by 1 / sqrt(D)
_LINF, _L2 = Norm.LINF, Norm.L2
_QUERY_LIMITED: dict[str, object] = {
    "probe": 1e-3,
    "pairs": 25,
    "step": 0.01,
    "loss": "ce",
    "momentum": 0.9,
    "patience": 5,
}


@attack(
    source=Source(
        paper="Ilyas et al.: Black-box Adversarial Attacks with Limited Queries (ICML)",
        url="https://arxiv.org/abs/1804.08598",
        year=2018,
        code="https://github.com/labsix/limited-blackbox-attacks",
        differences=(
            "by default a constant step and no momentum: the PGD form that defense papers run",
            "the new iterate is queried, and the query is charged",
            "probes stay in the box unless the probe policy says otherwise",
            "the last step uses as many pairs as the budget still allows",
            "with `patience` the step is halved when the loss grows that has to fall; the official "
            "code compares the raw cross-entropy, which punishes progress when untargeted",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    probes=True,
    examples=("[momentum=0.9,patience=2]",),
    presets={
        "labsix": Preset(
            "labsix, query-limited, ImageNet",
            _QUERY_LIMITED,
            _LINF,
            note=_UNPROJECTED,
        ),
        "madry": Preset(
            "MadryLab (bandits paper), ImageNet",
            {"probe": 0.1 / 299 / 3**0.5, "pairs": 50, "step": 0.01, "loss": "ce"},
            _LINF,
            note=_UNPROJECTED,
        ),
        "madry-l2": Preset(
            "MadryLab (bandits paper), ImageNet",
            {"probe": 0.1 / 299 / 3**0.5, "pairs": 5, "step": 0.3, "loss": "ce"},
            _L2,
            note=_UNPROJECTED,
        ),
        "signhunter": Preset(
            "SignHunter, CIFAR-10",
            {"probe": 0.01 / _CIFAR, "pairs": 20, "step": 2 / 255, "loss": "ce"},
            _LINF,
            note=_UNPROJECTED,
        ),
        "signhunter-l2": Preset(
            "SignHunter, CIFAR-10",
            {"probe": 0.01 / _CIFAR, "pairs": 4, "step": 64 / 255, "loss": "ce"},
            _L2,
            note=_UNPROJECTED,
        ),
        "signhunter-imagenet": Preset(
            "SignHunter, ImageNet",
            {"probe": 0.1 / 299 / 3**0.5, "pairs": 100, "step": 0.02, "loss": "ce"},
            _LINF,
            note=_UNPROJECTED,
        ),
        "unig": Preset(
            "UniG, CIFAR-10",
            {"probe": 0.01 / _CIFAR, "pairs": 20, "step": 2 / 255, "loss": "ce"},
            _LINF,
            note=_UNPROJECTED,
        ),
        "unig-imagenet": Preset(
            "UniG, ImageNet",
            {"probe": 0.1 / 224 / 3**0.5, "pairs": 100, "step": 0.02, "loss": "ce"},
            _LINF,
            note=_UNPROJECTED + "; one step exceeds its eps of 4/255",
        ),
        "blackboxbench": Preset(
            "BlackboxBench, CIFAR-10",
            {"probe": 0.01, "pairs": 15, "step": 0.01},
            note="probes are projected there: --probes ball",
        ),
        "rfd": Preset(
            "randomized feature defense (mail-research)",
            {"probe": 0.1, "pairs": 20, "step": 0.01},
            _LINF,
            note=_UNPROJECTED + "; its images are not clipped to [0, 1] at all",
        ),
        "rfd-adaptive": Preset(
            "randomized feature defense (mail-research), adaptive",
            {"probe": 0.01, "pairs": 30, "step": 0.005},
            _LINF,
            note=_UNPROJECTED,
        ),
        "simulator": Preset(
            "SimulatorAttack (machanic), CIFAR-10",
            _QUERY_LIMITED,
            _LINF,
            note=_UNPROJECTED,
        ),
    },
)
def nes(
    problem: Problem,
    rng: RowRng,
    *,
    probe: Annotated[float, Field(gt=0)] = 0.01,
    pairs: Annotated[int, Field(gt=0)] = 20,
    step: Annotated[float, Field(gt=0)] | None = None,
    loss: Loss = "margin",
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    patience: Annotated[int, Field(ge=0)] = 0,
    least: Annotated[float, Field(gt=0)] = 5e-5,
) -> Steps:
    """Estimate the gradient by `pairs` antithetic probes, step, project, ask; repeat.

    A step costs 2 * pairs + 1 queries: the probes and the new iterate.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        probe: Standard deviation of a probe in each pixel value, in pixel units of the [0, 1]
            range; its expected l2 length is probe * sqrt(D).
        pairs: Antithetic pairs per step.
        step: Length of a step in the threat's norm, in pixel units; none means eps / 4.
        loss: Loss whose gradient is estimated.
        momentum: Share of the earlier direction in the new one ("query-limited": 0.9).
        patience: Steps after which the step is halved if the loss has not fallen over them
            ("query-limited": 5); 0 keeps it constant.
        least: Shortest step that halving leaves.
    """
    rows, centres = problem.rows, problem.images
    current, left = centres.clone(), problem.questions
    stride = current.new_full((len(rows),), step or problem.threat.eps / 4)
    velocity = torch.zeros_like(current)
    history = current.new_full((len(rows), max(patience, 1)), torch.nan)
    objective = Objective(problem, loss)
    while (asked := min(pairs, (left - 1) // 2)) >= 1:
        place = rows, current, centres
        found = yield from antithetic(problem, rng, objective, place, asked, probe)
        velocity = momentum * velocity + (1 - momentum) * found.gradient
        if patience:
            stride, history = _halve(stride, history, found.loss, least)
        current = descend(current, centres, velocity, stride, problem.threat)
        rows, centres, current, velocity, stride, history = keep(
            ~found.finished, rows, centres, current, velocity, stride, history
        )
        replies = yield Queries(current, rows)
        left -= 2 * asked + 1
        rows, centres, current, velocity, stride, history = keep(
            ~replies.finished, rows, centres, current, velocity, stride, history
        )


def _halve(stride: Tensor, history: Tensor, loss: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Halve the steps of images whose mean probe loss grew over their last steps."""
    history = torch.cat((history[:, 1:], loss[:, None]), 1)
    worse = history[:, -1] > history[:, 0]  # false while the history is not full: NaN
    stride = torch.where(worse, torch.maximum(stride / 2, stride.clamp_max(least)), stride)
    return stride, history.masked_fill(worse[:, None], torch.nan)
