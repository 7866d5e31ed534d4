"""Folders as hospitals send them, and what a message advises, read as a user would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from PIL import Image

from utils_.datasets.base import ImageDataset

# A value of an option: quoted for the shell, or up to a space; a comma that ends it is prose.
ADVICE = re.compile(r"--([a-z-]+) ('[^']*'|[^\s'();]+)")
OPTIONS = ("ignore_columns", "classes", "label_format", "uncertain", "combine")


def make_folder(folder: Path, *, images: Iterable[str] = "abcdefgh", **files: str | bytes) -> Path:
    """``images/`` with the named PNG files and CSV files of the given names and contents."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(images):
        pixels = Image.new("RGB", (8, 8), (number % 250, number // 250, 90))
        (folder / "images" / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        pixels.save(folder / "images" / f"{name}.png")
    for stem, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{stem}.csv").write_bytes(data)
    return folder


def read(folder: Path, **options: Any) -> ImageDataset:
    """The data set without its pixels."""
    return tiny.load("csv", data_dir=folder, labels_only=True, **options)


def advised(message: str) -> dict[str, str]:
    """The options that a message tells to add; of several values for one the first."""
    found: dict[str, str] = {}
    for name, value in ADVICE.findall(message):
        (text,) = shlex.split(value)
        found.setdefault(name.replace("-", "_"), text.rstrip(","))
    return {name: value for name, value in found.items() if name in OPTIONS}


def table(header: str, rows: Iterable[Iterable[Any]], separator: str = ",") -> str:
    """A CSV file: the header as written, and rows of anything."""
    lines = [separator.join("" if cell is None else str(cell) for cell in row) for row in rows]
    return "\n".join([header, *lines]) + "\n"


def same(labels: np.ndarray, expected: Any) -> bool:
    """Whether labels are the expected ones, None standing for blank."""
    wanted = np.array(expected, dtype=np.float32)
    return labels.shape == wanted.shape and np.array_equal(labels, wanted, equal_nan=True)
