"""RGF: descent along a gradient from forward differences in random directions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from benchmark.objective import Loss, Objective
from benchmark.registry import Preset, Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Norm, Problem, Steps
from registry.moves.estimates import Directions, descend
from registry.moves.forward import Fan, Stand, walk

_UNPROJECTED = "probes leave ball and box there: --probes free"
_LINF, _L2 = Norm.LINF, Norm.L2
_PRGF = {"directions": 50, "probe": 1e-4, "loss": "ce"}


@attack(
    source=Source(
        paper="Nesterov and Spokoiny: Random Gradient-Free Minimization of Convex Functions (FoCM)",
        url="https://doi.org/10.1007/s10208-015-9296-2",
        year=2017,
        code="https://github.com/thu-ml/Prior-Guided-RGF",
        differences=(
            "the code is that of P-RGF (arXiv 1906.06919) without prior: its method 'uniform'; "
            "its data prior is not here",
            "sign or normalised steps of constant length, as attacks take them",
            "by default the margin, not cross-entropy, which is flat where the victim is sure",
            "probes stay in the box unless the probe policy says otherwise",
            "auto_sigma: wider probes get new directions, and are never wider than the ball",
            "the last step uses as many directions as the budget still allows",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    probes=True,
    presets={
        "prgf": Preset(
            "P-RGF (thu-ml), ImageNet", {**_PRGF, "step": 0.005}, _LINF, note=_UNPROJECTED
        ),
        "prgf-l2": Preset(
            "P-RGF (thu-ml), ImageNet, eps = sqrt(D / 1000)",
            {**_PRGF, "step": 2.0},
            _L2,
            note=_UNPROJECTED,
        ),
        "prgf-defended": Preset(
            "P-RGF (thu-ml), ImageNet, JPEG and random resizing",
            {**_PRGF, "probe": 1e-3, "step": 0.005},
            _LINF,
            note=_UNPROJECTED + "; a query of a randomised victim averages ten passes there",
        ),
        "simulator": Preset(
            "SimulatorAttack (machanic), CIFAR-10 and ImageNet",
            _PRGF,
            note=_UNPROJECTED + "; its step comes from the command line",
        ),
    },
)
def rgf(
    problem: Problem,
    rng: RowRng,
    *,
    directions: Annotated[int, Field(gt=0)] | None = None,
    probe: Annotated[float, Field(gt=0)] | None = None,
    step: Annotated[float, Field(gt=0)] | None = None,
    loss: Loss = "margin",
    kind: Directions = "sphere",
    auto_sigma: bool = True,
    fresh_baseline: bool = False,
) -> Steps:
    """Estimate the gradient by differences to the iterate's own loss, step, project; repeat.

    A step costs `directions` + 1 queries: the probes and the new iterate, whose answer is also
    the next baseline. The first query is the clean image.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        directions: Probes per step; none means 20, and 50 for images larger than 64 pixels.
        probe: Root mean square of a probe over the pixel values, in pixel units of the [0, 1]
            range; its l2 length is probe * sqrt(D). None means 1e-3, and 1e-4 for images larger
            than 64 pixels.
        step: Length of a step in the threat's norm, in pixel units; none means 0.12 * eps for
            l2 and eps / 4 for linf, but eps / 10 for images larger than 64 pixels.
        loss: Loss whose gradient is estimated.
        kind: Directions of which each has a mean square of 1 ("sphere"), or standard normals.
        auto_sigma: Where no probe of a step changes the loss, probe again five times as wide,
            up to the size of the ball; every second step two queries try the first width again.
        fresh_baseline: Ask for the baseline anew for each direction, which doubles the cost of
            a step but leaves no noise of a randomised victim common to all differences.
    """
    threat, large = problem.threat, min(problem.images.shape[2:]) > 64
    share = 0.12 if threat.norm is _L2 else 0.1 if large else 0.25
    stride = step or share * threat.eps
    fan = Fan(
        count=directions or (50 if large else 20),
        probe=probe or (1e-4 if large else 1e-3),
        kind=kind,
        fresh=fresh_baseline,
        widen=auto_sigma,
    )

    def move(stand: Stand, gradient: Tensor) -> Tensor:
        return descend(stand.current, stand.centres, gradient, stride, threat)

    yield from walk(problem, rng, Objective(problem, loss), fan, move)
