"""From pixels of more than 8 bits to 0..255: which value becomes black and which white.

Cameras and CT scanners fill 10 to 14 of the 16 bits of a file, so a division by 257 gives images
that are nearly black. The range that is used is measured over the whole set: measured for each
image, it would make a dark image of an overexposed one and hide what the values say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from utils_.errors import UserError

AUTO, FULL = "auto", "full"
Bounds = tuple[float, float]
"""The value that becomes 0 and the one that becomes 255."""

BLOCK = 2**20  # values that are looked at in one go
TAIL = 1e-4  # share of an image's pixels at each end that may be clipped: dead pixels, reflections
DARK = 8  # an image that uses less than this part of the set's range comes out nearly black


def parse_range(text: str) -> Bounds | None:
    """Return the two numbers of ``LOW,HIGH``; None for ``auto`` and ``full``.

    Raises:
        UserError: it is none of the three, or LOW is not below HIGH.
    """
    if text in (AUTO, FULL):
        return None
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"--pixel-range {text}: give auto, full or two numbers, the lower first, "
            "as in --pixel-range=0,4095"
        )
    return low, high


def range_text(bounds: Bounds) -> str:
    """Return the bounds as parse_range reads them, without loss."""
    return ",".join(f"{value:.17g}" for value in bounds)


def used_range(values: np.ndarray) -> Bounds:
    """Return the range of an image's values, but for TAIL at each end."""
    low = np.quantile(values, TAIL, method="lower")
    high = np.quantile(values, 1 - TAIL, method="higher")
    return float(low), float(high)


def common_range(ranges: Sequence[Bounds]) -> Bounds:
    """Return the range that all images of a set use together, at least 1 wide."""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return (low, high) if low < high else (low, low + 1)


def too_dark(image: Bounds, common: Bounds) -> bool:
    """Whether an image shows something, but so low in the set's range that it is nearly black."""
    return image[0] < image[1] and DARK * (image[1] - common[0]) < common[1] - common[0]


def shades(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the values as uint8: ``bounds`` become 0 and 255, what lies outside is clipped."""
    low, high = bounds

    def scaled(block: np.ndarray) -> np.ndarray:
        return np.rint((block.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255)

    return in_blocks(values, scaled)


def in_blocks(values: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what ``work`` makes of the rows, as uint8, with the memory of few rows at a time."""
    found = np.empty(values.shape, np.uint8)
    step = max(1, BLOCK // max(1, values[:1].size))
    for first in range(0, len(values), step):
        found[first : first + step] = work(values[first : first + step])
    return found
