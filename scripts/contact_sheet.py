"""Draw a contact sheet of a dataset: scripts/contact_sheet.py --dataset synthetic --output FILE

A grid of images with the names of their classes, chosen so that every class is shown: first an
image with few findings for each class in turn, then images with two of them.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from src.config import Config
from src.job import load_dataset
from utils_ import datasets
from utils_.datasets.base import ImageDataset
from utils_.errors import UserError
from utils_.files import atomic_path
from utils_.rng import derive
from utils_.script import Parser, end_with

BACKGROUND, TEXT = "#0b0d10", "#e6e1d8"
INCHES, DOTS = 1.25, 100  # edge of a tile, dots per inch
COLOURS = 256  # of the file, which a palette keeps small


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sheet; return 0, or 2 with one line on stderr."""
    try:
        options = parse(arguments)
        names = ("dataset", "data_dir", "image_size", "cache_dir", "data_seed", "train_images")
        given = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
        dataset = load_dataset(replace(Config(), **given), quiet=False)
        rows = choose(dataset.labels, options.rows * options.columns, seed=options.seed)
        draw(dataset, rows, columns=options.columns, path=options.output)
    except (UserError, OSError) as error:
        print(f"contact_sheet: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(options.output)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options.

    Raises:
        UserError: a wrong one.
    """

    def positive(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"{number} is below 1")
        return number

    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="synthetic", help=", ".join(datasets.DATASETS))
    parser.add_argument("--data-dir", type=Path, help="its folder (default data/<dataset>)")
    parser.add_argument("--cache-dir", type=Path, help="where decoded images are kept")
    parser.add_argument("--data-seed", type=int, help="seed of synthetic")
    parser.add_argument("--train-images", type=positive, help="training images of synthetic")
    parser.add_argument("--image-size", type=positive, default=160, help="edge in pixels")
    parser.add_argument("--rows", type=positive, default=4)
    parser.add_argument("--columns", type=positive, default=8)
    parser.add_argument("--seed", type=int, default=1, help="another seed shows other images")
    parser.add_argument("--output", type=Path, required=True, help="the .png file")
    return parser.parse_args(arguments)


def choose(labels: np.ndarray, tiles: int, *, seed: int) -> list[int]:
    """Return up to ``tiles`` different rows of ``labels`` (N, C).

    Turn by turn, every class gets an image that shows it: with one finding in the first turn and
    two in those after it, or as near to that as there is.
    """
    order = derive(seed, "contact sheet").permutation(len(labels))
    shown = labels[order] == 1
    findings = shown.sum(1)
    left = np.ones(len(order), bool)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < tiles and (left & shown.any(1)).any():
        for column in range(labels.shape[1]):
            candidates = np.flatnonzero(left & shown[:, column])
            if len(candidates) and len(chosen) < tiles:
                wanted = np.abs(findings[candidates] - (1 if turn == 0 else 2))
                best = candidates[wanted.argmin()]
                left[best] = False
                chosen.append(int(order[best]))
        turn += 1
    return chosen


def title(dataset: ImageDataset, row: int) -> str:
    """Return the names of the classes that an image shows."""
    present = np.flatnonzero(dataset.labels[row] == 1)
    return " + ".join(dataset.classes[column] for column in present)


def draw(dataset: ImageDataset, rows: Sequence[int], *, columns: int, path: Path) -> None:
    """Write the sheet as a .png file with a palette, whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        squeeze=False,
        figsize=(columns * INCHES, lines * (INCHES + 0.2)),
        facecolor=BACKGROUND,
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, rows, strict=False):
        axis.imshow(dataset.images[row], interpolation="lanczos")
        axis.set_title(title(dataset, row), color=TEXT, fontsize=8, pad=3)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.955, wspace=0.05, hspace=0.18)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DOTS, facecolor=BACKGROUND)
    pyplot.close(figure)
    with atomic_path(path) as temporary:
        picture = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        picture.save(temporary, format="png", optimize=True)


if __name__ == "__main__":
    end_with(main)
