"""Parameters of methods and losses: dataclass fields that carry their meaning and range."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import Field, field, fields
from typing import Any

import numpy as np

from utils_.errors import UserError, nearest


def param(default: float | bool, help: str, low: float = 0.0, high: float = 1.0) -> Any:
    """A field of ``Params``: its default, its meaning and its closed range."""
    return field(default=default, metadata={"help": help, "range": (low, high)})


def parse_params(
    owner: type[Any], given: dict[str, Any], *, flag: str = "--param", kind: str = "method"
) -> Any:
    """Build ``owner.Params`` from key=value pairs, checked by the fields' types and ranges.

    Args:
        owner: a class with a dataclass ``Params``, such as a method or a loss.
        given: the pairs.
        flag: the option they came from, for the message.
        kind: what ``owner`` is, for the message.

    Returns:
        An instance of ``owner.Params``.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of range; or what the
            ``__post_init__`` of ``Params`` says of values that do not go together.
    """
    known = {entry.name: entry for entry in fields(owner.Params)}
    values = {}
    for key, value in given.items():
        if key not in known:
            hint = nearest(key, known) if known else "it has none"
            raise UserError(f"{flag} {key}: unknown parameter of this {kind}; {hint}")
        values[key] = _convert(known[key], value, flag)
    return owner.Params(**values)


def plain(number: float) -> str:
    """A number as the command line takes it: 1000000, which 1e+06 is not for a whole one."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _convert(entry: Field[Any], value: Any, flag: str) -> float:
    if isinstance(value, str):  # YAML takes 1e-3, which lacks a point, for a word
        with suppress(ValueError):
            value = float(value)
    kind: type[float] = {"bool": bool, "int": int, "float": float}[str(entry.type)]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {bool: isinstance(value, bool), int: number and float(value).is_integer(), float: number}
    if not fits[kind]:
        raise UserError(f"{flag} {entry.name}={value}: give a value of type {entry.type}")
    low, high = entry.metadata.get("range", (-np.inf, np.inf))
    if kind is not bool and not low <= value <= high:
        bounds = f"{plain(low)} to {plain(high)}"
        raise UserError(f"{flag} {entry.name}={value}: give a number from {bounds}")
    return kind(value)
