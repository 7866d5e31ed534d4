"""DICOM files, through pydicom where it is installed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from utils_.datasets.cache.picture import Picture
from utils_.datasets.cache.pixel_range import Bounds


def read_dicom(data: bytes) -> Picture:
    """Open a DICOM file of one frame.

    Stored values become what they measure (RescaleSlope, RescaleIntercept; Hounsfield units in a
    CT). MONOCHROME1 is a negative. The first window of the file is noted.

    Raises:
        ValueError: pydicom is absent, or the file holds several frames or colours other than RGB.
        Exception: whatever pydicom raises for what it cannot read.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ValueError("DICOM; pip install pydicom, or save it as PNG") from error
    file = pydicom.dcmread(io.BytesIO(data))
    if int(file.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"DICOM of {file.NumberOfFrames} frames; save one image for each")
    colours = str(file.get("PhotometricInterpretation") or "")
    if colours == "RGB":
        return Picture(Image.fromarray(_pixels(file).astype(np.uint8)))
    if colours not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"DICOM with pixels of kind {colours or 'unknown'}; save it as PNG")
    return _monochrome(file, negative=colours == "MONOCHROME1")


def _monochrome(file: Any, *, negative: bool) -> Picture:
    slope, intercept = _number(file, "RescaleSlope", 1), _number(file, "RescaleIntercept", 0)
    stored = _without_padding(_pixels(file), file.get("PixelPaddingValue"), negative=negative)
    values = (stored * (slope or 1) + intercept).astype(np.float32)
    window, full = _window(file), _full(file, slope or 1, intercept)
    if window is None and full == (0, 255):
        grey = values.astype(np.uint8)
        return Picture(Image.fromarray(255 - grey if negative else grey))
    return Picture(Image.fromarray(values), negative, window, full)


def _pixels(file: Any) -> np.ndarray:
    try:
        pixels: np.ndarray = file.pixel_array
    except (RuntimeError, NotImplementedError) as error:  # compressed, and no decoder installed
        raise ValueError(
            "DICOM whose compression lacks a decoder; pip install pylibjpeg[all]"
        ) from error
    return pixels


def _without_padding(stored: np.ndarray, padding: Any, *, negative: bool) -> np.ndarray:
    """What lies outside the picture becomes its darkest value, lest it stretch the range."""
    stored = stored.astype(np.float64)
    outside = stored == padding if isinstance(padding, int) else np.zeros(stored.shape, bool)
    if not outside.any() or outside.all():
        return stored
    inside = stored[~outside]
    return np.where(outside, inside.max() if negative else inside.min(), stored)


def _window(file: Any) -> Bounds | None:
    """The first window (DICOM PS3.3, C.11.2.1.2); None where there is none."""
    centre, width = _number(file, "WindowCenter", 0), _number(file, "WindowWidth", 0)
    if width <= 1:
        return None
    if file.get("VOILUTFunction") == "LINEAR_EXACT":
        return centre - width / 2, centre + width / 2
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _full(file: Any, slope: float, intercept: float) -> Bounds:
    """What the stored bits can hold, as it is measured."""
    span = 2 ** int(file.get("BitsStored") or 16)
    lowest = -span // 2 if file.get("PixelRepresentation") else 0
    ends = sorted((lowest * slope + intercept, (lowest + span - 1) * slope + intercept))
    return ends[0], ends[1]


def _number(file: Any, name: str, default: float) -> float:
    """A number of the file, the first where it has several; blank is absent."""
    value = file.get(name)
    if value is None or value == "":
        return default
    return float(value if isinstance(value, int | float | str) else next(iter(value), default))
