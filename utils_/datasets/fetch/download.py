"""Files from the web: resumed where they broke off, checked, and named only when whole."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from utils_.errors import UserError
from utils_.files import file_digest, write_text

logger = logging.getLogger("fednml")
BLOCK_BYTES = 2**20
SPARE_BYTES = 100 * 2**20  # so much is left free on the disk
ATTEMPTS = 5  # so many in a row may bring no new byte
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # with these answers another attempt may succeed
NOTED = ("ETag", "Last-Modified")


@dataclass(frozen=True)
class Source:
    """A file on the web.

    Attributes:
        url: where it is.
        name: what it is called here.
        checksum: ``md5:...`` or ``sha256:...`` as its owner publishes it; None if nobody does.
        size: bytes, where known.
    """

    url: str
    name: str
    checksum: str | None = None
    size: int | None = None


class _BrokenOffError(Exception):
    """The connection ended early; what came is kept."""


class _NothingLeftError(Exception):
    """All bytes are here already."""


class _StaleError(Exception):
    """What lies here does not belong to the file on the server any more; begin anew."""


@dataclass
class _Partial:
    """A file on its way: ``<name>.part`` and, beside it, which version of the file it is."""

    source: Source
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.source.name}.part"

    @property
    def note(self) -> Path:
        return self.folder / f"{self.source.name}.part.json"

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def resumable(self) -> tuple[int, str | None]:
        """The bytes to go on from, and the server's name for the version that they are of.

        Where the server gives no name, only a checksum can tell a mixture of two versions; so
        without a checksum everything is read anew.
        """
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            same, version = note["url"] == self.source.url, note["version"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, None
        return (self.bytes, version) if same and (version or self.source.checksum) else (0, None)

    def begin(self, version: str | None) -> None:
        """Forget what is here; note what will be."""
        self.remove()
        write_text(self.note, json.dumps({"url": self.source.url, "version": version}))

    def remove(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)


def fetch(
    source: Source,
    folder: Path,
    *,
    progress: Callable[[int, int | None], object] = lambda have, total: None,
    timeout: float = 60,
    pause: float = 1.0,
) -> Path:
    """Return the path of a whole, checked file, which is downloaded unless it is there.

    A download that breaks off goes on where it stopped, in later calls too. This call gives up
    after ATTEMPTS without a new byte. A file is read from the start where the server cannot resume
    or has another version by now.

    Args:
        source: what to fetch.
        folder: where to; created.
        progress: called with the bytes that are here and those there will be, if known.
        timeout: seconds without a byte that count as broken off.
        pause: seconds before the first new attempt, doubled each time.

    Raises:
        UserError: no connection, refused, too little space, a wrong length or a wrong checksum.
    """
    target, partial = folder / source.name, _Partial(source, folder)
    if target.exists():
        if (problem := mismatch_of(target, source)) is None:
            return target
        logger.warning("%s: %s; downloading it again", target, problem)
        target.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for resumed in (partial.bytes > 0, False):
            _complete(partial, progress, timeout=timeout, pause=pause)
            problem = mismatch_of(partial.path, source)
            if problem is None:
                partial.path.replace(target)
                partial.note.unlink(missing_ok=True)
                return target
            partial.remove()
            if not resumed:  # else the old part may have been at fault: once more from the start
                break
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}); make room "
            "there or choose another folder with --data-dir"
        ) from error
    raise UserError(f"{source.url}: {problem}; try again, or fetch it by hand and use --from-zip")


def mismatch_of(path: Path, source: Source) -> str | None:
    """Return what is wrong with a file's length or checksum, None if nothing is."""
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        return f"{size:,} bytes where {source.size:,} are expected"
    if source.checksum is None:
        return None
    kind, _, wanted = source.checksum.partition(":")
    found = file_digest(path, kind)
    return None if found == wanted else f"its {kind} is {found} where {wanted} is expected"


def _complete(
    partial: _Partial,
    progress: Callable[[int, int | None], object],
    *,
    timeout: float,
    pause: float,
) -> None:
    """Read until the server says it is the end; try again while that helps."""
    failures = 0
    while True:
        before = partial.bytes
        try:
            return _read(partial, progress, timeout=timeout)
        except _NothingLeftError:
            return None
        except _StaleError as error:
            logger.info("%s: %s; beginning anew", partial.source.name, error)
            partial.remove()
            reason = str(error)
        except _BrokenOffError as error:
            reason = str(error)
        failures = 0 if partial.bytes > before else failures + 1
        if failures >= ATTEMPTS:
            raise UserError(
                f"{partial.source.url}: broke off at {partial.bytes:,} bytes ({reason}), "
                f"{ATTEMPTS} times in a row; run the same command again to go on from there"
            )
        logger.info("%s: %s; trying again", partial.source.name, reason)
        time.sleep(pause * 2 ** max(0, failures - 1))


def _read(
    partial: _Partial, progress: Callable[[int, int | None], object], *, timeout: float
) -> None:
    """Ask for what is lacking and append it.

    Raises:
        _BrokenOffError, _StaleError: see there.
        UserError: refused for good, or too little space.
    """
    have, version = partial.resumable()
    with _open(partial.source, have, version, timeout) as response:
        have, total = _place(response, have)
        size = partial.source.size
        if None not in (size, total) and size != total:
            raise UserError(
                f"{partial.source.url}: the server offers {total:,} bytes where {size:,} are "
                "expected; the file has changed, fetch it by hand and use --from-zip"
            )
        _check_space(partial, have, total)
        if have == 0:
            partial.begin(_version(response))
        with partial.path.open("ab") as file:
            for block in _blocks(response):
                file.write(block)
                have += len(block)
                progress(have, total)
    if total is not None and have < total:
        raise _BrokenOffError(f"ended after {have:,} of {total:,} bytes")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read(BLOCK_BYTES):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from error


def _open(
    source: Source, have: int, version: str | None, timeout: float
) -> http.client.HTTPResponse:
    # Accept-Encoding: a compressed answer would have another length and checksum.
    headers = {"User-Agent": "fednml", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {})
    try:
        request = urllib.request.Request(source.url, headers=headers)
        # The addresses are those of the recipes; nothing that is read names another.
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)  # nosec B310
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            raise _NothingLeftError from error
        if error.code == 416:
            raise _StaleError("the file on the server is shorter") from error
        if error.code in AGAIN:
            raise _BrokenOffError(f"the server answers {error.code} {error.reason}") from error
        raise UserError(
            f"{source.url}: the server answers {error.code} {error.reason}; look up the steps in "
            "data/README.md, fetch the file by hand and use --from-zip"
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionResetError | BrokenPipeError | TimeoutError):
            raise _BrokenOffError(str(error.reason)) from error
        raise UserError(
            f"{source.url}: no connection ({error.reason}); check the network, or fetch the file "
            "elsewhere and use --from-zip"
        ) from error
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from error
    except ValueError as error:
        raise UserError(f"{source.url}: not a URL ({error})") from error


def _place(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return the byte at which the answer begins and the length of the whole file, if said."""
    if response.status == 206:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit != "bytes" or not span.startswith(f"{have}-"):
            raise _StaleError(f"the server sends the range {rest or 'unknown'}")
        return have, int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _version(response: http.client.HTTPResponse) -> str | None:
    """Return what identifies the file for If-Range; weak tags do not."""
    found = (response.headers.get(name) for name in NOTED)
    return next((text for text in found if text and not text.startswith("W/")), None)


def _check_space(partial: _Partial, have: int, total: int | None) -> None:
    lacking = (total or 0) - have
    with suppress(FileNotFoundError):
        free = shutil.disk_usage(partial.folder).free
        if free - SPARE_BYTES < lacking:
            raise OSError(
                errno.ENOSPC,
                f"{lacking / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free",
                str(partial.folder),
            )
