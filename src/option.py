"""One setting of a run: its default, meaning and range, and the check of a value given for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, field
from typing import Any

from utils_.errors import UserError, as_known, nearest
from utils_.params import plain


def option(
    default: Any,
    help: str,
    *,
    choices: Callable[[], Sequence[str]] | None = None,
    low: float | None = None,
    high: float | None = None,
    parse: Callable[[str], Any] | None = None,
    result: bool = True,
    group: str = "",
    later: bool = False,
) -> Any:
    """One setting: its default, meaning, names or closed range.

    ``result=False`` marks settings that change where or how a run is done, not what it yields.
    ``group`` is the heading of ``--help`` under which it stands, with all that follow until another
    one is given; a heading may come again. ``later=True`` is for a setting that came after runs had
    been made: its default leaves their hashes as they were.
    """
    parse = parse or type(default)
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "parse": parse}
    metadata |= {"group": group, "later": later}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata | {"result": result})
    return field(default=default, metadata=metadata | {"result": result})


def checked(option_field: Field[Any], value: Any) -> Any:
    """Convert one value to its setting's type and check names and range."""
    rules, name = option_field.metadata, option_field.name
    if value is None and option_field.default is None:
        return None
    value = _converted(rules["parse"], value, name)
    if rules["choices"]:
        return _chosen(name, value, rules["choices"]())
    low, high = rules["low"], rules["high"]
    if low is not None and not low <= value <= (high if high is not None else float("inf")):
        upper = f" to {plain(high)}" if high is not None else " or more"
        usage = f"give a number from {plain(low)}{upper}"
        raise UserError(f"{flag(name)} {value}: out of range; {usage}")
    return value


def _chosen(name: str, value: str, choices: Sequence[str]) -> str:
    """Return the choice of that name, in whatever case it is written."""
    chosen = as_known(value, choices)
    if chosen not in choices:
        hint = nearest(value, choices)
        raise UserError(f"{flag(name)} {value}: unknown {name.replace('_', ' ')}; {hint}")
    return chosen


def _converted(parse: Callable[[str], Any] | type, value: Any, name: str) -> Any:
    if parse is dict:
        if not isinstance(value, dict):
            raise UserError(f"{flag(name)} {value}: give key=value")
        return dict(value)
    if parse is bool:
        if not isinstance(value, bool):
            raise UserError(f"{flag(name)} {value}: give true or false")
        return value
    if value is None or isinstance(value, bool | list | dict):
        raise UserError(f"{flag(name)} {value}: give a single {_kind(parse)}")
    try:
        return parse(str(value))
    except ValueError as error:
        raise UserError(f"{flag(name)} {value}: give a {_kind(parse)}") from error


def _kind(parse: Callable[[str], Any]) -> str:
    names = {"int": "whole number", "float": "number", "share_or_count": "number"}
    return names.get(parse.__name__, "text")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
