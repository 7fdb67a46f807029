"""Temperature scaling: the one number that calibrates a classifier's confidence."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmark.data import Dataset, Split
from benchmark.victim import Victim

_BOUNDS = (math.log(0.05), math.log(20.0))  # of the logarithm of the temperature
_SAMPLES, _CHUNK = 500, 50  # calibration images, and how many are classified at once


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature T whose softmax(z / T) gives the labels the least mean log-loss.

    Guo et al.: On Calibration of Modern Neural Networks (ICML 2017), section 4.2. The loss is
    convex in 1 / T, so it has one minimum.

    Args:
        logits: z, (n, K).
        labels: True classes, (n,).

    Returns:
        T, between 0.05 and 20; the lower bound if all labels are predicted.
    """
    scores, classes = logits.double().cpu(), labels.cpu()

    def loss(logarithm: float) -> float:
        return float(cross_entropy(scores / math.exp(logarithm), classes))

    return math.exp(minimize_scalar(loss, bounds=_BOUNDS, method="bounded").x)


def calibrated_temperature(victim: Victim, data: Dataset) -> float:
    """Fit the temperature of a victim on calibration images, at most 500."""
    count = max(1, min(_SAMPLES, len(data.splits[Split.CALIBRATE])))
    logits, labels = [], []
    for first in range(0, count, _CHUNK):
        samples = data.take(Split.CALIBRATE, min(_CHUNK, count - first), first)
        with torch.no_grad():
            logits.append(victim(samples.images.to(victim.mean)))
        labels.append(samples.labels)
    return fitted_temperature(torch.cat(logits), torch.cat(labels))
