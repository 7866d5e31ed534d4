"""Pictures of where a model looked: the image, and beside it the image under a heat map."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.predict_code.batches import DecodedBatch
from scripts.predict_code.sheet import labels
from src.grad_cam import class_maps
from src.saved_model import SavedModel
from utils_.errors import UserError
from utils_.files import atomic_path

EDGE = 256  # of a small image in a picture, pixels
STRIP, MARGIN, LETTERS = 26, 6, 14  # height of the caption, its indentation, size of its letters
OPACITY = 0.65  # of the map where it is 1
LONGEST = 28  # letters of a name in the name of a file, which has room for 255 bytes
TOGETHER = 8  # images explained at once: their features are all kept for the gradient


def explain_batch(
    saved: SavedModel, batch: DecodedBatch, probability: np.ndarray, *, folder: Path, which: str
) -> None:
    """Write a picture for each image and chosen class.

    Args:
        saved: the model.
        batch: n images.
        probability: (n, C), as the model predicts them.
        folder: where pictures go; created.
        which: ``top``, the class of highest probability, or ``positive``, all whose label is 1.

    Raises:
        UserError: the folder cannot be written, or the model has no maps.
    """
    cells = _chosen(probability, saved.facts.cuts, which)
    cells = cells[[not batch.problems[row] for row in cells[:, 0].tolist()]]
    for start in range(0, len(cells), TOGETHER):
        rows, columns = cells[start : start + TOGETHER].T
        maps = class_maps(saved.model, batch.images[rows], columns, augmenter=saved.augmenter)
        for row, column, places in zip(rows.tolist(), columns.tolist(), maps, strict=True):
            name, finding = batch.files[row].name, saved.facts.classes[column]
            path = folder / overlay_name(batch.first + row + 1, name, finding)
            caption = _caption(finding, probability[row, column], saved.facts.cuts[column])
            try:
                save_overlay(path, batch.images[row], places, caption=caption)
            except OSError as error:
                raise UserError(f"--explain {folder}: cannot be written ({error})") from error


def _chosen(probability: np.ndarray, cuts: np.ndarray, which: str) -> np.ndarray:
    """(m, 2) rows and columns to explain."""
    if which == "top":
        return np.column_stack([np.arange(len(probability)), np.nanargmax(probability, axis=1)])
    return np.argwhere(labels(probability, cuts) == 1)


def _caption(finding: str, probability: float, cut: float) -> str:
    threshold = "no threshold" if np.isnan(cut) else f"threshold {cut:.3f}"
    return f"{finding}: {probability:.3f} ({threshold})"


def overlay_name(number: int, image: str, finding: str) -> str:
    """A file name that no other image or class has: the image's row, and what letters allow."""
    parts = (re.sub(r"[^\w.-]+", "_", text)[-LONGEST:] for text in (image, finding))
    return f"{number:05d}_{'_'.join(parts)}.png"


def save_overlay(path: Path, image: np.ndarray, places: np.ndarray, *, caption: str) -> None:
    """Write a picture.

    Args:
        path: a PNG file.
        image: (H, W, 3) uint8.
        places: (H, W) in [0, 1].
        caption: one line below.
    """
    edge = max(EDGE, len(image))
    plain = Image.fromarray(image).resize((edge, edge), Image.Resampling.BICUBIC)
    smooth = Image.fromarray(places).resize((edge, edge), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (2 * edge, edge + STRIP), "white")
    sheet.paste(plain, (0, 0))
    sheet.paste(_heated(np.asarray(plain), np.asarray(smooth).clip(0, 1)), (edge, 0))
    write = ImageDraw.Draw(sheet)
    write.text((MARGIN, edge + MARGIN), caption, fill="black", font=_font())
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _heated(image: np.ndarray, places: np.ndarray) -> Image.Image:
    from matplotlib import colormaps

    colours = 255 * colormaps["inferno"](places)[..., :3]
    share = OPACITY * places[..., None]
    return Image.fromarray((image * (1 - share) + colours * share).round().astype(np.uint8))


@cache
def _font() -> ImageFont.FreeTypeFont:
    """That of matplotlib, since it has the letters of most languages and is there."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", LETTERS)
