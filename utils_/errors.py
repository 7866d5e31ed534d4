"""The one exception a user may cause, and the suggestion that goes with a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong (file or option named) and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'fednml'?``, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
