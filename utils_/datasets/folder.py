"""From the file names people write in a CSV to the image files in a folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from utils_.datasets.cache.image_files import SUFFIXES
from utils_.datasets.tables import CsvTable, shown
from utils_.errors import UserError


class ImageFolder:
    """The image files below one folder, found by name with or without extension.

    An extension may differ in case between CSV and disk (``a.PNG`` finds ``a.png``), the rest may
    not. Names may contain subfolders, separated by ``/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> str | None:
        """Return the file that ``name`` means, relative to the folder, or None if there is none.

        Raises:
            UserError: several files fit, or the name leads out of the folder.
        """
        parent, slash, base = name.rpartition("/")
        by_stem = self._listing(parent + slash)
        stem, suffix = _split(base)
        if suffix:
            same = [file for file in by_stem.get(stem, []) if _split(file)[1] == suffix]
            fitting = [base] if base in same else same or by_stem.get(base, [])
        else:
            fitting = by_stem.get(base, [])
        if len(fitting) > 1:
            raise UserError(
                f"image {shown(name)}: {self.path / parent} holds {' and '.join(fitting)}; "
                "write the extension in the CSV, or remove one"
            )
        return parent + slash + fitting[0] if fitting else None

    def place(self, names: Sequence[str]) -> list[str]:
        """Return the file of every name; a missing one is given the name itself."""
        return [self.find(name) or name for name in names]

    def _listing(self, parent: str) -> dict[str, list[str]]:
        """Return the image files of one subfolder by stem; none if there is no such folder."""
        if parent not in self._listed:
            if parent.startswith("/") or ".." in PurePosixPath(parent).parts:
                raise UserError(f"image folder {shown(parent)}: name images inside {self.path}")
            by_stem: dict[str, list[str]] = defaultdict(list)
            for file in _list(self.path / parent):
                stem, suffix = _split(file)
                if suffix:
                    by_stem[stem].append(file)
            self._listed[parent] = dict(by_stem)
        return self._listed[parent]


class ImageFolders:
    """Several folders of images below one, searched in turn: archives come in parts."""

    def __init__(self, path: Path, patterns: Sequence[str]) -> None:
        """Look for the folders.

        Args:
            path: the folder above.
            patterns: glob patterns of the folders, e.g. ``images_*/images``; the order counts.
        """
        self._parents = list(
            dict.fromkeys(
                found.relative_to(path).as_posix() + "/"
                for pattern in patterns
                for found in sorted(path.glob(pattern))
                if found.is_dir()
            )
        )
        self.folder = ImageFolder(path)

    def __bool__(self) -> bool:
        return bool(self._parents)

    def find(self, name: str) -> str | None:
        """Return the first file that ``name`` means, relative to ``path``; see ImageFolder."""
        found = (self.folder.find(parent + name) for parent in self._parents)
        return next((file for file in found if file), None)

    def place(self, names: Sequence[str]) -> list[str]:
        """Return the file of every name; a missing one is placed in the first folder."""
        first = self._parents[0] if self._parents else ""
        return [self.find(name) or first + name for name in names]


def refuse_repeats(tables: Sequence[CsvTable], files: Sequence[str]) -> None:
    """Check that no image is listed twice, within one file or across several.

    Args:
        tables: the CSV files, whose rows together are ``files`` in order.
        files: the image file of every row.

    Raises:
        UserError: naming both places.
    """
    if len(set(files)) == len(files):
        return
    places = [(table.path, line) for table in tables for line in table.lines]
    first: dict[str, tuple[Path, int]] = {}
    for file, (path, line) in zip(files, places, strict=True):
        if file in first:
            other, before = first[file]
            raise UserError(
                f"{path}, line {line}: image {shown(file)} is already listed in "
                f"{other.name}, line {before}; keep one of the two rows"
            )
        first[file] = (path, line)


def _list(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []  # then its images are reported as missing
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be read ({error.strerror})") from error


def _split(file: str) -> tuple[str, str]:
    """Return stem and lower-case extension; what has no image's extension is all stem."""
    stem, dot, suffix = file.rpartition(".")
    suffix = dot + suffix.lower()
    return (stem, suffix) if stem and suffix in SUFFIXES else (file, "")
