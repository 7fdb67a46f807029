"""ZO-signSGD: steps along the sign of a gradient from forward differences, in both norms."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.geometry import project
from benchmark.objective import Loss, Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Norm, Problem, Steps
from registry.moves.estimates import Directions
from registry.moves.forward import Fan, Stand, walk

_UNPROJECTED = "probes leave ball and box there: --probes free"
_BASELINES = "the baseline is asked anew for each direction there, but counted once"
_CIFAR, _IMAGENET = 3072**0.5, 299 * 3**0.5  # their directions are scaled by 1 / sqrt(D)
_LINF, _L2 = Norm.LINF, Norm.L2


@attack(
    source=Source(
        paper="Liu et al.: signSGD via Zeroth-Order Oracle (ICLR)",
        url="https://openreview.net/forum?id=BJe-DsC5Fm",
        year=2019,
        differences=(
            "the settings are those of benchmarks' code; the authors' own were not available",
            "by default directions are standard normals, and the loss is the margin",
            "probes stay in the box unless the probe policy says otherwise",
            "the baseline of a step is asked once, and is the label check of the iterate",
            "the last step uses as many directions as the budget still allows",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    probes=True,
    presets={
        "signhunter": Preset(
            "SignHunter, CIFAR-10",
            {"directions": 20, "probe": 0.01 / _CIFAR, "step": 2 / 255, "loss": "ce"},
            _LINF,
            note=f"{_UNPROJECTED}; {_BASELINES}",
        ),
        "signhunter-l2": Preset(
            "SignHunter, CIFAR-10",
            {"directions": 4, "probe": 0.01 / _CIFAR, "step": 2 / 255, "loss": "ce"},
            _L2,
            note=f"{_UNPROJECTED}; {_BASELINES}",
        ),
        "signhunter-imagenet": Preset(
            "SignHunter, ImageNet",
            {"directions": 100, "probe": 0.1 / _IMAGENET, "step": 0.02, "loss": "ce"},
            _LINF,
            note=f"{_UNPROJECTED}; {_BASELINES}",
        ),
        "signhunter-imagenet-l2": Preset(
            "SignHunter, ImageNet",
            {"directions": 50, "probe": 0.1 / _IMAGENET, "step": 0.004, "loss": "ce"},
            _L2,
            note=f"{_UNPROJECTED}; {_BASELINES}",
        ),
        "blackboxbench": Preset(
            "BlackboxBench, CIFAR-10",
            {"directions": 30, "probe": 0.01, "step": 2.55 / 255},
            note=f"probes are projected there: --probes ball; {_BASELINES}",
        ),
        "rfd": Preset(
            "randomized feature defense (mail-research)",
            {"directions": 15, "probe": 0.1, "step": 0.01, "fresh_baseline": True},
            _LINF,
            note=_UNPROJECTED + "; its images are not clipped to [0, 1] at all",
        ),
    },
)
def zosignsgd(
    problem: Problem,
    rng: RowRng,
    *,
    directions: Annotated[int, Field(gt=0)] | None = None,
    probe: Annotated[float, Field(gt=0)] = 0.01,
    step: Annotated[float, Field(gt=0)] | None = None,
    loss: Loss = "margin",
    kind: Directions = "gaussian",
    auto_sigma: bool = False,
    fresh_baseline: bool = False,
) -> Steps:
    """Estimate the gradient by forward differences, step along its sign, project; repeat.

    A step costs `directions` + 1 queries: the probes and the new iterate, whose answer is also
    the next baseline. The first query is the clean image.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        directions: Probes per step; none means 20, and for images larger than 64 pixels 100 for
            linf, 50 for l2.
        probe: Standard deviation of a probe in each pixel value, in pixel units of the [0, 1]
            range; its expected l2 length is probe * sqrt(D).
        step: Change of each pixel value in a step, in pixel units, for l2 too; none means
            0.4 * eps / sqrt(D) for l2 and eps / 4 for linf, but 0.4 * eps for images larger than
            64 pixels.
        loss: Loss whose gradient is estimated.
        kind: Standard normal directions, or these scaled to a mean square of 1 ("sphere").
        auto_sigma: Where no probe of a step changes the loss, probe again five times as wide,
            up to the size of the ball; every second step two queries try the first width again.
        fresh_baseline: Ask for the baseline anew for each direction, which doubles the cost of
            a step but leaves no noise of a randomised victim common to all differences.
    """
    threat, large = problem.threat, min(problem.images.shape[2:]) > 64
    euclidean, size = threat.norm is _L2, problem.images[0].numel()
    share = 0.4 / size**0.5 if euclidean else 0.4 if large else 0.25
    stride = step or share * threat.eps
    count = directions or ((50 if euclidean else 100) if large else 20)
    fan = Fan(count, probe, kind, fresh=fresh_baseline, widen=auto_sigma)

    def move(stand: Stand, gradient: Tensor) -> Tensor:
        there = stand.current - stride * gradient.sign()
        return project(there, stand.centres, threat.eps, threat.norm)

    yield from walk(problem, rng, Objective(problem, loss), fan, move)
