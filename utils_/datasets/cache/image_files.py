"""Image files of every kind that is known, opened and turned upright; the others named."""

from __future__ import annotations

import io
from contextlib import suppress

from PIL import Image, ImageOps, UnidentifiedImageError

from utils_.datasets.cache.dicom import read_dicom
from utils_.datasets.cache.picture import SIXTEEN_BITS, Picture, check_memory, is_deep

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # of the TIFF tag
DICOM_MARK, DICOM_PLACE = b"DICM", 128
# What other files begin with, and what to do with them.
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer instead of the image; run git lfs pull",
    b"GIF8": "a GIF image; save it as PNG",
    b"RIFF": "a WebP image; save it as PNG",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000 image; save it as PNG",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image; save it as PNG",
    b"P5": "a PGM image; save it as PNG",
    b"P6": "a PPM image; save it as PNG",
    b"\x1f\x8b": "compressed with gzip, perhaps NIfTI; save its slices as PNG",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"\x00\x05\x16\x07": "only the attributes that macOS keeps of a file; copy the file itself",
}


def open_picture(data: bytes, *, edge: int, fit: str) -> Picture:
    """Open the bytes of a PNG, JPEG, TIFF, BMP or DICOM file.

    Args:
        data: the file.
        edge: the size that will be wanted, which lets JPEG be reduced while it is decoded.
        fit: ``crop`` or ``pad``.

    Raises:
        Exception: whatever the decoder raises for broken data; ValueError for what is no usable
            image.
    """
    if data.startswith(DICOM_MARK, DICOM_PLACE):
        return read_dicom(data)
    for mark, what in FOREIGN.items():
        if data.startswith(mark):
            raise ValueError(what)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    negative = _white_is_zero(image)
    pages = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    side = (min if fit == "crop" else max)(image.size)
    # JPEG only: let the decoder reduce by 2, 4 or 8, never below the size that is wanted.
    width, height = (max(1, length * edge // side) for length in image.size)
    image.draft(None, (width, height))
    wide = _is_wide(image)
    check_memory(image)
    image.load()
    full = None if image.mode == "F" else SIXTEEN_BITS
    return Picture(_upright(image), negative, None, full, pages, wide)


def has_wide_pixels(path: str) -> bool:
    """Whether a file has channels of more than 8 bits; only its head is read."""
    with open(path, "rb") as file:  # noqa: PTH123 - thousands of files, and a Path for each is slow
        head = file.read(DICOM_PLACE + len(DICOM_MARK))
    if head.startswith((b"\xff\xd8", b"BM")):  # JPEG and BMP never have them
        return False
    if head.startswith(DICOM_MARK, DICOM_PLACE):
        return True
    try:
        with Image.open(path, formats=FORMATS) as image:
            return is_deep(image) or _is_wide(image)
    except UnidentifiedImageError:
        return False


def _is_wide(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has colours of 16 bits."""
    return not is_deep(image) and any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def _white_is_zero(image: Image.Image) -> bool:
    """TIFF only; Pillow turns those of 8 bits round itself."""
    tags = getattr(image, "tag_v2", {})
    return is_deep(image) and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # turned while loading; Pillow 10.0 would turn it once more
        return image
    with suppress(SyntaxError):  # Pillow's error for EXIF it cannot parse; the pixels are fine
        ImageOps.exif_transpose(image, in_place=True)
    return image
