"""What ``--list`` prints."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields

from src.methods import method_class, method_names, stray_files
from src.methods.base import Method
from src.models import MODELS
from src.supervision import LOSSES, Loss
from utils_.datasets import DATASETS
from utils_.errors import UserError, as_known, nearest

logger = logging.getLogger("fednml")


def listing(kind: str) -> str:
    """Text for ``methods``, ``losses``, ``datasets`` or ``models``."""
    kinds: dict[str, Callable[[], str]] = {
        "methods": lambda: _described(_methods()),
        "losses": lambda: _described(LOSSES),
        "datasets": _datasets,
        "models": lambda: "\n".join(MODELS),
    }
    if as_known(kind, kinds) not in kinds:
        raise UserError(f"--list {kind}: unknown list; {nearest(kind, kinds)}")
    return kinds[as_known(kind, kinds)]()


def _methods() -> dict[str, type[Method]]:
    """All methods by name; files that hold none are named in the log."""
    for place in stray_files():
        logger.warning("%s: the name of no method; move the file away", place)
    found = {}
    for name in method_names():
        try:
            found[name] = method_class(name)
        except UserError as error:  # one file must not hide the others
            logger.warning("%s", error)
    return found


def _described(owners: Mapping[str, type[Method] | type[Loss]]) -> str:
    """Name, summary, paper and parameters of methods or losses."""
    lines = []
    for name, owner in owners.items():
        lines.append(f"{name:<11} {owner.summary} ({owner.paper})")
        for field in fields(owner.Params):
            lines.append(f"    {field.name}={field.default}  {field.metadata['help']}")
    return "\n".join(lines)


def _datasets() -> str:
    def first_line(loader: object) -> str:
        return (inspect.getdoc(loader) or "").partition("\n")[0]

    return "\n".join(f"{name:<14} {first_line(loader)}" for name, loader in DATASETS.items())
