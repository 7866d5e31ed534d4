"""Files and folders, whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import math
import os
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BLOCK_BYTES, DAY = 2**20, 86400
UNREADABLE_ZIP = (  # what reading a damaged archive, or one of another kind, was seen to raise
    *(OSError, EOFError, KeyError, ValueError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` when the block succeeds.

    The folder is created. If the block raises, the temporary file is removed. Once this returns,
    the file outlasts a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)  # some writers make files that only the owner can read
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; when the block succeeds, it becomes ``path``.

    Raises:
        OSError: ``path`` exists and is not empty, or cannot be written.
    """
    draft = _temporary(path)
    try:
        draft.mkdir(parents=True)
        yield draft
        for below in sorted(draft.rglob("*"), reverse=True):
            if not below.is_symlink():
                _sync(below) if below.is_file() else sync_folder(below)
        sync_folder(draft)
        draft.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name beside ``path``; what processes that were killed have left of such is removed."""
    start = f".{path.name}."  # glob would compile, and keep, a pattern for each name
    for old in path.parent.iterdir() if path.parent.is_dir() else ():
        if not (old.name.startswith(start) and old.name.endswith(".tmp")):
            continue
        with suppress(OSError):  # somebody else has just finished or removed it
            if time.time() - old.stat().st_mtime > DAY:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    mark = f"{os.getpid()}-{time.monotonic_ns()}"  # containers that share a disk share their pids
    return path.with_name(f".{path.name}.{mark}.tmp")


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder outlast a loss of power, where its disk can do that."""
    if os.name != "posix":  # a folder cannot be opened elsewhere
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of network and other file systems
            raise
    finally:
        os.close(descriptor)


def read_regular(path: Path | str) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read, or is a device or a pipe, of which reading might never end.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - thousands of files, and a Path for each is slow
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "is a device or a pipe, not a file", str(path))
    with open(path, "rb") as file:  # noqa: PTH123 - as above
        return file.read()


def file_digest(path: Path, kind: str) -> str:
    """Return the hex digest of a file, ``kind`` being e.g. md5."""
    found, block = hashlib.new(kind), bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            found.update(memoryview(block)[:count])
    return found.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON; NaN, which JSON lacks, becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
