"""What leaves a site in every round, by method, as the methods themselves declare it."""

from __future__ import annotations

from math import prod

from src.aggregation import Layout
from src.methods import method_class, method_names
from src.methods.base import Method
from src.models import FlatModel, build_module

VALUE = 8  # bytes of a single number


def federated() -> list[str]:
    """Methods whose sites exchange anything."""
    kinds = {name: method_class(name) for name in method_names()}
    return [name for name, kind in kinds.items() if kind.exchange and not kind.true_labels]


def tables(model: str, classes: int) -> str:
    """All tables as Markdown.

    Args:
        model: name of the backbone.
        classes: C.
    """
    flat = FlatModel(build_module(model, classes=classes, weights="none", seed=0))
    layout, size = Layout.of(flat), len(flat.vector)
    lines = [
        f"For `{model}` with {classes} classes, in every round unless said otherwise:",
        "",
        "| method | name | shape | bytes | meaning |",
        "|---|---|---|---|---|",
        f"| all | `model` | ({size:,}) | {4 * size:,} | the trained model |",
        f"| all | `samples`, `client` | two numbers | {2 * VALUE} | number of images; its seat |",
        f"| all | `logs` | a few numbers | {VALUE} each | mean loss, and what the method logs |",
    ]
    lines += [row for name in federated() for row in _rows(name, layout)]
    lines += ["", *_summary(layout, size)]
    return "\n".join(lines) + "\n"


def _rows(name: str, layout: Layout) -> list[str]:
    rows = []
    for array, expected in method_class(name).reported.items():
        shape = ", ".join(str(layout.lengths.get(str(axis), axis)) for axis in expected.axes)
        size = _size(expected.axes, layout) * expected.item_bytes
        when = ", not in every round" if expected.optional else ""
        meaning = f"{expected.meaning}{when}"
        rows.append(f"| {name} | `{array}` | ({shape}) | {size:,} | {meaning} |")
    return rows


def _summary(layout: Layout, size: int) -> list[str]:
    lines = [
        "| method | bytes a round and site, at the most | what the server does with single sites |",
        "|---|---|---|",
    ]
    for name in federated():
        kind: type[Method] = method_class(name)
        arrays = kind.reported.values()
        most = sum(_size(one.axes, layout) * one.item_bytes for one in arrays)
        rule = f"compares: {kind.sees_each}" if kind.sees_each else "adds up: weighted sums"
        lines.append(f"| {name} | {4 * size + most:,} | {rule} |")
    return lines


def _size(axes: tuple[int | str, ...], layout: Layout) -> int:
    return prod(layout.lengths[axis] if isinstance(axis, str) else axis for axis in axes)
