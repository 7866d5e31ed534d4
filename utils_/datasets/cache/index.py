"""What is known of image files without reading them: signature to content digest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from utils_.files import write_text

logger = logging.getLogger("fednml")
FORMAT = 1

Signature = tuple[int, int, int]
"""Size, modification and change time (ns): while they stay, a file is not read again."""

Entry = tuple[int, int, int, str]
"""The signature of a file and the digest of its content."""


def signature(path: str) -> Signature | None:
    """Return the signature of a file, or None where there is no such file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands of files, and a Path for each is slow
    except (OSError, ValueError):  # ValueError: a name with a NUL character
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class CacheIndex:
    """The index of one image folder, ``index-<hash of the folder>.json`` in the cache folder.

    It is only a shortcut: without it, or when it is damaged, the files are read and hashed again.
    An entry is made only for a file whose content has gone through the decoder.

    Attributes:
        bad: digests of files that could not be decoded.
    """

    def __init__(self, cache_dir: Path, folder: Path) -> None:
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        self._cache_dir = cache_dir
        self._path = cache_dir / f"index-{name}.json"
        self._files, self.bad, self._caches = self._read()
        self._changed = False

    @property
    def decoded(self) -> set[str]:
        """Digests of all contents that have gone through the decoder, good or bad."""
        return {entry[3] for entry in self._files.values()}

    def recall(
        self, files: Sequence[str], signatures: Sequence[Signature | None]
    ) -> list[str | None]:
        """Return the digest of every file that has not changed since, None for the others."""
        found = (self._files.get(file) for file in files)
        return [
            entry[3] if entry and now and entry[:3] == now else None
            for entry, now in zip(found, signatures, strict=True)
        ]

    def note(
        self,
        files: Sequence[str],
        signatures: Sequence[Signature | None],
        digests: Sequence[str | None],
        *,
        bad: set[str],
    ) -> None:
        """Enter files whose content has gone through the decoder; ``bad`` are those that failed."""
        for file, now, digest in zip(files, signatures, digests, strict=True):
            if now and digest and self._files.get(file) != (*now, digest):
                self._files[file] = (*now, digest)
                self._changed = True
        known = (self.bad - set(filter(None, digests))) | bad
        self._changed |= known != self.bad
        self.bad = known

    def use(self, request: str, key: str) -> None:
        """Note which cache file serves a request; remove the one it no longer needs."""
        old = self._caches.get(request)
        if old == key:
            return
        self._caches[request] = key
        self._changed = True
        if old and old not in self._caches.values():
            logger.warning("images in %s have changed: the cache is new", self._cache_dir)
            for suffix in (".npy", ".json"):
                with suppress(OSError):  # somebody else may be using or have removed it
                    (self._cache_dir / f"{old}{suffix}").unlink()

    def save(self) -> None:
        """Write the index if it has changed."""
        if self._changed:
            value = {
                "format": FORMAT,
                "files": self._files,
                "bad": sorted(self.bad),
                "caches": self._caches,
            }
            write_text(self._path, json.dumps(value, separators=(",", ":")))
            self._changed = False

    def _read(self) -> tuple[dict[str, Entry], set[str], dict[str, str]]:
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                return {}, set(), {}
            files = {str(file): tuple(entry) for file, entry in value["files"].items()}
            if any(len(entry) != 4 for entry in files.values()):
                raise ValueError("an entry is not complete")
            return files, set(value["bad"]), dict(value["caches"])
        except FileNotFoundError:
            return {}, set(), {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%s): images are read again", self._path, error)
            return {}, set(), {}
