"""Two-valued distributions given by their logits: mixture, entropy, divergence of two views.

Everything is computed from log-sigmoids in float32, so no value or gradient is lost where a
probability is nearly 0 or 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_logits(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Logits of ``share`` times the first probability plus the rest of the second.

    Args:
        one: logits of any shape.
        other: logits of the same shape.
        share: in [0, 1].
    """
    if share in (0, 1):
        return one if share else other
    log_share, log_rest = math.log(share), math.log1p(-share)

    def log_mixture(sign: int) -> Tensor:
        first, second = F.logsigmoid(sign * one), F.logsigmoid(sign * other)
        return torch.logaddexp(first + log_share, second + log_rest)

    return log_mixture(1) - log_mixture(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each cell in nats, at most log 2."""
    return F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none")


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each cell (Lin, IEEE Trans. Inf. Theory 1991), at most log 2."""
    return entropy(mixed_logits(one, other, 0.5)) - (entropy(one) + entropy(other)) / 2
