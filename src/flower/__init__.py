"""The same clients, server and methods on Flower; see docs/deployment.md."""

from __future__ import annotations

import importlib.util
import sys

from utils_.errors import UserError


def require_flower() -> None:
    """Check that Flower is there.

    Raises:
        UserError: it is not, or cannot be on this Python.
    """
    if sys.version_info < (3, 11):
        here = ".".join(map(str, sys.version_info[:2]))
        raise UserError(
            f"Flower 1.42 needs Python 3.11 or later and this is {here}: make an environment of "
            "its own with such a Python (docs/deployment.md); what needs no Flower works here"
        )
    if importlib.util.find_spec("flwr") is None:
        raise UserError(
            "Flower is not installed here: pip install '.[flower]', best in an environment of its "
            "own (docs/deployment.md)"
        )
