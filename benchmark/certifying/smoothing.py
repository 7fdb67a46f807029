"""PREDICT and CERTIFY of Cohen et al. (2019): what a smoothed classifier says, and how far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmark.certifying.bounds import (
    Floats,
    Ints,
    chance_of,
    lower_bound,
    most_likely,
    radius,
)
from benchmark.rng import RowRng

ABSTAIN = -1  # no class is told
_GIVEN_UP = 0.001  # chance that a radius within reach is given up at a look

Classify = Callable[[Tensor, Tensor], Tensor]  # noisy images, rows -> labels, (n,)


@dataclass(frozen=True)
class Smoothing:
    """How a classifier is smoothed and certified.

    Attributes:
        sigma: Standard deviation of the Gaussian noise, pixel units; it is not clipped.
        selection: Samples that choose the class (n0).
        estimation: Further samples that bound its chance (n), at most.
        alpha: Chance, for each image, that a certificate is wrong.
        looks: Numbers of estimation samples after which it may stop, ascending, each with its part
            of alpha; the last is `estimation`. Without looks it is CERTIFY as published.
        radii: Radii that are asked about, ascending from 0: it stops where the next of them is out
            of reach, by all samples that are left or by what the chance is surely below. None means
            that every radius counts.
    """

    sigma: float
    selection: int = 100
    estimation: int = 10_000
    alpha: float = 0.001
    looks: tuple[int, ...] = ()
    radii: tuple[float, ...] | None = None

    @property
    def marks(self) -> tuple[int, ...]:
        """Where it looks."""
        return self.looks or (self.estimation,)

    @property
    def share(self) -> float:
        """Part of alpha for each look (Bonferroni): stopping at any of them is valid."""
        return self.alpha / len(self.marks)


@dataclass(frozen=True)
class Certificates:
    """What was found of each image.

    Attributes:
        label: (n,) class, or `ABSTAIN`.
        radius: (n,) l2 radius, pixel units; 0 where it abstains.
        hits: (n,) estimation samples with the class that was chosen.
        samples: (n,) estimation samples.
    """

    label: Ints
    radius: Floats
    hits: Ints
    samples: Ints

    def certified(self, labels: Ints, radii: Sequence[float]) -> list[float]:
        """Certified accuracy: share of images that are right at least as far as each radius."""
        right = self.label == labels
        return [float((right & (self.radius >= far)).mean()) for far in radii]


class Sampler:
    """Draws noisy copies of images and counts the labels that a classifier gives them.

    Args:
        classify: The classifier behind the noise.
        images: (n, C, H, W) in [0, 1].
        num_classes: Number of classes K.
        sigma: Standard deviation of the noise.
        rng: One stream an image, so that counts do not depend on company or batches.
        batch: Noisy images shown together.
    """

    def __init__(
        self,
        classify: Classify,
        images: Tensor,
        num_classes: int,
        sigma: float,
        rng: RowRng,
        batch: int,
    ) -> None:
        self._classify, self._images, self._sigma = classify, images, sigma
        self._num_classes, self._rng, self._batch = num_classes, rng, batch

    @torch.no_grad()
    def counts(self, rows: Tensor, samples: int) -> Ints:
        """Count the labels of so many fresh noisy copies of some images, (m, K)."""
        found = torch.zeros(len(rows) * self._num_classes, dtype=torch.int64)
        places = torch.arange(len(rows)).repeat_interleave(samples)
        for part in torch.split(places, self._batch):
            mine = rows[part].to(self._images.device)
            shown = self._images[mine]
            noise = self._rng.normal(mine, tuple(shown.shape[1:])).to(shown)
            labels = self._classify(shown + self._sigma * noise, mine).cpu()
            found += torch.bincount(part * self._num_classes + labels, minlength=len(found))
        return found.view(len(rows), self._num_classes).numpy()


def certify(sampler: Sampler, count: int, how: Smoothing) -> Certificates:
    """Certify images 0 to count - 1 (CERTIFY, figure 2 of the paper).

    The class is chosen by `selection` samples (the lowest of equals) and never again; others bound
    its chance. With several looks all of their bounds hold together with chance 1 - alpha, so it
    may stop at any of them and take the best.
    """
    rows = torch.arange(count)
    chosen = sampler.counts(rows, how.selection).argmax(1)
    hits = np.zeros(count, dtype=np.int64)
    samples = np.zeros(count, dtype=np.int64)
    bound = np.zeros(count)
    live = np.ones(count, dtype=bool)
    for mark in how.marks:
        index = live.nonzero()[0]
        if not len(index):
            break
        fresh = sampler.counts(torch.from_numpy(index), mark - int(samples[index[0]]))
        hits[index] += fresh[np.arange(len(index)), chosen[index]]
        samples[index] = mark
        here = lower_bound(hits[index], mark, how.share)
        bound[index] = np.maximum(bound[index], here)
        live[index] = ~_settled(hits[index], bound[index], mark, how)
    label = np.where(bound > 0.5, chosen, ABSTAIN)
    return Certificates(label, radius(bound, how.sigma), hits, samples)


def _settled(hits: Ints, bound: Floats, mark: int, how: Smoothing) -> npt.NDArray[np.bool_]:
    """Which images need no further sample: the next radius is out of reach, or as good as."""
    last = how.marks[-1]
    best = np.maximum(bound, lower_bound(hits + last - mark, last, how.share))
    if how.radii is None:
        return radius(best, how.sigma) <= radius(bound, how.sigma)
    wanted = np.array([*chance_of(np.array(how.radii), how.sigma), np.inf])
    place = np.searchsorted(wanted, bound, side="left")  # the first chance not yet exceeded
    # Giving up too early costs power and breaks no certificate: the bounds hold at every look.
    likely = 1.0 - lower_bound(mark - hits, mark, _GIVEN_UP)
    return (best <= wanted[place]) | (likely <= wanted[place])


def predict(sampler: Sampler, count: int, samples: int, alpha: float) -> Ints:
    """Tell the class of images 0 to count - 1, or abstain (PREDICT of the paper), (count,).

    A class that is told is that of the smoothed classifier with chance 1 - alpha.
    """
    counts = sampler.counts(torch.arange(count), samples)
    order = np.argsort(-counts, axis=1, kind="stable")
    rows = np.arange(count)
    first, second = (counts[rows, order[:, place]] for place in (0, 1))
    return np.where(most_likely(first, second) <= alpha, order[:, 0], ABSTAIN)
