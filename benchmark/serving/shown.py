"""Scores of answers as JSON shows them, and logits that show the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmark.scores import LEAST, Kind, Scores

Row = list[float | None]  # a score for each class, None where it is not shown

_TINY = 1e-37  # a probability of zero, before its logarithm is taken; float32 holds it
_BELOW = 1 - 1e-6  # of the least that is shown: a hidden class is never among the best
_SLACK = 1e-3  # by which probabilities may leave [0, 1] or their sum 1


def written_scores(logits: Tensor, scores: Scores) -> list[Row] | None:
    """Write what is shown of logits, (n, K); None where it is the label alone.

    Logits and log-probabilities are written as they are, all else as probabilities, without the
    logarithm and the limits that attacks meet (`Scores.show`).
    """
    if scores.kind is Kind.LABEL:
        return None
    if scores.kind is Kind.LOGITS:
        return _rows(logits)
    if scores.kind is Kind.LOG_PROBABILITIES:
        return _rows(logits.log_softmax(1))
    chances = logits.softmax(1)
    if scores.kind is Kind.ROUNDED:
        return [[round(chance, scores.number) for chance in row] for row in chances.tolist()]
    if scores.kind is Kind.PROBABILITIES:
        return _rows(chances)
    labels = logits.argmax(1, keepdim=True)
    first = chances.scatter(1, labels, 2.0)  # of several best ones, that which is the label
    best = first.topk(min(scores.number, chances.shape[1]), 1).indices
    shown = torch.zeros_like(chances, dtype=torch.bool).scatter_(1, best, True)
    pairs = zip(chances.tolist(), shown.tolist(), strict=True)
    return [[c if s else None for c, s in zip(*pair, strict=True)] for pair in pairs]


def _rows(values: Tensor) -> list[Row]:
    rows: list[Row] = values.tolist()
    return rows


def read_scores(rows: object, labels: Tensor, classes: int, scores: Scores) -> Tensor:
    """Find logits, (n, K) float32, that `scores` shows as they are written, with these labels.

    What is not shown is filled in evenly: hidden classes share what the shown ones leave, rounded
    probabilities are moved inside their rounding until they sum to 1.

    Args:
        rows: What the answer says.
        labels: Predicted labels, (n,).
        classes: Number of classes K.
        scores: What is shown.

    Raises:
        ValueError: If it is not what is to be shown, or a label is not that of the best score.
    """
    if scores.kind is Kind.LABEL:
        return torch.full((len(labels), classes), LEAST).scatter_(1, labels[:, None], 1.0).log()
    shown = _numbers(rows, len(labels), classes)
    hidden = shown.isnan()
    most = scores.number if scores.kind is Kind.TOP else classes
    if not bool((hidden.sum(1) == max(0, classes - most)).all()):
        raise ValueError(f"it does not show {scores} of {classes} classes")
    best = torch.where(hidden, -math.inf, shown).amax(1)
    if not bool((shown.gather(1, labels[:, None])[:, 0] == best).all()):
        raise ValueError("a label is not that of the best score")
    logits = _LOGITS[scores.kind](shown, scores).float()
    if not bool(logits.isfinite().all()):
        raise ValueError("a score is too large")
    return _led(logits, labels)


def _numbers(rows: object, count: int, classes: int) -> Tensor:
    """Scores as numbers, (n, K) float64, NaN where they are hidden."""
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError(f"it has not one list of scores for each of {count} images")
    if not all(isinstance(row, list) and len(row) == classes for row in rows):
        raise ValueError(f"it has not one score for each of {classes} classes")
    if not all(score is None or type(score) in {int, float} for row in rows for score in row):
        raise ValueError("a score is no number")
    numbers = [[math.nan if score is None else float(score) for score in row] for row in rows]
    if any(score is not None and not math.isfinite(score) for row in rows for score in row):
        raise ValueError("a score is NaN or infinite")
    return torch.tensor(numbers, dtype=torch.float64).view(count, classes)


def _as_written(shown: Tensor, _scores: Scores) -> Tensor:
    return shown


def _normalised(shown: Tensor, scores: Scores) -> Tensor:
    _check_chances(shown.exp(), scores)
    return shown


def _logarithms(chances: Tensor, scores: Scores) -> Tensor:
    _check_chances(chances, scores)
    return chances.clamp_min(_TINY).log()


def _filled(chances: Tensor, _scores: Scores) -> Tensor:
    hidden = chances.isnan()
    known = chances.nansum(1, keepdim=True)
    if not bool(((chances >= 0) | hidden).all() and (known <= 1 + _SLACK).all()):
        raise ValueError("the probabilities are none")
    each = (1 - known).clamp_min(0) / hidden.sum(1, keepdim=True).clamp_min(1)
    least = torch.where(hidden, math.inf, chances).amin(1, keepdim=True)
    each = torch.minimum(each, least * _BELOW)
    return torch.where(hidden, each, chances).clamp_min(_TINY).log()


def _unrounded(chances: Tensor, scores: Scores) -> Tensor:
    half = 0.5 * 10.0**-scores.number
    excess = chances.sum(1, keepdim=True) - 1
    room = torch.where(excess > 0, chances.clamp(0, half), half)
    share = excess / room.sum(1, keepdim=True).clamp_min(_TINY)
    if not bool((chances >= 0).all() and (share.abs() <= 1 + _SLACK).all()):
        raise ValueError("the probabilities do not sum to 1 within their rounding")
    return (chances - share * room).clamp_min(_TINY).log()


def _check_chances(chances: Tensor, _scores: Scores) -> None:
    if not bool((chances >= 0).all() and ((chances.sum(1) - 1).abs() <= _SLACK).all()):
        raise ValueError("the probabilities do not sum to 1")


_LOGITS: dict[Kind, Callable[[Tensor, Scores], Tensor]] = {
    Kind.LOGITS: _as_written,
    Kind.LOG_PROBABILITIES: _normalised,
    Kind.PROBABILITIES: _logarithms,
    Kind.TOP: _filled,
    Kind.ROUNDED: _unrounded,
}


def _led(logits: Tensor, labels: Tensor) -> Tensor:
    """Raise the label's logit above those that equal it, by the least there is."""
    best = logits.amax(1)
    above = torch.nextafter(best, torch.tensor(math.inf))
    own = torch.where(logits.argmax(1) == labels, logits.gather(1, labels[:, None])[:, 0], above)
    return logits.scatter(1, labels[:, None], own[:, None])
