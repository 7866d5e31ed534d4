"""Image files to small square uint8 arrays, alone or by several reader processes."""

from __future__ import annotations

import hashlib
import io
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
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils_.errors import UserError

FITS = ("crop", "pad")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ROOT = Path(__file__).resolve().parents[3]
CHUNK_BYTES = 8 * 2**20
CHUNK_IMAGES = 64

Decoded = tuple[str, str]
"""Digest of a file's bytes ("" if it could not be read) and what is wrong ("" if nothing is)."""

Job = dict[str, Any]
"""The arguments of :func:`decode_chunk`, by name."""


def decode(data: bytes, *, image_size: int, fit: str) -> np.ndarray:
    """Turn the bytes of a PNG, JPEG, TIFF or BMP file into (image_size, image_size, 3) uint8 RGB.

    - The aspect ratio is kept: ``crop`` scales the shorter side and takes the centre, ``pad``
      scales the longer side and fills with black. Reduction is antialiased (bicubic).
    - EXIF rotation is applied.
    - Images with transparency are laid over black.
    - 16-bit values are divided by 257.
    - Of several pages the first counts.

    Raises:
        Exception: whatever the decoder raises for broken data; ValueError for 32-bit pixels.
    """
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    side = (min if fit == "crop" else max)(image.size)
    # JPEG only: let the decoder reduce by 2, 4 or 8, never below the size that is wanted.
    width, height = (max(1, edge * image_size // side) for edge in image.size)
    image.draft(None, (width, height))
    image.load()
    return np.asarray(_square(_rgb(_upright(image)), image_size, fit))


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
    output: Path,
    offset: int,
    image_size: int,
    fit: str,
    workers: int,
    progress: Callable[[int], object],
) -> list[Decoded]:
    """Decode ``paths`` and write image i at byte ``offset + i * image_size**2 * 3`` of ``output``.

    Args:
        paths: image files, which exist.
        output: an existing file, written in place; rows of bad images are black.
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
    }
    length = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (image_size**2 * 3)))
    jobs = [
        {"paths": [*map(os.path.abspath, paths[first : first + length])], "first": first, **common}
        for first in range(0, len(paths), length)
    ]
    results: list[Decoded] = []
    with _readers(min(workers, len(jobs))) as read:
        for part in read(jobs):
            results.extend(part)
            progress(len(part))
    return results


def decode_chunk(
    paths: Sequence[str], *, first: int, output: str, offset: int, image_size: int, fit: str
) -> list[Decoded]:
    """Decode some files in this process and write them from row ``first`` on; see decode_files."""
    images = np.zeros((len(paths), image_size, image_size, 3), np.uint8)
    results = []
    with warnings.catch_warnings():
        # Odd EXIF data and images of 90 to 179 megapixels are usable; beyond that Pillow raises.
        warnings.simplefilter("ignore")
        for image, path in zip(images, paths, strict=True):
            results.append(_decode_into(image, path, fit))
    with Path(output).open("rb+") as file:
        file.seek(offset + first * images[0].nbytes)
        file.write(images.data)
    return results


def problem_of(path: str, *, image_size: int, fit: str) -> str:
    """Return why one image cannot be decoded, or "" if it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decode_into(np.empty((image_size, image_size, 3), np.uint8), path, fit)[1]


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
        return [(digest, problem) for digest, problem in reply["results"]]

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


def _decode_into(image: np.ndarray, path: str, fit: str) -> Decoded:
    digest = ""
    try:
        data = Path(path).read_bytes()
        digest = content_digest(data)
        image[:] = decode(data, image_size=len(image), fit=fit)
    except Exception as error:  # decoders raise nearly anything; all of it is reported
        return digest, _reason(error)
    return digest, ""


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # turned while loading; Pillow 10.0 would turn it once more
        return image
    with suppress(SyntaxError):  # Pillow's error for EXIF it cannot parse; the pixels are fine
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("32-bit floating point pixels; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colours = image.convert("RGBA")
        black = Image.new("RGB", image.size)
        black.paste(colours, mask=colours.getchannel("A"))
        return black
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit integer pixels; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


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
    return " ".join(str(error).split())[:100] or type(error).__name__
