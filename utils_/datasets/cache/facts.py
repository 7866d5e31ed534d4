"""What is known of the images in a cache file: found once, when it is built, and kept beside it."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from utils_.datasets.cache.pixel_range import Bounds
from utils_.errors import some

logger = logging.getLogger("fednml")


@dataclass
class Facts:
    """Of n images; all numbers are rows of the array.

    Attributes:
        copies: sets of images with the same pixels at the loaded size, those of one colour apart.
        flat: images of a single colour.
        ranged: how many images the pixel range matters for.
        windowed: how many are shown through the window that their file names.
        used: the range of values that became 0 to 255; None if each image has its own, or none.
        dark: images that use so little of it that they are nearly black.
        dark_used: the range that those use.
        pages: how many files hold further pages or frames.
    """

    copies: list[list[int]] = field(default_factory=list)
    flat: list[int] = field(default_factory=list)
    ranged: int = 0
    windowed: int = 0
    used: Bounds | None = None
    dark: list[int] = field(default_factory=list)
    dark_used: Bounds | None = None
    pages: int = 0

    def __post_init__(self) -> None:
        """Undo what JSON makes of pairs."""
        self.used = self.used and (self.used[0], self.used[1])
        self.dark_used = self.dark_used and (self.dark_used[0], self.dark_used[1])


def same_pixels(images: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Return the sets of equal images and the images of a single colour, as rows.

    Args:
        images: (n, H, W, 3) uint8.
    """
    same: dict[bytes, list[int]] = defaultdict(list)
    flat = []
    for row, image in enumerate(images):
        if _is_flat(image):
            flat.append(row)
        else:
            same[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append(row)
    return [rows for rows in same.values() if len(rows) > 1], flat


def _is_flat(image: np.ndarray) -> bool:
    """The middle first: it spares most images the comparison of all pixels."""
    middle = image[len(image) // 2, len(image) // 2]
    return bool((middle == image[0, 0]).all() and (image == middle).all())


def report_facts(facts: Facts, files: Sequence[str]) -> None:
    """Log how deep pixels were read, and which images look unusable."""
    if facts.ranged and facts.used:
        logger.info(
            "%d of %d images have more than 8 bits: values from %g to %g are shown as 0 to 255 "
            "(another range: --pixel-range=LOW,HIGH)",
            *(facts.ranged - facts.windowed, len(files), *facts.used),
        )
    if facts.windowed:
        logger.info(
            "%d of %d images are shown through the window that their DICOM file names",
            *(facts.windowed, len(files)),
        )
    if facts.dark and facts.dark_used:
        logger.warning(
            "%d of these use less than an eighth of that range and are nearly black: %s; "
            "--pixel-range=%g,%g shows them and clips the others",
            *(len(facts.dark), some([files[row] for row in facts.dark]), *facts.dark_used),
        )
    if facts.pages:
        logger.info("%d files hold several pages or frames: the first is used", facts.pages)
    if facts.flat:
        report_flat([files[row] for row in facts.flat])


def report_flat(files: Sequence[str]) -> None:
    """Log images that show nothing."""
    logger.warning("%d images are of a single colour: %s", len(files), some(files))
