"""One safetensors file holds all that a run needs to go on to the same bits."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from utils_.errors import UserError
from utils_.files import atomic_path

if TYPE_CHECKING:
    from src.client import Client
    from src.server import Server


def save_checkpoint(
    folder: Path,
    server: Server,
    clients: Sequence[Client],
    *,
    best: torch.Tensor,
    progress: dict[str, Any],
) -> None:
    """Write ``folder/round-<n>.safetensors`` atomically and remove older ones.

    Args:
        best: (P,) the vector of the best validation round so far.
        progress: what else the run must remember, as JSON.
    """
    arrays = {"server.model": server.model.numpy(), "best": best.numpy()}
    arrays |= {f"server.memory.{name}": array for name, array in server.memory.items()}
    for client in clients:
        arrays |= {f"client.{client.index}.{n}": a for n, a in client.state().items()}
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    path, text = folder / f"round-{server.round:06d}.safetensors", json.dumps(progress)
    metadata = {"progress": text, "checksum": _checksum(arrays, text)}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata=metadata)
    for older in folder.glob("round-*.safetensors"):
        if older != path:
            older.unlink()


def load_checkpoint(
    folder: Path, server: Server, clients: Sequence[Client]
) -> tuple[torch.Tensor, dict[str, Any]] | None:
    """Restore server and clients from the newest checkpoint; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    found = sorted(folder.glob("round-*.safetensors"))
    if not found:
        return None
    try:
        arrays, progress = _read(found[-1])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{found[-1]}: damaged checkpoint ({error}); delete it to resume from an older one "
            "or from the start"
        ) from error
    server.model = torch.from_numpy(arrays.pop("server.model"))
    best = torch.from_numpy(arrays.pop("best"))
    server.round = int(found[-1].stem.removeprefix("round-"))
    states: dict[str, dict[str, np.ndarray]] = {str(client.index): {} for client in clients}
    for name, array in arrays.items():
        owner, _, rest = name.partition(".")
        number, _, key = rest.partition(".")
        if owner == "server":
            server.memory[key] = array
        else:
            states[number][key] = array
    for client in clients:
        client.load_state(states[str(client.index)])
    return best, progress


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and progress of a file; raises what a reader of damaged bytes may raise."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if metadata["checksum"] != _checksum(arrays, metadata["progress"]):
        raise ValueError("checksum does not match")
    return arrays, json.loads(metadata["progress"])


def _checksum(arrays: dict[str, np.ndarray], progress: str) -> str:
    """CRC-32 of everything in the file: safetensors itself does not notice a wrong bit."""
    value = zlib.crc32(progress.encode())
    for name, array in sorted(arrays.items()):
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(array.data, value)
    return f"{value:08x}"
