"""What a user may cause: bad input, and training that diverges; and hints for wrong names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

NAMES_SHOWN = 5


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong (file or option named) and what to do."""


class Diverged(ArithmeticError):
    """Training has led to numbers that are not finite; the message says whose."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'fednml'?``, or the list of known names.

    Upper and lower case count as the same.
    """
    names = {one.lower(): one for one in sorted(known)}
    close = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{names[close[0]]}'?"
    return f"known: {', '.join(names.values())}"


def as_known(name: str, known: Iterable[str]) -> str:
    """Return the known name that differs from ``name`` in upper and lower case alone, else it."""
    names = {one.lower(): one for one in known}
    return names.get(name.lower(), name)


def some(names: Sequence[str], most: int = NAMES_SHOWN) -> str:
    """Return the first names, ``most`` of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
