"""How far a defense's answers to clean images are from those of the bare victim."""

from __future__ import annotations

import torch
from torch import Tensor

_BINS = 15


def closeness(defended: Tensor, bare: Tensor) -> dict[str, float | None]:
    """Compare answers to the same images (section 14.4 of the defenses' specification).

    Args:
        defended: Logits of the defended victim, (n, K).
        bare: Logits of the bare victim, (n, K).

    Returns:
        `logit_difference`: mean l2 distance, None where the defense answers with
        log-probabilities, which no distance to logits measures; `logit_difference_relative`: the
        same over the norm of the bare logits, both without their mean over classes;
        `confidence_difference`: mean change of the largest probability;
        `probability_difference`: mean l1 distance of probabilities, 0 to 2.
    """
    shown, true = defended.softmax(1), bare.softmax(1)
    apart = _centred(defended) - _centred(bare)
    return {
        "logit_difference": None
        if _normalised(defended) and not _normalised(bare)
        else float((defended - bare).norm(dim=1).mean()),
        "logit_difference_relative": float(
            (apart.norm(dim=1) / _centred(bare).norm(dim=1).clamp_min(1e-12)).mean()
        ),
        "confidence_difference": float((shown.amax(1) - true.amax(1)).abs().mean()),
        "probability_difference": float((shown - true).abs().sum(1).mean()),
    }


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error over 15 bins of equal width, 0 to 1."""
    confidence, found = logits.double().softmax(1).max(1)
    right = (found == labels).double()
    place = (confidence * _BINS).long().clamp_max(_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64, device=logits.device)
    return float(gaps.index_add_(0, place, right - confidence).abs().sum() / len(labels))


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _normalised(logits: Tensor) -> bool:
    """They are log-probabilities: they sum to one as they are."""
    return bool(logits.logsumexp(1).abs().max() < 1e-4)
