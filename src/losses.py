"""Pure functions on (logits, target, weight). All reduce after masking, in float32.

- Losses of single cells take logits and targets of one shape, (B, C).
- A soft target t stands for a label that is 1 with probability t: its loss is t times that of 1
  plus 1 - t times that of 0.
- Probabilities are kept as log-sigmoids, so neither values nor gradients overflow.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-8


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Sum of ``weight * values`` over the sum of weights; 0 where every weight is 0.

    Cells of weight 0 may hold anything, NaN included: they are cut out, not multiplied by 0.
    """
    values = torch.where(weight > 0, values, 0.0)
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each cell."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def masked_bce(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy over the cells of positive weight; all arguments are (B, C)."""
    target = torch.where(weight > 0, target, 0.0).float()
    return weighted_mean(bce(logits.float(), target), weight.float())


def focal(logits: Tensor, target: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """Cross-entropy faded by (1 - probability of the label)^gamma (Lin et al., ICCV 2017).

    ``alpha`` weighs positives, 1 - ``alpha`` negatives.
    """
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = -alpha * torch.exp(gamma * log_q) * log_p
    negative = -(1 - alpha) * torch.exp(gamma * log_p) * log_q
    return expected(positive, negative, target)


def asymmetric(
    logits: Tensor,
    target: Tensor,
    *,
    gamma_positive: float,
    gamma_negative: float,
    margin: float,
    detach: bool = False,
) -> Tensor:
    """Focal loss with two exponents, blind to negatives below a margin (Ridnik et al., ICCV 2021).

    Args:
        margin: subtracted from the probability of a negative, and what falls below 0 cut off.
        detach: whether the focusing factors pass no gradient, as in the official code.
    """
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    shifted = (log_p.exp() - margin).clamp_min(TINY)
    factors = [torch.exp(gamma_positive * log_q), shifted**gamma_negative]
    if detach:
        factors = [factor.detach() for factor in factors]
    # log(1 - p + margin), which stays finite however sure the prediction is
    log_rest = torch.logaddexp(log_q, torch.full_like(log_q, margin).log()).clamp_max(0)
    return expected(-factors[0] * log_p, -factors[1] * log_rest, target)


def generalised_cross_entropy(logits: Tensor, target: Tensor, *, q: float) -> Tensor:
    """(1 - p^q) / q for the label's probability p (Zhang and Sabuncu, NeurIPS 2018).

    Cross-entropy for q to 0, the absolute error for q = 1.
    """
    positive = -torch.expm1(q * F.logsigmoid(logits)) / q
    negative = -torch.expm1(q * F.logsigmoid(-logits)) / q
    return expected(positive, negative, target)


def symmetric_cross_entropy(
    logits: Tensor, target: Tensor, *, alpha: float, beta: float, log_zero: float
) -> Tensor:
    """Cross-entropy and reverse cross-entropy, in which log 0 is ``log_zero`` (Wang, ICCV 2019).

    The reverse term of a binary label is -log_zero times the probability of the other label.
    """
    probability = logits.sigmoid()
    reverse = -log_zero * expected(1 - probability, probability, target)
    return alpha * bce(logits, target) + beta * reverse


def expected(positive: Tensor, negative: Tensor, target: Tensor) -> Tensor:
    """Loss of a soft target from the losses of the labels 1 and 0."""
    return target * positive + (1 - target) * negative


def both_sides(logits: Tensor) -> Tensor:
    """(2, B, C) probabilities of the labels 1 and 0, kept off 0 and 1 by 1e-4 as ELR does."""
    probability = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    return torch.stack((probability, 1 - probability))


def early_learning_penalty(logits: Tensor, memory: Tensor) -> Tensor:
    """log(1 - <t, p>), negative, smallest where the prediction is the remembered one (ELR).

    Args:
        logits: (B, C).
        memory: (2, B, C) running means of the predictions for 1 and for 0; both start from 0,
            which pulls nowhere. One number a cell would start from a confident negative.
    """
    return torch.log1p(-(memory * both_sides(logits)).sum(dim=0))


def partial_mean(values: Tensor, weight: Tensor, *, gamma: float, tenth: float) -> Tensor:
    """Mean over images of g(r) / C times the sum over known cells (Durand et al., CVPR 2019).

    Args:
        values: (B, C) losses; read where ``weight`` is positive.
        weight: (B, C); r is the share of an image's cells whose weight is positive.
        gamma: exponent in g(r) = a r^gamma + b, where g(1) = 1.
        tenth: g(0.1), the weight of an image of whose cells a tenth is known.
    """
    share = (weight > 0).float().mean(dim=1)
    sums = (torch.where(weight > 0, values, 0.0) * weight).mean(dim=1)
    scale = known_share_weight(share.clamp_min(1 / weight.shape[1]), gamma=gamma, tenth=tenth)
    return weighted_mean(scale * sums, (share > 0).float())


def known_share_weight(share: Tensor, *, gamma: float, tenth: float) -> Tensor:
    """The g(r) of :func:`partial_mean`; for ``gamma`` 0 its limit, linear in log r."""
    if gamma == 0:
        return 1 + (tenth - 1) * share.log() / math.log(0.1)
    slope = (tenth - 1) / (math.pow(0.1, gamma) - 1)
    return 1 + slope * (share**gamma - 1)


def largest(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    """(B, C) bool: the ``count`` largest values among the candidates, or all if there are fewer.

    Exactly that many: of equal values the first in row order are taken.
    """
    count = min(count, int(candidates.sum()))
    ranked = torch.where(candidates, values.detach(), -torch.inf).flatten()
    chosen = torch.sort(ranked, descending=True, stable=True).indices[:count]
    mask = torch.zeros_like(ranked, dtype=torch.bool)
    mask[chosen] = True
    return mask.view(candidates.shape)


def label_margin(target: Tensor, prior: Tensor) -> Tensor:
    """FedNML's label-dependent shift of the logits (docs/methods.md 1.6).

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


# ---- two-valued distributions given by their logits


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
