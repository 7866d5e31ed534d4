"""FedELC's learned labels: one logit a cell, moved by gradient and set anew after each round.

A cell is a problem of two classes whose label has two logits; only their difference u matters. It
moves twice as fast as either would: the two have opposite gradients.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def first_logits(observed: np.ndarray, *, scale: float) -> np.ndarray:
    """(n, C) float32: ``scale`` for a present cell, -``scale`` for an absent, 0 where unknown.

    Args:
        observed: (n, C) of 0 and 1, NaN where not annotated.
    """
    return (scale * np.nan_to_num(2 * observed - 1)).astype(np.float32)


def label_divergence(logits: Tensor, label_logits: Tensor) -> Tensor:
    """KL(p || q) of each cell, p the prediction and q the learned label; in float32.

    Args:
        logits: of p, of any shape.
        label_logits: of q, of the same shape; they get no gradient.
    """
    p, u = logits.float().sigmoid(), label_logits.detach().float()
    present = F.logsigmoid(logits.float()) - F.logsigmoid(u)
    absent = F.logsigmoid(-logits.float()) - F.logsigmoid(-u)
    return p * present + (1 - p) * absent


def step(u: Tensor, p: Tensor, given: Tensor, *, rate: float, tie: float, classes: int) -> Tensor:
    """The label logits after one step down KL(p || q) / C + tie * CE(q, given).

    Args:
        u: logits of q, any shape.
        p: predictions, given: annotations 0 or 1, of the same shape.
        rate: length of the step for either of a label's two logits.
        classes: C.
    """
    q = u.sigmoid()
    return u - 2 * rate * ((q - p) / classes + tie * (q - given))


def merged(u: np.ndarray, predicted: np.ndarray, *, scale: float) -> np.ndarray:
    """Logits of the mean of learned label and prediction, each cell's two set to ``scale`` times.

    Of a label q and a prediction p the present class gets scale (q + p) / 2, the absent one the
    rest of ``scale``; their difference is scale (q + p - 1).
    """
    q = torch.from_numpy(u).sigmoid().numpy()
    return (scale * (q + predicted - 1)).astype(np.float32)
