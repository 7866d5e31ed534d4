"""What an array that comes from elsewhere must be like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LARGEST = 1e15  # of sums of squares of such numbers float32 can hold many


@dataclass(frozen=True)
class Expected:
    """What is known of an array beforehand.

    Attributes:
        axes: how long each axis is: a number, or a name for it.
        unknown: whether NaN may stand for what is not known.
        optional: whether the array may be absent.
        meaning: for whoever asks what leaves a site.
        item_bytes: of one number, as honest sites send it.
    """

    axes: tuple[int | str, ...]
    unknown: bool = False
    optional: bool = False
    meaning: str = ""
    item_bytes: int = 4


def all_finite(vector: Tensor, *, most: float = np.inf) -> bool:
    """Whether all values of a (P,) vector are finite, and of at most that size; P is at least 1."""
    size = largest_size(vector)
    return math.isfinite(size) and size <= most


def largest_size(vector: Tensor) -> float:
    """The largest absolute value of a (P,) vector, not finite if any is not; P is at least 1."""
    least, largest = torch.stack(vector.aminmax()).tolist()  # both NaN if any value is
    return float(max(largest, -least))


def array_fault(
    array: np.ndarray | None, expected: Expected | None, *, lengths: Mapping[str, int]
) -> str | None:
    """What is wrong with an array, as the end of a sentence; None where nothing is.

    Args:
        array: None where it is absent.
        expected: None where nothing is known; then it must hold finite numbers.
        lengths: of the axes by their names; one that is not named here may have any.
    """
    if array is None:
        return None if expected is None or expected.optional else "is absent"
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        return f"holds {values.dtype} instead of numbers"
    if expected is not None and not _fits(values.shape, expected, lengths):
        wanted = ", ".join(str(lengths.get(str(axis), axis)) for axis in expected.axes)
        return f"has shape {values.shape} instead of ({wanted})"
    may_be_nan = expected is not None and expected.unknown
    if (np.isinf(values) if may_be_nan else ~np.isfinite(values)).any():
        return "holds values that are not finite"
    if values.dtype.kind == "f" and (np.abs(values) > LARGEST).any():
        return f"holds values beyond {LARGEST:g}"
    return None


def _fits(shape: tuple[int, ...], expected: Expected, lengths: Mapping[str, int]) -> bool:
    if len(shape) != len(expected.axes):
        return False
    pairs = zip(expected.axes, shape, strict=True)
    return all(
        lengths.get(axis, n) == n if isinstance(axis, str) else axis == n for axis, n in pairs
    )
