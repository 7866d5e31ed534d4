"""Methods are found by their file names: ``src/methods/<name>.py`` ends with its Method class."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from src.methods.base import Method
from utils_.errors import UserError, nearest


def method_names() -> list[str]:
    """Names of all files that may hold a method, sorted; none is opened."""
    return sorted(name for name in _modules() if name.isidentifier() and name != "base")


def stray_files() -> list[str]:
    """Files in the folder whose names no method can have, such as backups."""
    return sorted(f"src/methods/{name}.py" for name in _modules() if not name.isidentifier())


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def method_class(name: str) -> type[Method]:
    """The class in ``src/methods/<name>.py``; of several the last, which others may lead up to.

    Raises:
        UserError: no such file, or one that cannot be imported or holds no method.
    """
    if name not in method_names():
        raise UserError(f"--method {name}: unknown method; {nearest(name, method_names())}")
    module = _imported(name)
    own: list[type[Method]] = [v for v in vars(module).values() if _is_method(v, module.__name__)]
    if not own:
        raise UserError(
            f"src/methods/{name}.py: no method, since it defines no subclass of Method; "
            "move the file away, or write one as docs/architecture.md says"
        )
    return own[-1]


def _imported(name: str) -> ModuleType:
    module = f"{__name__}.{name}"
    try:
        return importlib.import_module(module)
    except Exception as error:  # a half-written file may raise anything
        raise UserError(
            f"src/methods/{name}.py: cannot be imported ({type(error).__name__}: {error}); mend it "
            f"(python -m {module} shows the place) or move it away"
        ) from error


def _is_method(value: object, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value.__module__ == module
