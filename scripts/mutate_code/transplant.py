"""Puts mutated code into a module as it is loaded, so that nothing is imported anew."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any


def transplant(module: ModuleType, code: CodeType, *, root: Path, inside: bool) -> None:
    """Make the loaded module behave as the code says.

    Functions keep who they are and get other code, so all that hold them see it. The other things
    of the module, and of its classes, are put in their places under their names, also where other
    modules have imported them.

    Args:
        module: as it was imported.
        code: of the same module with a mistake.
        root: folder of the modules that may have imported from it.
        inside: whether the mistake is in the body of a function; then only functions change.
    """
    other = _run(module, code)
    for name, new in other.items():
        old = vars(module).get(name)
        if _is_own(old, module) and _is_own(new, module):
            _exchange(old, new, inside=inside)
        elif not inside and not inspect.ismodule(new) and not name.startswith("__"):
            _replace(name, old, new, root)


def _run(module: ModuleType, code: CodeType) -> dict[str, Any]:
    """What the code defines; under the module's name, for dataclasses ask for it."""
    other = ModuleType(module.__name__)
    other.__file__, other.__spec__ = module.__file__, module.__spec__
    sys.modules[module.__name__] = other
    try:
        FunctionType(code, vars(other))()
    finally:
        sys.modules[module.__name__] = module
    return vars(other)


def _is_own(thing: object, module: ModuleType) -> bool:
    """Whether it is a function or a class of the module's."""
    if getattr(thing, "__module__", None) != module.__name__:
        return False
    return isinstance(thing, type) or (callable(thing) and hasattr(thing, "__name__"))


def _exchange(old: Any, new: Any, *, inside: bool) -> None:
    if isinstance(old, type):
        for name, part in list(vars(new).items()):
            before = vars(old).get(name)
            both_types = isinstance(part, type) and isinstance(before, type)
            if _is_made(part):
                setattr(old, name, part)
            elif list(_functions(part)) or (both_types and before is not part):
                _exchange(before, part, inside=inside)
            elif not inside and not name.startswith("__"):
                setattr(old, name, part)
        return
    for mine, theirs in zip(_functions(old), _functions(new), strict=True):
        mine.__code__ = theirs.__code__
        mine.__defaults__, mine.__kwdefaults__ = theirs.__defaults__, theirs.__kwdefaults__
    if hasattr(old, "cache_clear"):
        old.cache_clear()


def _is_made(part: object) -> bool:
    """Whether it is a function that dataclasses make, whose defaults lie in what it encloses."""
    names = part.__code__.co_freevars if isinstance(part, FunctionType) else ()
    return bool(names) and "__class__" not in names


def _functions(thing: Any) -> Iterator[FunctionType]:
    """The functions in it, however they are wrapped."""
    if isinstance(thing, property):
        parts = (thing.fget, thing.fset, thing.fdel)
    else:
        parts = (getattr(thing, "func", getattr(thing, "__func__", thing)),)
    for part in parts:
        found = inspect.unwrap(part) if callable(part) else None
        if isinstance(found, FunctionType):
            yield found


def _replace(name: str, old: object, new: object, root: Path) -> None:
    for module in list(sys.modules.values()):
        ours = str(getattr(module, "__file__", None) or "").startswith(str(root))
        if ours and vars(module).get(name) is old:
            setattr(module, name, new)
