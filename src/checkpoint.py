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
from utils_.history import History

if TYPE_CHECKING:
    from src.client import Client
    from src.server import Server

FLOAT = np.dtype(np.float32)
DAMAGED = (SafetensorError, OSError, KeyError, TypeError, ValueError)  # what a damaged file raises


def save_checkpoint(
    folder: Path,
    server: Server,
    clients: Sequence[Client],
    *,
    best: torch.Tensor,
    history: History,
) -> None:
    """Write ``folder/round-<n>.safetensors`` atomically and remove older ones.

    Args:
        best: (P,) the vector of the best validation round so far.
        history: a row for each finished round.
    """
    arrays = {"server.model": server.model.numpy(), "best": best.numpy()}
    arrays |= {f"server.memory.{name}": array for name, array in server.memory.items()}
    for client in clients:
        arrays |= {f"client.{client.index}.{n}": a for n, a in client.state().items()}
    arrays |= {f"history.{name}": array for name, array in history.arrays().items()}
    path = round_file(folder, server.round)
    write_sealed(path, arrays, {"history": history.columns})
    for older in folder.glob("round-*.safetensors"):
        if older != path:
            older.unlink()


def load_checkpoint(
    folder: Path, server: Server, clients: Sequence[Client]
) -> tuple[torch.Tensor, History] | None:
    """Restore server and clients from the newest checkpoint; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    found = saved_rounds(folder)
    if not found:
        return None
    newest = round_file(folder, found[-1])
    try:
        arrays, progress = read_sealed(newest)
        history = _history(arrays, progress["history"])
        best = _restore(arrays, server, clients)
    except DAMAGED as error:
        raise UserError(
            f"{newest}: damaged checkpoint ({error}); delete it to resume from an older one "
            "or from the start"
        ) from error
    server.round = found[-1]
    return best, history


def _history(arrays: dict[str, np.ndarray], told: list[Any]) -> History:
    """Take the rows out of a checkpoint's arrays, of which ``told`` names the columns.

    In checkpoints of earlier versions these are the rows themselves.

    Raises:
        KeyError, TypeError, ValueError: they are no rows.
    """
    if told and isinstance(told[0], dict):
        history = History(told)
    else:
        own = {name: arrays.pop(f"history.{name}") for name in ("values", "known")}
        history = History.from_arrays(told, own)
    if np.isnan(history.column("round")).any():
        raise ValueError("a round of its history has no number")
    return history


def _restore(
    arrays: dict[str, np.ndarray], server: Server, clients: Sequence[Client]
) -> torch.Tensor:
    """Hand out the arrays of a checkpoint; return the best model.

    Raises:
        KeyError, ValueError: one is absent, of nobody, or not of the shape that it must have.
    """
    model, best = arrays.pop("server.model"), arrays.pop("best")
    shape = tuple(server.model.shape)
    if (model.shape, best.shape[-1:]) != (shape, shape) or {model.dtype, best.dtype} != {FLOAT}:
        raise ValueError("its models are not of this run")
    states: dict[str, dict[str, np.ndarray]] = {str(client.index): {} for client in clients}
    memory = {}
    for name, array in arrays.items():
        owner, _, rest = name.partition(".")
        number, _, key = rest.partition(".")
        if owner == "server":
            memory[key] = array
        else:
            states[number][key] = array
    for client in clients:
        client.load_state(states[str(client.index)])
    server.model, server.memory = torch.from_numpy(model), server.memory | memory
    return torch.from_numpy(best)


def round_file(folder: Path, round: int) -> Path:
    """Where the state after ``round`` rounds lies."""
    return folder / f"round-{round:06d}.safetensors"


def saved_rounds(folder: Path) -> list[int]:
    """The rounds of the files in ``folder``, ascending."""
    found = folder.glob(f"round-{'[0-9]' * 6}.safetensors")
    return sorted(int(path.stem.removeprefix("round-")) for path in found)


def write_sealed(path: Path, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
    """Write arrays and notes, which become JSON, atomically and with a checksum.

    Raises:
        OSError: it cannot be written; what was there before remains.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(notes)
    metadata = {"progress": text, "checksum": _checksum(arrays, text)}
    with atomic_path(path) as temporary:
        try:
            save_file(arrays, temporary, metadata=metadata)
        except SafetensorError as error:  # it has a word of its own for a full disk
            raise OSError(str(error)) from error


def read_sealed(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and notes of a file; raises one of ``DAMAGED`` where its bytes are not as written."""
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
