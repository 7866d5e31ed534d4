"""Images decoded and resized once, then memory-mapped; checked whenever they are opened."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from utils_.datasets.cache.array_file import (
    allocate,
    keep_rows,
    new_file,
    note_facts,
    open_array,
    publish,
    read_facts,
    writing,
)
from utils_.datasets.cache.decode import Decoded, content_digest, decode_files, problem_of
from utils_.datasets.cache.facts import Facts, report_facts, same_pixels
from utils_.datasets.cache.image_files import has_wide_pixels
from utils_.datasets.cache.index import CacheIndex, Signature, signature
from utils_.datasets.cache.picture import DEEP, WINDOWED
from utils_.datasets.cache.pixel_range import AUTO, FULL, common_range, range_text, too_dark
from utils_.errors import UserError, some
from utils_.files import read_regular

logger = logging.getLogger("fednml")
FORMAT = 1  # to be raised whenever the same file gives other pixels
SMALL_BYTES = 4 * 2**20  # this much is decoded before a reader process has started
NAMES_SHOWN = 10
MISSING = "missing"
LOOKED_AT = 5000  # names among which the nearest is sought


@dataclass(frozen=True)
class ImageRequest:
    """Which images are wanted, and how.

    Attributes:
        folder: where the files lie.
        files: their paths below ``folder``.
        cache_dir: where the cache lies; created when needed.
        image_size: edge in pixels.
        fit: ``crop`` or ``pad``, see decode.
        pixel_range: ``auto``, ``full`` or ``LOW,HIGH``: which values of more than 8 bits become
            black and white. ``auto`` measures the range that all images use together.
        skip_bad_images: leave out what cannot be decoded instead of stopping.
        workers: processes that decode.
        quiet: no progress bar.
    """

    folder: Path
    files: Sequence[str]
    cache_dir: Path
    image_size: int
    fit: str = "crop"
    pixel_range: str = AUTO
    skip_bad_images: bool = False
    workers: int = 1
    quiet: bool = False

    @property
    def paths(self) -> list[str]:
        """The paths of all files, as text because thousands of Path objects are slow."""
        return [f"{self.folder}{os.sep}{file}" for file in self.files]

    def shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of the array of so many images."""
        return (images, self.image_size, self.image_size, 3)

    @property
    def slot(self) -> str:
        """What is asked for, whatever the images contain."""
        names = hashlib.sha256("\n".join(self.files).encode("utf-8", "surrogatepass"))
        ranged = "" if self.pixel_range == AUTO else f"-{self.pixel_range}"
        return f"{names.hexdigest()[:16]}-{self.image_size}-{self.fit}{ranged}"


@dataclass(frozen=True)
class CachedImages:
    """What :func:`load_images` gives.

    Attributes:
        images: (n, size, size, 3) uint8, memory-mapped, read-only.
        rows: (n,) ascending, which of the requested files they are; all, unless bad are skipped.
        key: hex digest of the contents in order, the size, the fit, and the pixel range where it
            matters.
        facts: what is known of the n images.
    """

    images: np.ndarray
    rows: np.ndarray
    key: str
    facts: Facts


def load_images(request: ImageRequest) -> CachedImages:
    """Return the images from the cache, which is built first where it is absent, stale or damaged.

    The cache file is named by the content of the images (never by labels). So two folders with the
    same images share one, and a changed image leads to another. Its length and CRC-32 are checked.

    Raises:
        UserError: images are missing or broken (all are named), or the cache cannot be written.
    """
    signatures = [signature(path) for path in request.paths]
    index = CacheIndex(request.cache_dir, request.folder)
    digests = index.recall(request.files, signatures)
    if _holds_arrays(request.cache_dir):
        _hash_unknown(request, signatures, digests)
    problems = {row: MISSING for row, found in enumerate(signatures) if found is None}
    problems |= _recheck(request, index, digests)
    rows = [row for row in range(len(request.files)) if row not in problems]
    contents = [digest for row in rows if (digest := digests[row]) is not None]
    known = len(contents) == len(rows)
    if known and (found := _find(request, rows, contents)):
        _judge(request, problems)
        _remember(request, index, found.key, signatures, digests, problems)
    else:
        if not request.skip_bad_images and known and index.decoded.issuperset(contents):
            _judge(request, problems)  # all are known: stop before decoding instead of after it
        with writing(request.cache_dir):
            found = _build(request, index, signatures)
    report_facts(found.facts, [request.files[row] for row in found.rows])
    return found


def _find(request: ImageRequest, rows: list[int], contents: list[str]) -> CachedImages | None:
    """Return the images from a cache file; where none needs a pixel range, any range serves."""
    for ranged in (False,) if request.pixel_range == FULL else (True, False):
        key = _key(request, contents, ranged=ranged)
        path = request.cache_dir / f"{key}.npy"
        images = open_array(path, request.shape(len(rows))) if rows else None
        if images is not None:
            facts = _facts_of(request, path, images, rows)
            if ranged or request.pixel_range == FULL or not facts.ranged:
                return CachedImages(images, np.array(rows), key, facts)
    return None


def _facts_of(request: ImageRequest, path: Path, images: np.ndarray, rows: list[int]) -> Facts:
    """Return what was noted beside a cache file; one of an earlier version is looked over."""
    with suppress(TypeError):  # what another version noted, or nothing
        return Facts(**read_facts(path))
    paths = request.paths
    copies, flat = same_pixels(images)
    facts = Facts(copies, flat, ranged=sum(has_wide_pixels(paths[row]) for row in rows))
    note_facts(path, asdict(facts))
    return facts


def _holds_arrays(folder: Path) -> bool:
    """Whether there is any cache file to look for."""
    try:
        return any(folder.glob("*.npy"))
    except PermissionError:  # the build says so in one line when it opens the folder
        return False


def _build(
    request: ImageRequest, index: CacheIndex, signatures: Sequence[Signature | None]
) -> CachedImages:
    """Decode all files into a new cache file, then give it the name of its content."""
    begin = time.perf_counter()
    present = [row for row, found in enumerate(signatures) if found is not None]
    problems = {row: MISSING for row, found in enumerate(signatures) if found is None}
    with new_file(request.cache_dir) as temporary:
        offset = allocate(temporary, request.shape(len(present)))
        decoding = _Decoding(request, signatures, temporary, offset)
        decoded = dict(zip(present, decoding.run(present), strict=True))
        problems |= {row: found.problem for row, found in decoded.items() if found.problem}
        rows = _judge(request, problems)
        good = [decoded[row] for row in rows.tolist()]
        places = np.searchsorted(present, rows)
        facts = _set_range(decoding, good, rows.tolist(), places.tolist())
        if len(rows) < len(present):
            keep_rows(temporary, places)
        facts.copies, facts.flat = same_pixels(np.load(temporary, mmap_mode="r"))
        key = _key(request, [found.digest for found in good], ranged=facts.ranged > 0)
        path = request.cache_dir / f"{key}.npy"
        publish(temporary, path, asdict(facts))
    digests = [
        decoded[row].digest or None if row in decoded else None for row in range(len(signatures))
    ]
    _remember(request, index, key, signatures, digests, problems)
    logger.info("decoded %d images in %.1f s: %s", len(rows), time.perf_counter() - begin, path)
    return CachedImages(np.load(path, mmap_mode="r"), rows, key, facts)


def _set_range(
    decoding: _Decoding, good: Sequence[Decoded], rows: Sequence[int], places: Sequence[int]
) -> Facts:
    """Decode deep images once more, now that the range of all of them is known.

    Args:
        decoding: how.
        good: the usable images.
        rows: which of the requested files each is.
        places: its place in the array.
    """
    facts = Facts(pages=sum(found.pages > 1 for found in good))
    facts.ranged = sum(found.depth != "" for found in good)
    if decoding.request.pixel_range == AUTO:
        facts.windowed = sum(found.depth == WINDOWED for found in good)
    ranges = {number: found.used for number, found in enumerate(good) if found.used}
    if not ranges or decoding.request.pixel_range != AUTO:
        return facts
    facts.used = common_range(list(ranges.values()))
    deep = [number for number, found in enumerate(good) if found.depth == DEEP]
    decoding.run(
        [rows[number] for number in deep],
        places=[places[number] for number in deep],
        pixel_range=range_text(facts.used),
    )
    facts.dark = [number for number, used in ranges.items() if too_dark(used, facts.used)]
    if facts.dark:
        facts.dark_used = common_range([ranges[number] for number in facts.dark])
    return facts


def _hash_unknown(
    request: ImageRequest, signatures: Sequence[Signature | None], digests: list[str | None]
) -> None:
    """Fill in the digests of files that have not been seen as they are, by reading them."""

    def digest(row: int) -> str | None:
        try:
            return content_digest(read_regular(paths[row]))
        except OSError:
            return None  # stays unknown; the decoder will report it

    paths = request.paths
    unknown = [row for row, found in enumerate(signatures) if found and digests[row] is None]
    with ThreadPoolExecutor(max(1, request.workers)) as threads:
        for row, value in zip(unknown, threads.map(digest, unknown), strict=True):
            digests[row] = value


def _recheck(request: ImageRequest, index: CacheIndex, digests: list[str | None]) -> dict[int, str]:
    """Return the files that failed before and still do: a newer decoder may read them."""
    paths = request.paths if index.bad else []
    again = [row for row, digest in enumerate(digests) if digest in index.bad]
    found = {
        row: problem_of(
            paths[row],
            image_size=request.image_size,
            fit=request.fit,
            pixel_range=request.pixel_range,
        )
        for row in again
    }
    return {row: problem for row, problem in found.items() if problem}


def _judge(request: ImageRequest, problems: dict[int, str]) -> np.ndarray:
    """Return the rows without problem; stop, or log, where there are others."""
    total = len(request.files)
    rows = np.array([row for row in range(total) if row not in problems], dtype=np.int64)
    if not problems:
        return rows
    named = [f"{request.files[row]} ({problems[row]})" for row in sorted(problems)]
    if request.skip_bad_images and len(rows):
        logger.warning("left out %d of %d images: %s", len(named), total, ", ".join(named))
        return rows
    raise UserError(
        f"{request.folder}: {len(named)} of {total} images cannot be used: "
        f"{some(named, NAMES_SHOWN)}; {_advice(request, problems)}"
    )


def _advice(request: ImageRequest, problems: dict[int, str]) -> str:
    """Say what to do about unusable images, the missing ones first."""
    missing = [request.files[row] for row in sorted(problems) if problems[row] == MISSING]
    deeds = []
    if missing:
        deeds.append(f"correct the names in the label files{_hint(request.folder, missing[0])}")
    if len(missing) < len(problems):
        deeds.append("replace what is broken")
    if not request.skip_bad_images and len(problems) < len(request.files):
        deeds.append("or leave these images out with --skip-bad-images")
    return ", ".join(deeds)


def _hint(folder: Path, file: str) -> str:
    """Return the name in the folder that is nearest to a missing one, or an example of one."""
    parent = (folder / file).parent
    there = sorted(entry.name for entry in parent.glob("*")) if parent.is_dir() else []
    if not there:
        return f" ({parent} holds no file)"
    close = difflib.get_close_matches(Path(file).name, there[:LOOKED_AT], n=1)
    return f" ({parent} holds {(close or there)[0]!r})"


def _key(request: ImageRequest, digests: Sequence[str], *, ranged: bool) -> str:
    head = f"{FORMAT} {request.image_size} {request.fit}"
    if ranged and request.pixel_range != FULL:
        head += f" {request.pixel_range}"
    return hashlib.sha256("\n".join([head, *digests]).encode()).hexdigest()[:32]


def _remember(
    request: ImageRequest,
    index: CacheIndex,
    key: str,
    signatures: Sequence[Signature | None],
    digests: Sequence[str | None],
    problems: dict[int, str],
) -> None:
    bad = {digest for row in problems if (digest := digests[row])}
    index.note(request.files, signatures, digests, bad=bad)
    index.use(request.slot, key)
    try:
        index.save()
    except OSError as error:  # a cache folder shared read-only is fine, only a little slower
        logger.info("%s: the index cannot be written (%s)", request.cache_dir, error.strerror)


@dataclass(frozen=True)
class _Decoding:
    """Decodes files of a request into a file."""

    request: ImageRequest
    signatures: Sequence[Signature | None]
    output: Path
    offset: int

    def run(
        self,
        rows: Sequence[int],
        *,
        places: Sequence[int] | None = None,
        pixel_range: str | None = None,
    ) -> list[Decoded]:
        """Decode some of the files to their places in the output, by default from its start on."""
        from tqdm import tqdm

        request, paths = self.request, self.request.paths
        sizes = [found[0] for row in rows if (found := self.signatures[row]) is not None]
        # No bar where nobody watches: a run that stops on bad images writes one line to stderr.
        hidden = True if request.quiet else None
        with tqdm(
            total=len(rows), desc="images", unit="image", disable=hidden, delay=0.5, leave=False
        ) as bar:
            return decode_files(
                [paths[row] for row in rows],
                rows=range(len(rows)) if places is None else places,
                output=self.output,
                offset=self.offset,
                image_size=request.image_size,
                fit=request.fit,
                pixel_range=pixel_range or request.pixel_range,
                workers=1 if sum(sizes) < SMALL_BYTES else request.workers,
                progress=bar.update,
            )
