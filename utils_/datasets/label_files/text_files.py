"""From the bytes of a table to rows of cells: encodings and separators as programs export them."""

from __future__ import annotations

import codecs
import csv
import gc
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils_.errors import UserError
from utils_.files import read_regular

Records = list[tuple[int, list[str]]]  # line number (from 1) on which a row ends, stripped cells
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
WORKBOOK = "is an Excel or LibreOffice workbook"
NO_TEXT = {  # how files begin that are no text
    b"PK\x03\x04": WORKBOOK,
    b"\xd0\xcf\x11\xe0": WORKBOOK,
    b"PAR1": "is a Parquet file",
    b"\x1f\x8b": "is compressed by gzip",
    b"\x89HDF": "is an HDF5 file",
}
EXPORT = "in Excel use File > Save As > 'CSV UTF-8', elsewhere export it as CSV"
SPACE = re.compile(r"[^\S\r\n]")
# Three accented letters in a row are no word of a western language: some other encoding.
OTHER_SCRIPT = re.compile(rb"[\x80-\xff]{3}")
# Windows-1252 has signs here, which stand in no word, and capitals, which follow no small letter:
# there DOS and old Macs have their letters.
_LETTER = rb"[A-Za-z\x8a\x8c\x8e\x9a\x9c\x9e\x9f\xc0-\xff]"
_SIGN = (
    rb"[\x80-\x89\x8b\x8d\x8f-\x91\x93-\x95\x98\x99\x9b\x9d\xa1-\xa9\xab\xac\xae-\xb3\xb6\xb8\xb9]"
)
INSIDE_A_WORD = re.compile(
    _LETTER + _SIGN + _LETTER + rb"|[a-z\xdf-\xff][\x8a\x8c\x8e\x9f]|[\x80-\x9f]{2}"
)


@dataclass(frozen=True)
class TableText:
    """What a file says before anything is understood.

    Attributes:
        records: the rows that hold anything.
        notes: in which ways the file is not plain UTF-8 with commas.
    """

    records: Records
    notes: tuple[str, ...]


def read_records(path: Path) -> TableText:
    """Read the rows of a table: UTF-8, UTF-16 with a mark or Windows-1252; , ; tab or | between.

    Raises:
        UserError: absent, no text, in no such encoding, not valid CSV, or split by several
            separators equally well.
    """
    text, encoding = _text(path)
    text, separator = _without_hint(text)
    records, separator = _split(path, text, separator)
    notes = [f"encoded as {encoding}"] * (encoding != "UTF-8")
    notes += [f"split by {SEPARATORS[separator]}"] * (separator != ",")
    return TableText(records, tuple(notes))


def _text(path: Path) -> tuple[str, str]:
    """Return the text and the name of its encoding."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    _refuse_other_files(path, data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _decoded(path, data, "utf-16"), "UTF-16"
    if 3 * data[:1000].count(0) > len(data[:1000]):
        raise UserError(f"{path}: looks like UTF-16 without its mark; save the file as 'CSV UTF-8'")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(0)) + 1
        raise UserError(
            f"{path}, line {line}: a byte of 0 is no text; save the file as 'CSV UTF-8'"
        )
    try:
        return data.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError as error:
        strange = OTHER_SCRIPT.search(data) or INSIDE_A_WORD.search(data)
        if strange:
            raise _undecodable(path, data, strange.start()) from error
        return _decoded(path, data, "cp1252"), "Latin-1 (Windows-1252)"


def _refuse_other_files(path: Path, data: bytes) -> None:
    for start, what in NO_TEXT.items():
        if data.startswith(start):
            raise UserError(f"{path}: {what}, not text, whatever its name; {EXPORT}")
    if data[:200].lstrip().lower().startswith((b"<html", b"<!doctype", b"<table", b"<?xml")):
        raise UserError(f"{path}: is a web page (HTML or XML), not a table in text; {EXPORT}")


def _decoded(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(path, data, error.start) from error


def _undecodable(path: Path, data: bytes, place: int) -> UserError:
    line = data.count(b"\n", 0, place) + 1
    place = next((at for at in range(place, len(data)) if data[at] > 0x7F), place)
    return UserError(
        f"{path}, line {line}: byte 0x{data[place]:02x} is neither UTF-8 nor Latin-1 text; "
        "save the file as 'CSV UTF-8'"
    )


def _without_hint(text: str) -> tuple[str, str | None]:
    """Take away the line ``sep=;`` with which a file tells Excel its separator."""
    found = re.match(r'"?sep=(.)"?\r?\n', text, flags=re.IGNORECASE)
    if not found or found[1] not in SEPARATORS:
        return text, None
    return "\n" + text[found.end() :], found[1]


def _split(path: Path, text: str, separator: str | None) -> tuple[Records, str]:
    """Return the rows and what separates their cells, judged by all rows."""
    if separator:
        return _records(path, text, separator), separator
    begin = text.lstrip("\r\n")[:100_000]
    header = begin.splitlines()[0] if begin.strip() else ""
    present = [mark for mark in SEPARATORS if mark in header] or [","]
    if len(present) == 1:
        return _records(path, text, present[0]), present[0]
    fitting = {mark: rows for mark in present if (rows := _regular(path, text, mark))}
    if len(fitting) > 1:
        told = " and by ".join(SEPARATORS[mark] for mark in fitting)
        raise UserError(f"{path}: can be split by {told}; write the names of columns in quotes")
    mark = next(iter(fitting), present[0])
    return fitting.get(mark) or _records(path, text, mark), mark


def _regular(path: Path, text: str, separator: str) -> Records | None:
    """The rows, if all have the same number of cells, which is more than one."""
    try:
        records = _records(path, text, separator)
    except UserError:
        return None
    widths = {len(row) for _, row in records}
    return records if len(widths) == 1 and widths != {1} else None


def _records(path: Path, text: str, separator: str) -> Records:
    """Split into (line number, stripped cells), rows of nothing but blanks left out."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    spaces = '"' in text or SPACE.search(text)  # else there is nothing to strip
    records = []
    collecting = gc.isenabled()
    gc.disable()  # millions of rows without a circle, looked through again and again
    try:
        for row in reader:
            cells = list(map(str.strip, row)) if spaces else row
            if any(cells):
                records.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error
    finally:
        if collecting:
            gc.enable()
    return records


def edited(path: Path, changes: Mapping[int, Mapping[int, str]]) -> bytes:
    """Return the bytes of a table with other texts in some cells.

    Encoding, separator and line ends stay. So do all rows without a change, byte for byte; in
    those with one, quotes stand only where they are needed.

    Args:
        path: the file; it is not written.
        changes: {line on which a row ends, from 1: {place of the cell in the row: its text}}.

    Raises:
        UserError: as :func:`read_records`; or a text cannot be written in the file's encoding.
    """
    text, encoding = _text(path)
    body, separator = _without_hint(text)
    _, separator = _split(path, body, separator)
    lines = list(io.StringIO(text, newline=""))  # ends at the same places as for csv.reader
    reader = csv.reader(io.StringIO(body, newline=""), strict=True, delimiter=separator)
    begin, pieces = 0, []
    for row in reader:
        own = "".join(lines[begin : reader.line_num])
        begin = reader.line_num
        wanted = changes.get(begin)
        pieces.append(_row(row, wanted, separator) + _end_of_line(own) if wanted else own)
    return _encoded(path, "".join(pieces), encoding)


def _row(cells: list[str], wanted: Mapping[int, str], separator: str) -> str:
    line = io.StringIO()
    writer = csv.writer(line, delimiter=separator, lineterminator="\r\n")  # these get quotes
    writer.writerow([wanted.get(place, cell) for place, cell in enumerate(cells)])
    return line.getvalue().removesuffix("\r\n")


def _end_of_line(text: str) -> str:
    return text[len(text.rstrip("\r\n")) :]


def _encoded(path: Path, text: str, encoding: str) -> bytes:
    """The text as the file has it, with its mark."""
    mark = read_regular(path)[:3]
    codec = {"UTF-8": "utf-8-sig" if mark == codecs.BOM_UTF8 else "utf-8"}.get(encoding, "cp1252")
    if encoding == "UTF-16":
        little = mark.startswith(codecs.BOM_UTF16_LE)
        start = codecs.BOM_UTF16_LE if little else codecs.BOM_UTF16_BE
        return start + text.encode("utf-16-le" if little else "utf-16-be")
    try:
        return text.encode(codec)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}: {text[error.start]!r} cannot be written as {encoding}; save the file as "
            "'CSV UTF-8'"
        ) from error
