"""Where a noisy boundary lies on a segment, by the question that tells most (PopSkipJump)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from benchmark.types import Problem, Queries
from registry.moves.phases import Phase

SLOPES = 31  # inverse widths of the boundary, from 0.1 to 100 segments
NOISES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # chances of a wrong answer far from it
_STEADY = 10  # answers in a row that must leave the best guess as it is
_LOOKS = 500
_FLOOR = 1e-7  # of a probability: a wrong answer must not rule a guess out for ever


class InfoMax:
    """Bayesian search for the place, slope and noise of the boundary between two images.

    The chance of the true label at x, from 0 (adversarial end) to 1 (clean image), is modelled as
    noise + (1 - 2 noise) sigmoid(4 slope (x - place)), all three on grids with flat priors. Each
    question is asked where its answer shares most information with them. The noise found in an
    image's first search is kept in the later ones.

    Args:
        problem: The images under attack.
        grid: Intervals between the two ends.
        point: Gives the images of rows, (n,), at x, (n,) float64.
        then: Called with the rows that are through, (n,).

    Attributes:
        place: (B,) float64, the most probable place.
        slope: (B,) float64, the most probable slope.
        noise: (B,) float64, the most probable noise.
        phase: To be listed among the phases; images enter it by `begin`.
    """

    def __init__(
        self,
        problem: Problem,
        grid: int,
        point: Callable[[Tensor, Tensor], Tensor],
        then: Callable[[Tensor], None],
    ) -> None:
        self._point, self._then, self._grid = point, then, grid
        like = problem.images.new_zeros(())
        self._places = torch.linspace(0, 1, grid + 1).to(like)
        self._slopes = torch.logspace(-1, 2, SLOPES).to(like)
        away = torch.linspace(-1, 1, 2 * grid + 1).to(like)  # x - place
        curve = torch.sigmoid(4 * self._slopes[:, None] * away)  # slope, x - place
        # x, slope, place: for an x the curve is read backwards from x - 0 to x - 1.
        self._windows = curve.unfold(1, grid + 1, 1).flip(2).transpose(0, 1).contiguous()
        # Sums over places are convolutions; what wraps around lands on x that are not read.
        self._length = next_fast_len(2 * grid + 1, real=True)
        self._right = self._transform(curve)
        self._doubt = [
            self._transform(_entropy(_wrong(curve, number))) for number in range(len(NOISES))
        ]
        count = len(problem.labels)
        self._chance = like.new_zeros((count, len(NOISES), SLOPES, grid + 1))
        self._total = like.new_ones(count)  # sum of the chances, by which they are to be divided
        self._open = torch.ones((count, len(NOISES)), dtype=torch.bool, device=like.device)
        self._best = torch.zeros_like(problem.labels)
        self._asked, self._steady, self._looks = (torch.zeros_like(self._best) for _ in range(3))
        self.place, self.slope, self.noise = (
            torch.zeros_like(self._best, dtype=torch.float64) for _ in range(3)
        )
        self.phase = Phase(self._ask, self._tell)

    def begin(self, rows: Tensor) -> None:
        """Start a search with flat priors for rows, (n,)."""
        flat = self._open[rows].to(self._chance)
        flat /= flat.sum(1, keepdim=True) * self._chance[0, 0].numel()
        self._chance[rows] = flat[:, :, None, None].expand(-1, -1, *self._chance.shape[2:])
        self._best[rows], self._steady[rows], self._looks[rows] = -1, 0, 0
        self._total[rows] = 1.0

    def _transform(self, values: Tensor) -> Tensor:
        transformed: Tensor = torch.fft.rfft(values, self._length)
        return transformed

    def _at_each_x(self, chance: Tensor, kernel: Tensor) -> Tensor:
        """Sum transformed chances times a function of x - place, (n, grid + 1)."""
        sums: Tensor = torch.fft.irfft((chance * kernel).sum(1), self._length)
        return sums[:, self._grid : 2 * self._grid + 1]

    def _ask(self, rows: Tensor) -> Queries:
        """Ask where the answer tells most: its entropy less that which noise explains."""
        told = self._chance.new_zeros((len(rows), self._grid + 1))
        right = told.clone()
        for number, members in self._levels(rows):
            chance = self._chance[rows[members], number]
            known = self._transform(chance)
            told[members] -= self._at_each_x(known, self._doubt[number])
            mean = (1 - 2 * NOISES[number]) * self._at_each_x(known, self._right)
            right[members] += mean + NOISES[number] * chance.sum((1, 2))[:, None]
        share = self._total[rows, None]
        told = told / share + _entropy((right / share).clamp(0, 1))
        # Rounded, so that the sums' order does not decide between equals.
        self._asked[rows] = (told * 1e6).round().argmax(1)
        return Queries(self._point(rows, self._places[self._asked[rows]].double()), rows)

    def _levels(self, rows: Tensor) -> list[tuple[int, Tensor]]:
        """Levels of noise that are possible for some rows, and for which of them."""
        members = [self._open[rows, number].nonzero()[:, 0] for number in range(len(NOISES))]
        return [(number, found) for number, found in enumerate(members) if len(found)]

    def _tell(self, queries: Queries, hit: Tensor) -> None:
        rows = queries.rows
        seen = self._windows[self._asked[rows]]  # chance of the answer if there were no noise
        seen = torch.where(hit[:, None, None], 1 - seen, seen).div_(self._total[rows, None, None])
        total, top = (self._chance.new_zeros(len(rows)) for _ in range(2))
        best = torch.zeros_like(rows)
        for number, members in self._levels(rows):
            owners = rows[members]
            floor = (NOISES[number] / self._total[owners])[:, None, None]
            chance = self._chance[owners, number]
            chance *= (1 - 2 * NOISES[number]) * seen[members] + floor
            self._chance[owners, number] = chance.clamp_min_(_FLOOR / chance[0].numel())
            total[members] += chance.sum((1, 2))
            most, where = chance.flatten(1).max(1)
            larger = most > top[members]
            best[members[larger]] = (number * chance[0].numel() + where)[larger]
            top[members[larger]] = most[larger]
        self._total[rows] = total
        self._judge(rows, best)

    def _judge(self, rows: Tensor, best: Tensor) -> None:
        """End the search where the best guess no longer moves."""
        self._steady[rows] = torch.where(best == self._best[rows], self._steady[rows] + 1, 0)
        self._best[rows] = best
        self._looks[rows] += 1
        self._leave(rows[(self._steady[rows] >= _STEADY) | (self._looks[rows] >= _LOOKS)])

    def _leave(self, rows: Tensor) -> None:
        if not len(rows):
            return
        level, rest = self._best[rows] // self._chance[0, 0].numel(), self._best[rows]
        slope, place = rest // (self._grid + 1) % SLOPES, rest % (self._grid + 1)
        self.place[rows] = self._places[place.clamp_max(self._grid - 1)].double()  # not the image
        self.slope[rows] = self._slopes[slope].double()
        self.noise[rows] = torch.tensor(NOISES, device=rows.device).double()[level]
        self._open[rows] = False
        self._open[rows, level] = True
        self._then(rows)


def _wrong(curve: Tensor, number: int) -> Tensor:
    """Chance of the true label where the noise is the one with this number."""
    return NOISES[number] + (1 - 2 * NOISES[number]) * curve


def _entropy(chance: Tensor) -> Tensor:
    """Entropy of answers with these chances, natural units."""
    return -torch.xlogy(chance, chance) - torch.xlogy(1 - chance, 1 - chance)
