"""Pure functions on (logits, target, weight). All reduce after masking, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Sum of ``weight * values`` over the sum of weights; 0 where every weight is 0.

    Cells of weight 0 may hold anything, NaN included: they are cut out, not multiplied by 0.
    """
    values = torch.where(weight > 0, values, 0.0)
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)


def masked_bce(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy over the cells of positive weight; all arguments are (B, C)."""
    target = torch.where(weight > 0, target, 0.0).float()
    values = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return weighted_mean(values, weight.float())


def label_margin(target: Tensor, prior: Tensor) -> Tensor:
    """FedNML's label-dependent shift of the logits (methods.md 1.6).

    log(pi) where the target is exactly 1, log(1 - pi) elsewhere: a rare positive has to be
    predicted with a margin of |log pi|, a negative with almost none. Not logit adjustment
    (Menon et al., ICLR 2021), whose shift does not depend on the label.

    Args:
        target: (B, C) in [0, 1].
        prior: (C,) share of positives; NaN means unknown and shifts nothing.
    """
    known = ~torch.isnan(prior)
    prior = torch.where(known, prior, 0.5).clamp(1e-12, 1 - 1e-7)
    shift = torch.where(target == 1, prior.log(), torch.log1p(-prior))
    return torch.where(known, shift, 0.0)


def ramp(time: float, *, begin: float, end: float, kappa: float) -> float:
    """Gaussian ramp from exp(-kappa) at ``begin`` to 1 at ``end`` (Laine and Aila, ICLR 2017)."""
    if end <= begin:
        return 1.0
    share = (min(max(time, begin), end) - begin) / (end - begin)
    return float(torch.exp(torch.tensor(-kappa * (1 - share) ** 2, dtype=torch.float64)))
