"""What ``--list`` prints."""

from __future__ import annotations

import inspect
from dataclasses import fields

from src.methods import method_class, method_names
from src.models import MODELS
from utils_.datasets import DATASETS
from utils_.errors import UserError, nearest


def listing(kind: str) -> str:
    """Text for ``methods``, ``datasets`` or ``models``."""
    kinds = {"methods": _methods, "datasets": _datasets, "models": lambda: "\n".join(MODELS)}
    if kind not in kinds:
        raise UserError(f"--list {kind}: unknown list; {nearest(kind, kinds)}")
    return kinds[kind]()


def _methods() -> str:
    lines = []
    for name in method_names():
        method = method_class(name)
        lines.append(f"{name:<10} {method.summary} ({method.paper})")
        for field in fields(method.Params):
            lines.append(f"    {field.name}={field.default}  {field.metadata['help']}")
    return "\n".join(lines)


def _datasets() -> str:
    def first_line(loader: object) -> str:
        return (inspect.getdoc(loader) or "").partition("\n")[0]

    return "\n".join(f"{name:<10} {first_line(loader)}" for name, loader in DATASETS.items())
