"""Arrays of images in files: written whole, checked by length and CRC-32, memory-mapped."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils_.errors import UserError
from utils_.files import DAY, sync_folder, write_text

logger = logging.getLogger("fednml")
BLOCK_BYTES = 16 * 2**20
FACTS = "images"  # the key beside length and checksum


def open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the memory-mapped images, or None if the file is absent or (logged) damaged."""
    try:
        wanted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if path.stat().st_size != wanted["bytes"]:
            raise ValueError("wrong length")
        if _checksum(path) != wanted["crc32"]:
            raise ValueError("wrong checksum")
        images: np.ndarray = np.load(path, mmap_mode="r")
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"shape {images.shape} of {images.dtype}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        if path.exists():
            logger.warning("%s is damaged (%s): building it again", path, error)
        return None
    return images


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file, about 1 GB/s."""
    value, block = 0, bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            value = zlib.crc32(memoryview(block)[:count], value)
    return value


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Create ``folder``; if the block fails, remove it again and explain disk errors."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise UserError(
                f"{folder}: the image cache cannot be written ({error.strerror or error}); "
                "make room there or name another folder with --cache-dir"
            ) from error
        raise


@contextmanager
def new_file(folder: Path) -> Iterator[Path]:
    """Yield a path for a file that is removed at the end unless it was renamed."""
    for old in folder.glob(".*.npy.tmp"):  # left by processes that were killed
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > DAY:
                old.unlink()
    path = folder / f".{os.getpid()}-{time.monotonic_ns()}.npy.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def allocate(path: Path, shape: tuple[int, ...]) -> int:
    """Create an .npy file of zeros and return where its data begin."""
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free",
            str(path.parent),
        )
    with path.open("xb") as file:
        offset = _write_header(file, shape)
        file.truncate(offset + needed)
    return offset


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def keep_rows(path: Path, rows: np.ndarray) -> None:
    """Reduce an .npy file of images to some of its rows."""
    images = np.load(path, mmap_mode="r")
    block = max(1, BLOCK_BYTES // images[0].nbytes)
    with new_file(path.parent) as temporary:
        with temporary.open("xb") as file:  # not through a memory map, which dies on a full disk
            _write_header(file, (len(rows), *images.shape[1:]))
            for first in range(0, len(rows), block):
                file.write(images[rows[first : first + block]].data)
        temporary.replace(path)


def read_facts(path: Path) -> Any:
    """Return what was noted of the images of an array; None where nothing was."""
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).get(FACTS)


def note_facts(path: Path, facts: dict[str, Any]) -> None:
    """Note what is known of the images of an array, if the folder can be written."""
    with suppress(OSError):  # a folder shared read-only: then it is found out each time
        check = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        write_text(path.with_suffix(".json"), json.dumps(check | {FACTS: facts}))


def publish(temporary: Path, path: Path, facts: dict[str, Any] | None = None) -> None:
    """Give a finished file its name, its checksum and what is known of its images."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    check = {
        "bytes": temporary.stat().st_size,
        "crc32": _checksum(temporary),
        FACTS: facts,
    }
    temporary.replace(path)
    sync_folder(path.parent)
    try:
        write_text(path.with_suffix(".json"), json.dumps(check))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
