"""What ``flwr run --run-config`` says: the settings of the command line, and those of this engine.

Flower wants every key in pyproject.toml beforehand; an empty text there stands for "not given".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from src.command_line import parse_command_line
from src.config import OPTIONS
from utils_.errors import UserError

SOURCES = ("preset", "config", "resume")  # what else the command line takes and a server can use
MIN_CLIENTS, ROUND_TIMEOUT = "min-clients", "round-timeout"
LONGEST = 7 * 24 * 3600


@dataclass(frozen=True)
class Patience:
    """How long the server waits, and for whom.

    Attributes:
        clients: sites that must be there for a round to begin, and answer for it to count.
        seconds: the longest that a round, or the gathering of the sites, may take.
    """

    clients: int
    seconds: float


def run_config_keys() -> list[str]:
    """All keys, as they stand in pyproject.toml."""
    settings = [name.replace("_", "-") for name in OPTIONS]
    return [*settings, *SOURCES, MIN_CLIENTS, ROUND_TIMEOUT]


def read_run_config(
    given: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], Patience]:
    """Settings and commands as :func:`parse_command_line` gives them, and the patience.

    Raises:
        UserError: what the command line would say; or a value that is out of range.
    """
    told = {key: value for key, value in given.items() if value != ""}
    patience = Patience(
        clients=int(_number(told.pop(MIN_CLIENTS, 2), MIN_CLIENTS, 1, 100_000)),
        seconds=_number(told.pop(ROUND_TIMEOUT, 3600), ROUND_TIMEOUT, 1, LONGEST),
    )
    settings, commands = parse_command_line([*_options(told)])
    return settings, commands, patience


def _options(told: Mapping[str, Any]) -> Iterator[str]:
    """The same as it would stand on the command line."""
    for key, value in told.items():
        name = key.replace("-", "_")
        kind = OPTIONS[name].metadata["parse"] if name in OPTIONS else str
        if kind is bool and isinstance(value, bool):
            yield from [f"--{key}"] * value
        elif kind is dict:  # several, parted by spaces
            yield from (f"--{key}={pair}" for pair in str(value).split())
        else:
            yield f"--{key}={value}"


def _number(value: Any, key: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"{key}={value}: give a number from {low} to {high:,}")
    return float(value)
