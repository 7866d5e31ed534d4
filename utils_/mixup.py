"""MixUp of images and partly known labels (Zhang et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch


def mix_up(batch: Any, *, alpha: float, draw: np.random.Generator) -> Any:
    """Each image with another of the batch, both in random shares that add up to 1.

    A label enters with its image's share of the weight; so a cell that only one image knows keeps
    that image's label at less weight, and a loss linear in the target is the mixture of the two
    labels' losses. An image's own share is the larger one: over a random order that is the same
    distribution, and what is remembered by rows stays with the image that rules the mixture.

    Args:
        batch: a dataclass with ``images`` (B, ...), ``target`` (B, C) in [0, 1], 0 where weight
            is 0, and ``weight`` (B, C) at least 0.
        alpha: both parameters of the Beta distribution; 0 changes nothing.
        draw: where share and order come from.

    Returns:
        The batch with the three fields replaced.
    """
    if alpha == 0:
        return batch
    share = draw.beta(alpha, alpha)
    share = max(share, 1 - share)
    other = torch.from_numpy(draw.permutation(len(batch.images))).to(batch.images.device)
    images = share * batch.images + (1 - share) * batch.images[other]
    own, lent = share * batch.weight, (1 - share) * batch.weight[other]
    target = own * batch.target + lent * batch.target[other]
    target = (target / (own + lent).clamp_min(1e-12)).clamp(0, 1)
    return replace(batch, images=images, target=target, weight=own + lent)
