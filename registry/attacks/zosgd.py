"""ZO-SGD: steps as long as the gradient that forward differences estimate."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, length, project
from benchmark.objective import Loss, Objective
from benchmark.registry import Source, attack
from benchmark.rng import RowRng
from benchmark.types import Access, Norm, Problem, Steps
from registry.moves.estimates import Directions
from registry.moves.forward import Fan, Stand, walk

_FAR = 1e6  # pixel units: no step is longer, so that none overflows


@attack(
    source=Source(
        paper="Ghadimi and Lan: Stochastic First- and Zeroth-Order Methods (SIAM J. Optim.)",
        url="https://arxiv.org/abs/1309.5549",
        year=2013,
        differences=(
            "no code attacks with raw steps: all settings are ours",
            "by default each image's rate is set by its first estimate, then constant",
            "probes stay in the box unless the probe policy says otherwise",
            "the baseline of a step is asked once, and is the label check of the iterate",
            "the last step uses as many directions as the budget still allows",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    probes=True,
)
def zosgd(
    problem: Problem,
    rng: RowRng,
    *,
    directions: Annotated[int, Field(gt=0)] = 20,
    probe: Annotated[float, Field(gt=0)] = 0.01,
    rate: Annotated[float, Field(gt=0)] | None = None,
    first: Annotated[float, Field(gt=0)] = 0.25,
    loss: Loss = "margin",
    kind: Directions = "gaussian",
    auto_sigma: bool = False,
    fresh_baseline: bool = False,
) -> Steps:
    """Estimate the gradient by forward differences, subtract `rate` times it, project; repeat.

    A step costs `directions` + 1 queries: the probes and the new iterate, whose answer is also
    the next baseline. The first query is the clean image. Gradients of victims and losses
    differ by orders of magnitude, so no one rate fits; by default each image gets its own.

    Args:
        problem: Images to attack.
        rng: One stream per image.
        directions: Probes per step.
        probe: Standard deviation of a probe in each pixel value, in pixel units of the [0, 1]
            range; its expected l2 length is probe * sqrt(D).
        rate: Step over estimated gradient, in squared pixel units per unit of loss; none means
            that of an image whose first step, before projection, is as long as `first` says.
        first: Size of that step over eps: its l2 length, and its root mean square for linf.
        loss: Loss whose gradient is estimated. The margin keeps the scale of its gradient;
            those of "ce" and "prob" vanish where the victim is sure.
        kind: Standard normal directions, or these scaled to a mean square of 1 ("sphere").
        auto_sigma: Where no probe of a step changes the loss, probe again five times as wide,
            up to the size of the ball; every second step two queries try the first width again.
        fresh_baseline: Ask for the baseline anew for each direction, which doubles the cost of
            a step but leaves no noise of a randomised victim common to all differences.
    """
    threat, size = problem.threat, problem.images[0].numel()
    wanted = first * threat.eps * (size**0.5 if threat.norm is Norm.LINF else 1.0)
    rates = problem.images.new_full((len(problem.images),), rate or torch.nan)
    fan = Fan(directions, probe, kind, fresh=fresh_baseline, widen=auto_sigma)

    def move(stand: Stand, gradient: Tensor) -> Tensor:
        now, slope = rates[stand.rows], length(gradient)
        unset = now.isnan() & (slope > 0)
        now = torch.where(unset, wanted / slope.clamp_min(1e-12), now)
        rates[stand.rows] = now
        step = (column(now.nan_to_num(0.0), gradient) * gradient).clamp_(-_FAR, _FAR)
        return project(stand.current - step, stand.centres, threat.eps, threat.norm)

    yield from walk(problem, rng, Objective(problem, loss), fan, move)
