"""Three hospitals and a server with drawn images, each with label files as such files are.

The labels are those of scripts/example_data.py: a quarter wrong, semicolons, paths of Windows,
columns that are no findings. A class that a hospital does not look for is no column there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.example_data import (
    CLASSES,
    SITES,
    UNSEEN,
    draw_images,
    label_lines,
    observe,
    write_lines,
)


def write_hospitals(folder: Path, *, count: int) -> None:
    """Write ``north/``, ``south/``, ``west/`` and ``server/`` of ``count`` images in all."""
    images, true, test = draw_images(count)
    site = np.array(SITES)[np.arange(count) % len(SITES)]
    given, names = observe(true, site), [f"{row:04d}.png" for row in range(count)]
    for name in SITES:
        rows = np.flatnonzero((site == name) & ~test)
        seen = [c for c, cls in enumerate(CLASSES) if cls not in UNSEEN[name]]
        _write_images(folder / name, images, names, rows)
        _write_labels(folder / name / "train_data.csv", names, given, rows, classes=seen)
    held_out = np.flatnonzero(test)
    _write_images(folder / "server", images, names, held_out)
    for part, rows in (("val", held_out[::3]), ("test", np.setdiff1d(held_out, held_out[::3]))):
        _write_labels(folder / "server" / f"{part}_data.csv", names, true, rows)


def _write_images(folder: Path, images: np.ndarray, names: Sequence[str], rows: np.ndarray) -> None:
    (folder / "images").mkdir(parents=True)
    for row in rows:
        Image.fromarray(images[row]).save(folder / "images" / names[row])


def _write_labels(
    path: Path,
    names: Sequence[str],
    labels: np.ndarray,
    rows: np.ndarray,
    *,
    classes: Sequence[int] = range(len(CLASSES)),
) -> None:
    kept = [0, *(c + 1 for c in classes), *range(len(CLASSES) + 1, len(CLASSES) + 4)]
    lines = [line.split(";") for line in label_lines(names, labels, rows)]
    write_lines(path, [";".join(line[column] for column in kept) for line in lines])
