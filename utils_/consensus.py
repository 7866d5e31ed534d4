"""RSCFed's consensus: random groups, and a mean that trusts a member the less the further off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def draw_groups(
    members: int, *, share: float, times: int, draw: np.random.Generator
) -> list[list[int]]:
    """Random groups of 0 to ``members`` - 1, each drawn anew and in ascending order.

    Args:
        members: at least 1.
        share: of the members in a group, rounded up; at least one is taken.
        times: number of groups.
        draw: where the draws come from.
    """
    size = max(1, math.ceil(share * members - 1e-9))  # 0.6 of 5 is 3.0000000000000004
    chosen = (draw.choice(members, size, replace=False) for _ in range(times))
    return [sorted(group.tolist()) for group in chosen]


def distance_weighted(
    models: Sequence[Tensor], images: Sequence[float], *, strength: float, own: int
) -> Tensor:
    """Mean of the models, weights n exp(-strength d / n), d the distance to their plain mean.

    Weights are formed in logarithms: exponentials underflow to 0/0 when all models lie far off.

    Args:
        models: vectors (P,).
        images: n of each, above 0.
        strength: at least 0; 0 gives the plain mean.
        own: the first so many numbers are parameters, of which the distance is taken.
    """
    count = torch.tensor(images, dtype=torch.float64)
    mean = _mix(models, count / count.sum())
    distance = torch.stack([(model[:own] - mean[:own]).norm() for model in models])
    return _mix(models, torch.softmax(count.log() - strength * distance / count, dim=0)).float()


def _mix(models: Sequence[Tensor], shares: Tensor) -> Tensor:
    return sum(float(share) * model.double() for share, model in zip(shares, models, strict=True))
