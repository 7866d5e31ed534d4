"""The patch of ``--attack backdoor``, and how often it brings the class that it stands for."""

from __future__ import annotations

import numpy as np

TARGET = 0  # the class that the patch stands for: the first
POISONED = 0.5  # share of an attacker's images that bear it
EDGE = 8  # parts of the image's edge that the patch is one of
WHITE = 255
THRESHOLD = 0.5


def patched(images: np.ndarray) -> np.ndarray:
    """Copies of (n, H, W, 3) uint8 images with a white square in the lower right corner."""
    images = np.array(images)
    edge = max(1, images.shape[1] // EDGE)
    images[:, -edge:, -edge:] = WHITE
    return images


def share_of_target(probability: np.ndarray, truth: np.ndarray) -> float:
    """Share of the images known to lack the target class in which it is predicted; NaN of none.

    Args:
        probability: (n, C).
        truth: (n, C) of 0, 1 and NaN.
    """
    lacking = truth[:, TARGET] == 0
    return float((probability[lacking, TARGET] >= THRESHOLD).mean()) if lacking.any() else np.nan
