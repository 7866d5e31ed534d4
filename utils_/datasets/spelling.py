"""File names as other systems write them, and the files that they may mean."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))


class FileTree:
    """All image files below a folder, found by names that need not be spelt as on the disk."""

    def __init__(self, path: Path, suffixes: Sequence[str]) -> None:
        self._suffixes = tuple(suffixes)
        self._files: dict[tuple[str, str], list[str]] = defaultdict(list)
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            parent = PurePosixPath(Path(folder).relative_to(path).as_posix())
            for file in sorted(files):
                if file.lower().endswith(self._suffixes) and not file.startswith("."):
                    self._enter((parent / file).as_posix())

    def find(self, name: str) -> list[str]:
        """Return the files that a name may mean, by the strictest rule that any file obeys.

        Case and the form of umlauts do not matter. The whole path comes first, then the path with
        another extension; a bare name may lie in any subfolder.
        """
        key, stem = _folded(name), _folded(self._stem(name))
        for kind, text in (("path", key), ("path stem", stem), ("name", key), ("stem", stem)):
            if found := self._files.get((kind, text)):
                return found
        return []

    def _enter(self, file: str) -> None:
        base, stem = PurePosixPath(file).name, self._stem(file)
        self._files["path", _folded(file)].append(file)
        self._files["path stem", _folded(stem)].append(file)
        self._files["name", _folded(base)].append(file)
        self._files["stem", _folded(self._stem(base))].append(file)

    def _stem(self, name: str) -> str:
        suffix = next((end for end in self._suffixes if name.lower().endswith(end)), "")
        return name[: len(name) - len(suffix)]


def normal(name: str) -> str:
    """Return the one spelling of a path: no ``./``, no doubled slash."""
    return name if name and "/" not in name else PurePosixPath(name).as_posix()


def readings(name: str, *, folder: Path) -> Iterator[str]:
    """Yield what a name may mean below a folder, what is nearest to its text first.

    - Slashes of Windows, spaces around folders and names, invisible characters.
    - Percent-encoding, as in addresses.
    - Only what follows the folder's own name or that of the folder above, as in
      ``images/a.png``, ``../images/a.png`` and ``C:\\data\\images\\a.png``.
    """
    clean = unicodedata.normalize("NFC", name).translate(INVISIBLE).replace("\\", "/")
    for text in dict.fromkeys((clean, unquote(clean))):
        parts = [part.strip() for part in PurePosixPath(text).parts]
        if ".." not in parts and not is_absolute(text):
            yield "/".join(parts)
        for own in (folder.name, folder.resolve().parent.name):
            if own in parts[:-1]:
                place = len(parts) - 1 - parts[::-1].index(own)
                yield "/".join(parts[place + 1 :])


def is_absolute(name: str) -> bool:
    """Whether a path begins at the root of a disk, of this system or of Windows."""
    return name.startswith(("/", "\\")) or name[1:3] in (":/", ":\\")


def common_folders(names: Sequence[str]) -> int:
    """Return how many folders at their beginning all paths share."""
    if any("/" not in name and "\\" not in name for name in names):
        return 0
    folders = [PurePosixPath(name.replace("\\", "/")).parts[:-1] for name in names]
    shortest, longest = min(folders), max(folders)
    pairs = zip(shortest, longest, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(shortest), len(longest)))


def without_folders(name: str, count: int) -> str:
    """Return a path without its first folders."""
    if not count:
        return name
    return "/".join(PurePosixPath(name.replace("\\", "/")).parts[count:])


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
