"""Solvers of AAA: logits with a wanted margin and a wanted confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from registry.parts.margins import lead, leaders

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8  # Adam's usual constants
_NEAR_ONE = 1 - 1e-12  # its logit is finite
_FAR = 30.0  # logits by which classes are sunk that should have no probability
_HALVINGS = 60  # of a range below 1000 logits: to the last bit of float64


@dataclass(frozen=True)
class Goal:
    """The objective |m(z') - t| + beta |softmax(z')_y - p|; y is the label before.

    Attributes:
        targets: Wanted margins t >= 0, (n, 1).
        chances: Wanted probabilities p of the label, (n, 1), at least 1 / K.
        beta: Weight of the probability, in logits.
    """

    targets: Tensor
    chances: Tensor
    beta: float


def adam(logits: Tensor, goal: Goal, steps: int, rate: float) -> Tensor:
    """Minimise each row's objective by Adam from the given logits.

    Rows are summed, not averaged, so that no row's steps depend on how many there are.

    Args:
        logits: Where to start, (n, K).
        goal: The objective.
        steps: Number of steps.
        rate: Length of a step, in logits.

    Returns:
        Logits, (n, K), as close as the steps lead; the best class may have changed.
    """
    goal = Goal(goal.targets.to(logits), goal.chances.to(logits), goal.beta)
    labels, answer = logits.argmax(1, keepdim=True), logits.clone()
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(1, steps + 1):
        slope = _slope(answer, labels, goal)
        mean.lerp_(slope, 1 - _FIRST)
        square.lerp_(slope.square(), 1 - _SECOND)
        spread = (square / (1 - _SECOND**step)).sqrt_().add_(_EPSILON)
        answer.addcdiv_(mean, spread, value=-rate / (1 - _FIRST**step))
    return answer


def _slope(logits: Tensor, labels: Tensor, goal: Goal) -> Tensor:
    """Gradient of the objective, (n, K); the margin is that of the two best classes now."""
    best, second = leaders(logits)
    pull = (logits.gather(1, best) - logits.gather(1, second) - goal.targets).sign()
    chances = logits.softmax(1)
    own = chances.gather(1, labels)
    push = goal.beta * (own - goal.chances).sign() * own
    slope = -push * chances
    slope.scatter_add_(1, labels, push)
    slope.scatter_add_(1, best, pull)
    return slope.scatter_add_(1, second, -pull)


def exact(logits: Tensor, goal: Goal) -> Tensor:
    """Minimise each row's objective over all logits that keep the row's best class.

    The label and its runner-up get the best margin; the others move by one constant, held below
    the runner-up, that gives the label its probability, or as near as it can come.

    Args:
        logits: z, (n, K).
        goal: The objective.

    Returns:
        Logits, (n, K). The label's own logit is as before; the order of the others is too.
    """
    best, second = leaders(logits)
    gaps = logits.double() - logits.double().gather(1, best)
    goal = Goal(goal.targets.double(), goal.chances.double(), goal.beta)
    margins = best_margin(goal, logits.shape[1])
    firsts = torch.zeros_like(gaps, dtype=torch.bool).scatter_(1, best, True)
    firsts.scatter_(1, second, True)
    # What the others weigh together, where the label weighs 1.
    wanted = 1 / goal.chances - 1 - (-margins).exp()
    low, high = torch.full_like(margins, -_FAR), -margins - gaps.amin(1, keepdim=True)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        others = torch.minimum(gaps + middle, -margins).masked_fill(firsts, -torch.inf)
        heavy = others.exp().sum(1, keepdim=True) > wanted
        low, high = torch.where(heavy, low, middle), torch.where(heavy, middle, high)
    shifted = torch.minimum(gaps + low, -margins).scatter(1, second, -margins)
    answer = (shifted + logits.double().gather(1, best)).to(logits)
    return lead(answer.scatter(1, best, logits.gather(1, best)), best)


def best_margin(goal: Goal, classes: int) -> Tensor:
    """Find the margin of the best answer that keeps the label.

    At margin m the label's probability lies between psi(m) = 1 / (1 + (K - 1) exp(-m)), all others
    tied with the runner-up, and phi(m) = 1 / (1 + exp(-m)), all others gone. Both grow, with slope
    q (1 - q) where they have the value q. So the objective is minimal

    - at t if psi(t) <= p <= phi(t), where it is 0;
    - above t if p > phi(t): a longer margin pays while beta q (1 - q) > 1, which ends at
      q = q+, or where phi reaches p;
    - below t if p < psi(t): either at t, or where psi has come down to p, or to q-
      below which a shorter margin costs more than it brings; whichever is better.

    q- and q+ solve beta q (1 - q) = 1. They do not exist for beta < 4: nothing pays then.

    Args:
        goal: The objective, float64.
        classes: K, at least 2.

    Returns:
        Margins, (n, 1).
    """
    targets, chances, beta = goal.targets, goal.chances.clamp_max(_NEAR_ONE), goal.beta
    root, crowd = max(0.0, 1 - 4 / beta) ** 0.5, math.log(classes - 1)
    lower, upper = (1 - root) / 2, (1 + root) / 2
    longer = torch.maximum(targets, chances.clamp_max(upper).logit())
    shorter = torch.minimum(targets, chances.clamp_min(lower).logit() + crowd).clamp_min(0.0)
    cost = targets - shorter + beta * ((shorter - crowd).sigmoid() - chances)
    floor, ceiling = (targets - crowd).sigmoid(), targets.sigmoid()
    shorter = torch.where(beta * (floor - chances) <= cost, targets, shorter)
    found = torch.where(chances > ceiling, longer, targets)
    return torch.where(chances < floor, shorter, found)
