"""Methods are found by their file names: ``src/methods/<name>.py`` holds one Method class."""

from __future__ import annotations

import importlib
import pkgutil

from src.methods.base import Method
from utils_.errors import UserError, nearest


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in names if name != "base")


def method_class(name: str) -> type[Method]:
    """The class in ``src/methods/<name>.py``.

    Raises:
        UserError: no such file.
    """
    if name not in method_names():
        raise UserError(f"--method {name}: unknown method; {nearest(name, method_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    own: list[type[Method]] = [v for v in vars(module).values() if _is_method(v, module.__name__)]
    return own[0]


def _is_method(value: object, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value.__module__ == module
