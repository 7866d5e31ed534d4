"""Archives of unknown origin: only wanted files come out, under safe names, each of them whole."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from utils_.errors import UserError

SPARE_BYTES = 100 * 2**20  # so much is left free on the disk
BLOCK_BYTES = 2**20
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    RuntimeError,  # encrypted, or packed as only later versions know
)


@dataclass(frozen=True)
class Pick:
    """Which files of an archive are wanted, and where they go.

    Attributes:
        pattern: regular expression for the end of a file's path in the archive, case ignored.
        target: path below the data folder; ``\\1`` stands for the first group of the pattern.
        convert: turns name and content into another content, or None for a file to leave out;
            None keeps it as it is.
    """

    pattern: str
    target: str
    convert: Callable[[str, bytes], bytes | None] | None = None


def extract(
    path: Path,
    folder: Path,
    rules: Sequence[Pick],
    *,
    progress: Callable[[int], object] = lambda files: None,
) -> list[str]:
    """Take the wanted files out of a .zip or .tar(.gz) and of the .zip files inside it.

    Every file is written beside its place and renamed. One that is already there with the same
    length and checksum (tar: length) is kept, so that a broken-off call can be repeated.

    Args:
        path: the archive.
        folder: where to; created.
        rules: the first that fits a file counts; what no rule fits is left in the archive.
        progress: called with 1 after each file.

    Returns:
        The files below ``folder``, sorted.

    Raises:
        UserError: not an archive, damaged, encrypted, with names that lead out of the folder or
            links, two files for one place, or too little space.
    """
    try:
        with _opened(path) as archive:
            return sorted(_extract(archive, folder, rules, progress))
    except _DAMAGED as error:
        raise UserError(f"{path}: a damaged archive ({error}); fetch it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: there is no such file") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be read or written ({error.strerror or error})"
        ) from error


def take(
    path: Path,
    folder: Path,
    rules: Sequence[Pick],
    *,
    progress: Callable[[int], object] = lambda files: None,
) -> list[str]:
    """As extract, but a file that is itself wanted (a table, an .npz file) is copied as it is."""
    found = _target(path.name, rules)
    if found is None or not path.is_file():
        return extract(path, folder, rules, progress=progress)
    rule, target = found
    try:
        member = _Member(path.name, path.stat().st_size, None, lambda: path.open("rb"))
        written = _write(member, folder / target, rule)
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be read or written ({error.strerror or error})"
        ) from error
    progress(1)
    return [target] if written else []


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    name: str
    size: int
    crc: int | None
    open: Callable[[], IO[bytes]]


class _Archive:
    """A .zip or .tar file whose names have been found safe."""

    def __init__(self, path: Path, file: zipfile.ZipFile | tarfile.TarFile) -> None:
        self.path, self._file = path, file

    def members(self) -> Iterator[_Member]:
        """Yield all files in turn."""
        if isinstance(self._file, zipfile.ZipFile):
            entries = self._file.infolist()
            for entry in entries:  # all of them before the first is written
                self._check_entry(entry)
            for entry in entries:
                if not entry.is_dir():
                    content = partial(self._file.open, entry)
                    yield _Member(entry.filename, entry.file_size, entry.CRC, content)
            return
        for item in self._file:  # in one pass: going back would decompress everything again
            self._check_name(item.name)
            if not (item.isfile() or item.isdir()):
                raise UserError(
                    f"{self.path}: '{item.name}' is a link or device; refused, pack it anew without"
                )
            if item.isfile():
                opened = partial(_open_item, self._file, item)
                yield _Member(item.name, item.size, None, opened)

    def lacking(self, folder: Path, rules: Sequence[Pick]) -> int:
        """Bytes of the wanted files that are not there yet; of a .tar, unknown before, 0."""
        if not isinstance(self._file, zipfile.ZipFile):
            return 0
        found = [
            (entry.file_size, _target(entry.filename, rules)) for entry in self._file.infolist()
        ]
        wanted = [
            (size, folder / place[1]) for size, place in found if place and not place[0].convert
        ]
        return sum(size for size, path in wanted if not path.exists())

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        self._check_name(entry.filename)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(
                f"{self.path}: '{entry.filename}' is a link; refused, pack it anew without"
            )
        if entry.flag_bits & 1:
            raise UserError(f"{self.path}: encrypted; decrypt it first and pack it anew")

    def _check_name(self, name: str) -> None:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
            raise UserError(
                f"{self.path}: '{name}' leads out of the folder; refused, pack it anew without"
            )


def _open_item(file: tarfile.TarFile, item: tarfile.TarInfo) -> IO[bytes]:
    content = file.extractfile(item)
    assert content is not None  # so it is for folders and links alone, which are not asked for
    return content


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            yield _Archive(path, file)
        return
    if path.is_file() and not tarfile.is_tarfile(path):
        raise UserError(f"{path}: not a whole .zip or .tar.gz archive; fetch it again")
    with tarfile.open(path) as file:
        yield _Archive(path, file)


def _extract(
    archive: _Archive, folder: Path, rules: Sequence[Pick], progress: Callable[[int], object]
) -> Iterator[str]:
    seen: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, archive.lacking(folder, rules))
    for member in archive.members():
        if member.name.lower().endswith(".zip"):
            yield from _extract_inner(member, folder, rules, progress)
            continue
        found = _target(member.name, rules)
        if found is None:
            continue
        rule, target = found
        if (other := seen.setdefault(target.casefold(), member.name)) != member.name:
            raise UserError(
                f"{archive.path}: '{other}' and '{member.name}' are both {target}; pack it anew "
                "with the right one"
            )
        written = _write(member, folder / target, rule)
        progress(1)
        if written:
            yield target


def _extract_inner(
    member: _Member, folder: Path, rules: Sequence[Pick], progress: Callable[[int], object]
) -> Iterator[str]:
    """Unpack an archive inside an archive by way of a file: it has to be read back and forth."""
    _check_space(folder, member.size)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".inner-", suffix=".zip") as copy:
        with member.open() as file:
            shutil.copyfileobj(file, copy, BLOCK_BYTES)
        copy.flush()
        yield from extract(Path(copy.name), folder, rules, progress=progress)


def _target(name: str, rules: Sequence[Pick]) -> tuple[Pick, str] | None:
    """Return the rule for a file and where it goes."""
    base = name.rpartition("/")[2]
    if base.startswith("._") or "__MACOSX/" in name:  # what macOS adds to archives
        return None
    for rule in rules:
        if match := re.search(rf"(?:^|/){rule.pattern}$", name, re.IGNORECASE):
            return rule, match.expand(rule.target)
    return None


def _write(member: _Member, path: Path, rule: Pick) -> bool:
    """Write one file; False if its conversion leaves it out."""
    if _is_there(member, path, rule):
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_space(path.parent, member.size)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with member.open() as source, temporary.open("wb") as file:
            if rule.convert is None:
                shutil.copyfileobj(source, file, BLOCK_BYTES)
            elif (content := rule.convert(member.name, source.read())) is not None:
                file.write(content)
            else:
                return False
        if rule.convert is None and temporary.stat().st_size != member.size:
            raise EOFError(f"'{member.name}' ends early")
        temporary.replace(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _is_there(member: _Member, path: Path, rule: Pick) -> bool:
    if not path.is_file():
        return False
    if rule.convert:
        return True
    if path.stat().st_size != member.size:
        return False
    return member.crc is None or zlib.crc32(path.read_bytes()) == member.crc


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free - SPARE_BYTES < needed:
        raise UserError(
            f"{folder}: {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free; make room there "
            "or choose another folder with --data-dir, and run the same command again"
        )
