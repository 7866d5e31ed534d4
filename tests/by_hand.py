"""Losses and such of single cells in Python's floats, and how far float32 may be from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np


def float32_tolerance(terms: int, scale: Any = 1) -> float:
    """How far two ways to compute the same number in float32 may end apart, by rounding alone.

    Which way a sum is added up, and whether a product is rounded before it is added, is up to the
    processor and the libraries.

    Args:
        terms: the numbers added up, and the steps on the way to each of them.
        scale: the numbers on the way, of which the largest counts; 1 where all are smaller.
    """
    return terms * 2.0**-23 * max(1.0, float(np.abs(np.asarray(scale)).max()))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p) if p < 1 else math.inf


def absence(p: float, share: float) -> float:
    """How sure a prediction is of absence, were half of the images positive; share at most 0.5."""
    return sigmoid(logit(min(share, 0.5)) - logit(p)) if p > 0 else 1.0


def cross_entropy(z: float, y: float) -> float:
    """Of a logit and a target."""
    return max(z, 0) - z * y + math.log1p(math.exp(-abs(z)))


def binary_entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def mean(values: Iterable[float]) -> float:
    """0 for nothing."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def cosine(one: Iterable[float], other: Iterable[float]) -> float:
    one, other = list(one), list(other)
    norms = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / norms if norms else 0.0
