"""How far a clone's answers are from a victim's."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax

_FLOOR = 1e-12  # of probabilities, inside a logarithm only


def divergence(answers: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a clone from a victim, of each image on its own.

    Args:
        answers: Probabilities that the victim gave, (..., K).
        logits: What the clone says, (..., K).

    Returns:
        KL(answers || softmax(logits)), (...), in nats.
    """
    return (answers * (answers.clamp_min(_FLOOR).log() - log_softmax(logits, -1))).sum(-1)
