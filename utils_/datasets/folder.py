"""From the file names people write in a CSV to the image files in a folder."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from utils_.datasets.cache.image_files import SUFFIXES
from utils_.datasets.label_files.tables import CsvTable, shown
from utils_.datasets.spelling import (
    FileTree,
    common_folders,
    is_absolute,
    normal,
    readings,
    without_folders,
)
from utils_.errors import UserError, some

logger = logging.getLogger("fednml")
SAMPLE = 20  # names that are tried to learn which folders they all begin with needlessly


class ImageFolder:
    """The image files below one folder, found by name with or without extension.

    Names may contain subfolders, separated by ``/``. One that fits no file as it is written is read
    as other systems spell it, see :mod:`utils_.datasets.spelling`. What :meth:`find` returns is
    spelt as on the disk, so that two spellings of one file are seen to be one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._tree: FileTree | None = None

    def find(self, name: str) -> str | None:
        """Return the file that ``name`` means, relative to the folder, or None if there is none.

        Raises:
            UserError: several files fit, or the name leads out of the folder.
        """
        plain = normal(name)
        found = None if _leads_out(plain) else self._as_written(plain)
        found = found or self._as_read(name)
        if found is None and _leads_out(name):
            raise UserError(
                f"image {shown(name)}: not below {self.path}; name images inside that folder"
            )
        return found

    def place(self, names: Sequence[str]) -> list[str]:
        """Return the file of every name; a missing one is given the name itself.

        Where all names, or all absolute ones, begin with the same folders, those need not exist.

        Raises:
            UserError: see :meth:`find`.
        """
        once = list(dict.fromkeys(names))  # an image may have many rows
        drop = {
            absolute: self._needless_folders([n for n in once if is_absolute(n) is absolute])
            for absolute in (False, True)  # one label file may hold paths, another bare names
        }
        files = [self.find(without_folders(name, drop[is_absolute(name)])) for name in once]
        _report_spelling(once, files)
        place = {n: file or normal(n) for n, file in zip(once, files, strict=True)}
        return list(map(place.__getitem__, names))

    def _as_written(self, name: str) -> str | None:
        """The extension may be absent or differ in case."""
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

    def _as_read(self, name: str) -> str | None:
        """Case, umlauts, extension and folders may be spelt otherwise."""
        self._tree = self._tree or FileTree(self.path, SUFFIXES)
        for text in readings(name, folder=self.path):
            fitting = self._tree.find(text)
            if len(fitting) > 1:
                raise UserError(
                    f"image {shown(name)}: {self.path} holds {' and '.join(fitting[:3])}; write "
                    "in the CSV which of them it is, with its folder and extension"
                )
            if fitting:
                return fitting[0]
        return None

    def _needless_folders(self, names: Sequence[str]) -> int:
        """Return how many folders that begin all names have to go until an image is found."""
        sample = names[:: max(1, len(names) // SAMPLE)]
        for drop in range(common_folders(names) + 1 if names else 0):
            if any(self._readable(without_folders(name, drop)) for name in sample):
                return drop
        return 0

    def _readable(self, name: str) -> bool:
        try:
            return self.find(name) is not None
        except UserError:  # it leads out, or several files fit
            return False

    def _listing(self, parent: str) -> dict[str, list[str]]:
        """Return the image files of one subfolder by stem; none if there is no such folder."""
        if parent not in self._listed:
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


def _leads_out(name: str) -> bool:
    if "/" not in name and "\\" not in name:
        return name == ".."
    return is_absolute(name) or ".." in PurePosixPath(name.replace("\\", "/")).parts


def _report_spelling(names: Sequence[str], files: Sequence[str | None]) -> None:
    """Log names that are not simply those of their files, with or without extension."""
    other = [
        f"{shown(name)} is {shown(file)}"
        for name, file in zip(names, files, strict=True)
        if file and file != name and _split(file)[0] not in (name, _split(name)[0])
    ]
    if other:
        logger.info(
            "%d of %d images are spelt otherwise in the label files than on the disk: %s",
            *(len(other), len(names), some(other)),
        )


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
