"""Arrays beside the model: what is wrong with one is named, and its report left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from src.aggregation import Frame, Layout, fault
from src.messages import Report
from utils_.arrays import Expected

LENGTH, CLASSES = 11, 2
# Two classes with two features each, the bias, four more parameters at the front, one variance.
LAYOUT = Layout(10, slice(4, 8), slice(8, 10), (slice(10, 11),))
EXPECTED = {
    "table": Expected((2, "classes", "features")),
    "losses": Expected(("classes",), unknown=True, optional=True),
    "change": Expected(("parameters",), optional=True),
    "level": Expected((), optional=True),
}
TABLE = np.ones((2, CLASSES, 2), np.float32)
FRAME = Frame(torch.zeros(LENGTH), LAYOUT, expected=EXPECTED)


def extras_fault(**extras: Any) -> str | None:
    """Of a report that holds these arrays, and the table unless it is given."""
    report = Report(0, 10, torch.ones(LENGTH), {"table": TABLE} | extras)
    return fault(report, FRAME)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["table", "change", "level", "nobody_named_it"])
def test_arrays_that_are_not_finite_are_a_fault(name: str, value: float) -> None:
    shapes = {"table": TABLE.shape, "change": (10,), "level": ()}
    array = np.ones(shapes.get(name, (7, 7)))
    assert extras_fault(**{name: array}) is None
    array[(-1,) * array.ndim] = value
    found = extras_fault(**{name: array})
    assert found == f"its array '{name}' holds values that are not finite"


def test_numbers_whose_sums_would_overflow_are_a_fault() -> None:
    assert extras_fault(change=np.full(10, 9e14)) is None
    assert extras_fault(change=-np.full(10, 2e15)) == "its array 'change' holds values beyond 1e+15"
    assert extras_fault(losses=np.array([np.nan, 2e15])) == (
        "its array 'losses' holds values beyond 1e+15"
    )
    assert extras_fault(counts=np.array([2**62])) is None  # whole numbers do not overflow to inf


def test_nan_may_mean_unknown_and_infinity_may_not() -> None:
    assert extras_fault(losses=np.array([np.nan, 1])) is None
    assert extras_fault(losses=np.array([np.nan, np.nan])) is None
    found = extras_fault(losses=np.array([np.nan, np.inf]))
    assert found == "its array 'losses' holds values that are not finite"


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("table", (2, CLASSES + 1, 2), "(2, 2, 2)"),
        ("table", (3, CLASSES, 2), "(2, 2, 2)"),
        ("table", (2, CLASSES, 3), "(2, 2, 2)"),
        ("table", (2, CLASSES), "(2, 2, 2)"),
        ("losses", (CLASSES, 1), "(2)"),
        ("losses", (), "(2)"),
        ("change", (LENGTH,), "(10)"),
        ("level", (1,), "()"),
    ],
)
def test_arrays_of_another_shape_are_a_fault(name: str, shape: tuple, wanted: str) -> None:
    found = extras_fault(**{name: np.zeros(shape)})
    assert found == f"its array '{name}' has shape {shape} instead of {wanted}"


def test_arrays_must_hold_numbers_and_be_there() -> None:
    assert extras_fault(table=np.ones(TABLE.shape, bool)) is None
    assert extras_fault(table=np.ones(TABLE.shape, np.int8)) is None
    for kind in (object, complex, "U3"):
        found = extras_fault(table=TABLE.astype(kind))
        assert found.startswith("its array 'table' holds ") and found.endswith(
            " instead of numbers"
        )
    assert fault(Report(0, 10, torch.ones(LENGTH)), FRAME) == "its array 'table' is absent"


def test_without_a_head_axes_of_classes_and_features_may_have_any_length() -> None:
    frame, table = replace(FRAME, layout=Layout(10)), np.ones((2, 5, 9))
    assert fault(Report(0, 10, torch.ones(LENGTH), {"table": table}), frame) is None
    found = fault(Report(0, 10, torch.ones(LENGTH), {"table": table[0]}), frame)
    assert found == "its array 'table' has shape (5, 9) instead of (2, classes, features)"
