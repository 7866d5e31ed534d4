"""One image as values that mean brightness, and the way from there to RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils_.datasets.cache.pixel_range import AUTO, FULL, Bounds, in_blocks, parse_range, shades

SIXTEEN_BITS = (0.0, 65535.0)
UNUSED_COLOURS = 32  # 16-bit colours whose upper byte stays below this are nearly black
DEEP, WINDOWED = "deep", "windowed"
WIDE = "wide"  # colours of 16 bits, taken as they are because the full range was asked for
MEMORY = 10**9  # bytes that one image may take while it is decoded
BYTES, MOST_BYTES = {"1": 6, "L": 6, "RGB": 8, "I;16": 8}, 10  # of a pixel, as measured


@dataclass(frozen=True)
class Picture:
    """An opened file.

    Attributes:
        image: upright; of one channel of numbers (modes I, I;16, F) where it is deep.
        negative: small values are bright.
        window: the values between which its maker wants it shown.
        full: the values that its file could hold; None for 32 bits.
        pages: how many the file holds, of which ``image`` is the first.
        wide: colours that have 16 bits in the file, of which Pillow kept the upper 8.
    """

    image: Image.Image
    negative: bool = False
    window: Bounds | None = None
    full: Bounds | None = SIXTEEN_BITS
    pages: int = 1
    wide: bool = False

    @property
    def depth(self) -> str:
        """DEEP or WINDOWED where the pixel range matters, else ""."""
        if not is_deep(self.image):
            return ""
        return WINDOWED if self.window else DEEP

    @property
    def values(self) -> np.ndarray:
        """(H, W) numbers of a deep image.

        Raises:
            ValueError: some are not finite.
        """
        values = np.asarray(self.image)
        if not np.isfinite(values).all():
            raise ValueError("NaN or infinite pixels; replace them by numbers")
        return values


def to_rgb(picture: Picture, pixel_range: str) -> Image.Image:
    """Return the picture in RGB.

    - Deep values go through LOW,HIGH, the picture's window (``auto``) or what its file can hold.
    - What is transparent becomes black.

    Raises:
        ValueError: 32-bit pixels without a range; colours of 16 bits of which few are used.
    """
    if picture.depth:
        return Image.fromarray(_grey(picture, pixel_range)).convert("RGB")
    image = picture.image
    if picture.wide and pixel_range != FULL:
        _check_colours(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
        black = Image.new("RGB", image.size)
        black.paste(colours, mask=colours.getchannel("A"))
        return black
    return image if image.mode == "RGB" else image.convert("RGB")


def check_memory(image: Image.Image) -> None:
    """Raises ValueError for an image that is not loaded yet and would take too much memory."""
    pixels = image.width * image.height
    needed = pixels * BYTES.get(image.mode, MOST_BYTES)
    if needed > MEMORY:
        raise ValueError(
            f"{pixels / 1e6:.0f} million pixels of {image.mode} take {needed / 1e9:.1f} GB of "
            "memory; scale it down"
        )


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _grey(picture: Picture, pixel_range: str) -> np.ndarray:
    values = picture.values
    bounds = parse_range(pixel_range) or (picture.window if pixel_range == AUTO else None)
    if bounds is None and picture.full == SIXTEEN_BITS and _fits(values, SIXTEEN_BITS):
        grey = in_blocks(values, lambda block: (block.astype(np.int64) + 128) // 257)
    else:
        grey = shades(values, bounds or _known(picture.full, values))
    return 255 - grey if picture.negative else grey


def _fits(values: np.ndarray, bounds: Bounds) -> bool:
    return bool(values.min() >= bounds[0] and values.max() <= bounds[1])


def _known(full: Bounds | None, values: np.ndarray) -> Bounds:
    if full is None or not _fits(values, full):
        raise ValueError("32-bit pixels have no full range; use --pixel-range auto")
    return full


def _check_colours(image: Image.Image) -> None:
    """Pillow keeps the upper byte of 16-bit colours; 12-bit content then has 16 shades left."""
    bands = [band for band in image.getbands() if band not in ("A", "a")]
    brightest = max(np.asarray(image.getchannel(band)).max() for band in bands)
    if 0 < brightest < UNUSED_COLOURS:
        raise ValueError(
            "colours of 16 bits that use less than an eighth of their range; scale them and save "
            "them with 8 bits a channel"
        )
