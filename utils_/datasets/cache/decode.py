"""Image files to small square uint8 arrays, alone or by several reader processes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils_.datasets.cache.image_files import open_picture
from utils_.datasets.cache.picture import DEEP, WIDE, Picture, to_rgb
from utils_.datasets.cache.pixel_range import (
    AUTO,
    FULL,
    Bounds,
    common_range,
    range_text,
    used_range,
)
from utils_.errors import UserError
from utils_.files import read_regular

FITS = ("crop", "pad")
ROOT = Path(__file__).resolve().parents[3]
CHUNK_BYTES = 8 * 2**20
CHUNK_IMAGES = 64


class Decoded(NamedTuple):
    """What became of a file.

    Attributes:
        digest: of its bytes; "" if it could not be read.
        problem: what is wrong; "" if nothing is.
        depth: DEEP, WINDOWED or WIDE where the pixel range matters, else "".
        used: the range that a deep image uses.
        pages: how many the file holds.
    """

    digest: str
    problem: str = ""
    depth: str = ""
    used: Bounds | None = None
    pages: int = 1


Job = dict[str, Any]
"""The arguments of :func:`decode_chunk`, by name."""


def decode(data: bytes, *, image_size: int, fit: str, pixel_range: str = FULL) -> np.ndarray:
    """Turn the bytes of an image file into (image_size, image_size, 3) uint8 RGB.

    - PNG, JPEG, TIFF and BMP, and DICOM where pydicom is installed.
    - The aspect ratio is kept: ``crop`` scales the shorter side and takes the centre, ``pad``
      scales the longer side and fills with black. Reduction is antialiased (bicubic).
    - EXIF rotation is applied.
    - Images with transparency are laid over black.
    - Values of more than 8 bits go through ``pixel_range``: ``LOW,HIGH``, or ``full``, which
      divides 16-bit values by 257; ``auto`` is ``full`` but for the window of a DICOM file.
    - Of several pages the first counts.

    Raises:
        Exception: whatever the decoder raises for broken data; ValueError for 32-bit pixels
            without LOW,HIGH and for other unusable pixels.
    """
    picture = open_picture(data, edge=image_size, fit=fit)
    return np.asarray(_square(to_rgb(picture, pixel_range), image_size, fit))


def decode_alike(
    paths: Sequence[Path], *, image_size: int, fit: str, pixel_range: str
) -> list[np.ndarray]:
    """Decode some files as a set: ``auto`` is the range that these use together."""
    every = [read_regular(path) for path in paths]
    pictures = [open_picture(data, edge=image_size, fit=fit) for data in every]
    ranges = [used_range(picture.values) for picture in pictures if picture.depth == DEEP]
    bounds = common_range(ranges) if ranges else None
    chosen = [_range_of(picture, pixel_range, bounds) for picture in pictures]
    images = [to_rgb(picture, text) for picture, text in zip(pictures, chosen, strict=True)]
    return [np.asarray(_square(image, image_size, fit)) for image in images]


def decode_file(
    path: Path, *, image_size: int, fit: str, pixel_range: str, bounds: Bounds | None
) -> tuple[np.ndarray, str]:
    """Decode one file as the images of a training set were; see :func:`decode`.

    Args:
        path: the file, which may be absent.
        image_size, fit, pixel_range: as in the training.
        bounds: the range that ``auto`` measured there; None where no image was deep.

    Returns:
        (image_size, image_size, 3) uint8, and why it is black if it is no usable image, else "".
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as decode_chunk does
            picture = open_picture(read_regular(path), edge=image_size, fit=fit)
            text = _range_of(picture, pixel_range, bounds)
            if picture.depth == DEEP and text == AUTO:
                raise ValueError("more than 8 bits, as no training image; give --pixel-range")
            return np.asarray(_square(to_rgb(picture, text), image_size, fit)), ""
    except Exception as error:  # decoders raise nearly anything; all of it is reported
        return np.zeros((image_size, image_size, 3), np.uint8), _reason(error)


def _range_of(picture: Picture, pixel_range: str, bounds: Bounds | None) -> str:
    """The range of one picture: ``auto`` is what was measured, but for one with a window."""
    if bounds and pixel_range == AUTO and picture.depth == DEEP:
        return range_text(bounds)
    return pixel_range


def square_array(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """Turn (side, side) or (side, side, 3) uint8 into (image_size, image_size, 3), as decode."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if len(pixels) == image_size:
        return pixels
    return np.asarray(_square(Image.fromarray(pixels), image_size, "crop"))


def content_digest(data: bytes) -> str:
    """Return 32 hex digits that stand for the content of a file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode_files(
    paths: Sequence[str],
    *,
    rows: Sequence[int],
    output: Path,
    offset: int,
    image_size: int,
    fit: str,
    pixel_range: str,
    workers: int,
    progress: Callable[[int], object],
) -> list[Decoded]:
    """Decode ``paths`` and write each at its row of ``output``.

    Args:
        paths: image files, which exist.
        rows: where each goes; row i begins at byte ``offset + i * image_size**2 * 3``.
        output: an existing file, written in place; rows of bad images are black, and those of deep
            images where ``pixel_range`` is ``auto``, for then their range has to be known first.
        offset: where row 0 begins.
        image_size: edge in pixels.
        fit: ``crop`` or ``pad``.
        pixel_range: ``auto``, ``full`` or ``LOW,HIGH``.
        workers: processes; with 1, this process does the work itself.
        progress: called with the number of images of each finished part.

    Raises:
        OSError: ``output`` cannot be written.
        UserError: a reader process died.
    """
    common = {
        "output": str(output.resolve()),
        "offset": offset,
        "image_size": image_size,
        "fit": fit,
        "pixel_range": pixel_range,
    }
    length = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (image_size**2 * 3)))
    jobs = [
        {
            "paths": [*map(os.path.abspath, paths[first : first + length])],
            "rows": [*rows[first : first + length]],
            **common,
        }
        for first in range(0, len(paths), length)
    ]
    results: list[Decoded] = []
    with _readers(min(workers, len(jobs))) as read:
        for part in read(jobs):
            results.extend(part)
            progress(len(part))
    return results


def decode_chunk(
    paths: Sequence[str],
    *,
    rows: Sequence[int],
    output: str,
    offset: int,
    image_size: int,
    fit: str,
    pixel_range: str,
) -> list[Decoded]:
    """Decode some files in this process and write them to their rows; see decode_files."""
    images = np.zeros((len(paths), image_size, image_size, 3), np.uint8)
    results = []
    with warnings.catch_warnings():
        # Odd EXIF data and images of 90 megapixels and more are usable, as long as memory allows.
        warnings.simplefilter("ignore")
        for image, path in zip(images, paths, strict=True):
            results.append(_decode_into(image, path, fit, pixel_range))
    with Path(output).open("rb+") as file:
        for row, image in zip(rows, images, strict=True):
            file.seek(offset + row * image.nbytes)
            file.write(image.data)
    return results


def problem_of(path: str, *, image_size: int, fit: str, pixel_range: str) -> str:
    """Return why one image cannot be decoded, or "" if it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = np.empty((image_size, image_size, 3), np.uint8)
        return _decode_into(image, path, fit, pixel_range).problem


def serve() -> None:
    """Answer decode_chunk jobs, one JSON line each, until the input ends; for a reader process."""
    # The parent ends this process by closing the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        try:
            reply: dict[str, Any] = {"results": decode_chunk(**json.loads(line))}
        except OSError as error:
            reply = {"errno": error.errno, "text": error.strerror}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


class _Reader:
    """A process that runs :func:`serve`.

    Not multiprocessing: a spawned child imports the main script again (with torch, seconds; without
    an ``if __name__`` guard, for ever), and a forked one may inherit locks that nobody releases.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from utils_.datasets.cache.decode import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff writes there; failures come back in the reply
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            encoding="utf-8",
        )
        jobs, answers = self._process.stdin, self._process.stdout
        assert jobs is not None and answers is not None  # they are pipes, which the type omits
        self._jobs, self._answers = jobs, answers

    def __call__(self, job: Job) -> list[Decoded]:
        try:
            self._jobs.write(json.dumps(job) + "\n")
            self._jobs.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(
                f"a process that reads images ended early (exit code {self._process.wait()}, "
                "perhaps out of memory); try --workers 1"
            )
        reply = json.loads(answer)
        if "errno" in reply:
            raise OSError(reply["errno"], reply["text"])
        return [_unpacked(*fields) for fields in reply["results"]]

    def close(self) -> None:
        with suppress(BrokenPipeError):  # it is gone already, which __call__ has reported
            self._jobs.close()
        self._answers.close()
        self._process.wait()


@contextmanager
def _readers(workers: int) -> Iterator[Callable[[Sequence[Job]], Iterator[list[Decoded]]]]:
    """Yield a function that runs jobs, in order, in this process or in several."""
    if workers <= 1:
        yield lambda jobs: (decode_chunk(**job) for job in jobs)
        return
    idle: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
    with ExitStack() as stack:
        for _ in range(workers):
            reader = _Reader()
            stack.callback(reader.close)
            idle.put(reader)

        def run(job: Job) -> list[Decoded]:
            reader = idle.get()
            try:
                return reader(job)
            finally:
                idle.put(reader)

        threads = ThreadPoolExecutor(workers)
        stack.callback(threads.shutdown, wait=True, cancel_futures=True)
        yield lambda jobs: threads.map(run, jobs)


def _unpacked(
    digest: str, problem: str, depth: str, used: Sequence[float] | None, pages: int
) -> Decoded:
    """Undo what JSON made of a result: it knows lists only."""
    return Decoded(digest, problem, depth, (used[0], used[1]) if used else None, pages)


def _decode_into(image: np.ndarray, path: str, fit: str, pixel_range: str) -> Decoded:
    digest = ""
    try:
        data = read_regular(path)
        digest = content_digest(data)
        picture = open_picture(data, edge=len(image), fit=fit)
        used = used_range(picture.values) if picture.depth == DEEP else None
        if used is None or pixel_range != AUTO:
            image[:] = np.asarray(_square(to_rgb(picture, pixel_range), len(image), fit))
    except Exception as error:  # decoders raise nearly anything; all of it is reported
        return Decoded(digest, _reason(error))
    unchecked = WIDE if picture.wide and pixel_range == FULL else ""
    return Decoded(digest, "", picture.depth or unchecked, used, picture.pages)


def _square(image: Image.Image, size: int, fit: str) -> Image.Image:
    if fit == "crop":
        side = min(image.size)
        left, top = ((edge - side) / 2 for edge in image.size)
        box = (left, top, left + side, top + side)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    scale = size / max(image.size)
    width, height = (max(1, math.floor(edge * scale + 0.5)) for edge in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return canvas


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "broken, or not a PNG, JPEG, TIFF or BMP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:120] or type(error).__name__
