"""A gradient bandit that chooses from which classes of a pool to ask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEAST = 1e-6  # least deviation that a reward is divided by


class Bandit(nn.Module):
    """Draws classes by a policy that rewards shape; inside a class no image comes twice.

    The policy is the softmax of preferences H. A batch of actions a with rewards r adds
    (r - r̄) / N_a * (e_a - policy) to them, where r̄ is the mean of all rewards and N_a how often a
    class was drawn. A class that is used up is not drawn again. It is a module so that its buffers
    are put away and taken out again.

    Args:
        labels: Classes of the images, (n,), by number.
        classes: Number of these classes.
        answers: Number K of classes of the victim.
    """

    preferences: Tensor
    drawn: Tensor
    baseline: Tensor
    usual: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, labels: Tensor, classes: int, answers: int) -> None:
        super().__init__()
        self._labels, self._sizes = labels, labels.bincount(minlength=classes)
        self._members = labels.argsort(stable=True)
        self._firsts = self._sizes.cumsum(0) - self._sizes
        self.register_buffer("drawn", torch.zeros(classes, dtype=torch.int64))
        sizes = {"preferences": (classes,), "baseline": (), "usual": (answers,)}
        for name, shape in {**sizes, "mean": (3,), "squares": (3,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def policy(self, drawn: Tensor | None = None) -> Tensor:
        """Chances of the classes, (classes,); of one that is used up zero.

        Args:
            drawn: How often each was drawn; by default up to now.
        """
        over = (self.drawn if drawn is None else drawn) >= self._sizes
        return self.preferences.masked_fill(over, -torch.inf).softmax(0)

    def choose(self, count: int, stream: torch.Generator) -> Tensor:
        """Draw numbers of images, (count,), at most as many as are left."""
        numbers = []
        for _ in range(count):
            place = int(torch.multinomial(self.policy(), 1, generator=stream))
            numbers.append(self._members[self._firsts[place] + self.drawn[place]])
            self.drawn[place] += 1
        return torch.stack(numbers)

    def update(self, numbers: Tensor, answers: Tensor, losses: Tensor) -> None:
        """Learn from the answers about images that were just chosen.

        Args:
            numbers: Their numbers, (n,).
            answers: Probabilities, (n, K).
            losses: Losses of the clone on them, (n,).
        """
        self.reinforce(numbers, self.rewards(answers.double(), losses.double()))

    def reinforce(self, numbers: Tensor, rewards: Tensor) -> None:
        """Move the preferences, given the rewards, (n,), of images that were just chosen."""
        actions = self._labels[numbers]
        before = self.drawn - actions.bincount(minlength=len(self.drawn))
        self.baseline += (rewards - self.baseline).sum() / self.drawn.sum()
        gains = (rewards - self.baseline) / self.drawn[actions]
        self.preferences -= gains.sum() * self.policy(before)
        self.preferences.index_add_(0, actions, gains)

    def rewards(self, answers: Tensor, losses: Tensor) -> Tensor:
        """Reward certainty, diversity and loss: the mean of their running z-scores, (n,).

        Certainty is the lead of the best class, diversity what exceeds the mean answer.
        """
        self.usual += (answers - self.usual).sum(0) / self.drawn.sum()
        best = answers.topk(2).values
        diversity = (answers - self.usual).clamp_min(0).sum(1)
        return self._standardised(torch.stack((best[:, 0] - best[:, 1], diversity, losses), 1))

    def _standardised(self, signals: Tensor) -> Tensor:
        """Put signals, (n, 3), into what is known of their means and deviations; (n,)."""
        count, total = len(signals), self.drawn.sum()
        mean = signals.mean(0)
        gap = mean - self.mean
        self.squares += (signals - mean).square().sum(0) + gap**2 * (total - count) * count / total
        self.mean += gap * count / total
        return ((signals - self.mean) / (self.squares / total).sqrt().clamp_min(_LEAST)).mean(1)
