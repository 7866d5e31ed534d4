"""Files of weights as tensors by name, whatever they are wrapped in; pickled code is refused."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils_.errors import UserError, nearest

METADATA = "fednml"  # the only key: safetensors writes several in random order
CLASS_KEYS = ("classes", "class_names")
LFS_MARK = b"version https://git-lfs"
DEEPEST = 4  # levels of tables inside tables


@dataclass(frozen=True)
class SavedWeights:
    """What a file holds.

    Attributes:
        tensors: by name; of nested tables, names joined by dots.
        classes: what the outputs of the head mean, in order; None where the file does not say.
        facts: what a run wrote beside its weights, see ``model_facts``; empty in other files.
    """

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    facts: Mapping[str, Any] = field(default_factory=dict)


def describe_weights(
    *, model: str, classes: Sequence[str], image_size: int, **more: Any
) -> dict[str, str]:
    """Return the metadata of a .safetensors file of a run; ``more`` is written as JSON."""
    facts = {"model": model, "classes": list(classes), "image_size": image_size, **more}
    return {METADATA: json.dumps(facts)}


def read_weights(path: Path, *, option: str = "--weights ") -> SavedWeights:
    """Read a .safetensors file, or a file of torch.save without its code.

    Args:
        path: the file.
        option: what the user named it by, for messages.

    Raises:
        UserError: there is no such file, or it holds no tensors that can be read safely.
    """
    if not path.is_file():
        hint = nearest(str(path), ("none", "imagenet"))
        raise UserError(f"{option}{path}: no such file; {hint}")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(LFS_MARK):
        raise UserError(f"{option}{path}: a Git LFS pointer, not the file; run git lfs pull")
    read = _read_safetensors if _is_safetensors(path, head) else _read_torch
    saved = read(path, option)
    if not saved.tensors:
        raise UserError(
            f"{option}{path}: holds no tensors by name; save it with torch.save(model"
            ".state_dict(), FILE)"
        )
    return saved


def _is_safetensors(path: Path, head: bytes) -> bool:
    """By content too: the length of a JSON table comes first."""
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:9] == b"{" and length < path.stat().st_size)


def _read_safetensors(path: Path, option: str) -> SavedWeights:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = dict(json.loads(metadata.get(METADATA, "{}")))
    except Exception as error:  # any reader's complaint means the same to the user
        raise _unreadable(path, error, option) from error
    return SavedWeights(tensors, _names(facts.get("classes")) or _classes_of_run(path), facts)


def _classes_of_run(path: Path) -> tuple[str, ...] | None:
    """Runs of version 0.1 kept the names of the classes in result.json alone."""
    try:
        result = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _names(result.get("classes")) if isinstance(result, dict) else None


def _read_torch(path: Path, option: str) -> SavedWeights:
    try:
        with warnings.catch_warnings():  # a warning about TorchScript would precede its refusal
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any reader's complaint means the same to the user
        raise _pickled(path, error, option) or _unreadable(path, error, option) from error
    table = content if isinstance(content, Mapping) else {}
    named = next((names for key in CLASS_KEYS if (names := _names(table.get(key)))), None)
    return SavedWeights(_flat(content), named)


def _flat(value: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {prefix: value} if prefix else {}
    if not isinstance(value, Mapping) or depth > DEEPEST:
        return {}
    dot = "." if prefix else ""
    parts = (_flat(part, f"{prefix}{dot}{key}", depth + 1) for key, part in value.items())
    return {name: tensor for part in parts for name, tensor in part.items()}


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _pickled(path: Path, error: Exception, option: str) -> UserError | None:
    """Return the refusal of a file whose reading would run code; None if it is no such file."""
    text = " ".join(str(error).split())
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if "TorchScript" not in text and not found:
        return None
    kind = "a TorchScript program" if found is None else f"a pickle of {found[1]}"
    load = "torch.jit.load(OLD)" if found is None else "torch.load(OLD, weights_only=False)"
    return UserError(
        f"{option}{path}: {kind}, and opening it can run any code; if you trust its source, keep "
        f"its tensors alone: m = {load}; torch.save(getattr(m, 'state_dict', lambda: "
        "m.get('state_dict') or m['model'])(), NEW)"
    )


def _unreadable(path: Path, error: Exception, option: str) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return UserError(
        f"{option}{path}: cannot be read as a state dict ({reason}); "
        "give a .safetensors file or a .pt file saved with torch.save(state_dict)"
    )
