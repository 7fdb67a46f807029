"""NES: projected descent along a gradient estimated from antithetic Gaussian probes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.geometry import column, cross_entropy, length, margin, project
from benchmark.registry import Source, attack
from benchmark.rng import RowRng
from benchmark.rows import keep
from benchmark.types import Access, Norm, Probes, Problem, Queries, Steps

_ROUND = 2**19  # pixel values of probes an image sends in a round, so that a round fits in memory


@attack(
    source=Source(
        paper="Ilyas et al.: Black-box Adversarial Attacks with Limited Queries (ICML)",
        url="https://arxiv.org/abs/1804.08598",
        year=2018,
        code="https://github.com/labsix/limited-blackbox-attacks",
        differences=(
            "constant step and no momentum: the PGD form that defense papers run",
            "the new iterate is queried, and the query is charged",
            "probes stay in the box unless the probe policy says otherwise",
            "the last step uses as many pairs as the budget still allows",
        ),
    ),
    access=Access.SCORES,
    norms=(Norm.LINF, Norm.L2),
    randomised=True,
    probes=True,
)
def nes(
    problem: Problem,
    rng: RowRng,
    *,
    probe: Annotated[float, Field(gt=0)] = 0.01,
    pairs: Annotated[int, Field(gt=0)] = 20,
    step: Annotated[float, Field(gt=0)] | None = None,
    loss: Literal["margin", "ce"] = "margin",
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
    """
    threat = problem.threat
    stride = step or threat.eps / 4
    rows, labels, centres = problem.rows, problem.labels, problem.images
    current, left = centres.clone(), threat.budget
    chunk = max(1, _ROUND // (2 * centres[0].numel()))
    objective = margin if loss == "margin" else cross_entropy
    while True:
        asked = min(pairs, (left - 1) // 2)
        if asked < 1:
            return
        gradient = torch.zeros_like(current)
        for start in range(0, asked, chunk):
            count = min(chunk, asked - start)
            noise = rng.normal(rows.repeat_interleave(count), current.shape[1:]).to(current)
            noise = noise.view(len(rows), count, *current.shape[1:])
            replies = yield _probes(problem, current, centres, rows, noise * probe)
            values = objective(replies.scores, labels.repeat_interleave(2 * count))
            slopes = values.view(-1, count, 2)
            slopes = slopes[:, :, 0] - slopes[:, :, 1]
            gradient += torch.einsum("nk,nk...->n...", slopes, noise)
            alive = ~replies.finished.view(len(rows), -1)[:, 0]
            rows, labels, centres, current, gradient = keep(
                alive, rows, labels, centres, current, gradient
            )
            left -= 2 * count
        current = project(
            current - stride * _direction(gradient, threat.norm), centres, threat.eps, threat.norm
        )
        replies = yield Queries(current, rows)
        left -= 1
        rows, labels, centres, current = keep(~replies.finished, rows, labels, centres, current)


def _probes(
    problem: Problem, current: Tensor, centres: Tensor, rows: Tensor, offsets: Tensor
) -> Queries:
    """Place both members of each pair, (n * pairs * 2, C, H, W), as the probe policy allows."""
    count = 2 * offsets.shape[1]
    probes = torch.stack((offsets, -offsets), 2).flatten(1, 2)
    probes += current[:, None]
    if problem.probes is Probes.BALL:
        flat = probes.flatten(0, 1)
        around = centres.repeat_interleave(count, 0)
        probes = project(flat, around, problem.threat.eps, problem.threat.norm)
    elif problem.probes is Probes.BOX:
        probes.clamp_(0.0, 1.0)
    return Queries(probes.view(-1, *current.shape[1:]), rows.repeat_interleave(count))


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    if norm is Norm.LINF:
        return gradient.sign()
    return gradient / column(length(gradient).clamp_min(1e-12), gradient)
