"""Write what three hospitals might send: python scripts/example_data.py FOLDER [--images N]

Drawn images of five findings, and label files with what such files have: an export of Excel with
semicolons, columns that are no findings, cells that are blank where nobody looked, labels that are
wrong, patients that every hospital numbers from 1, paths of Windows, an image that came twice.
docs/own-data.md walks through them. The same call writes the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image

from src.config import Config
from src.job import data_options
from utils_ import datasets
from utils_.datasets.base import TEST
from utils_.errors import UserError
from utils_.rng import derive
from utils_.script import Parser, end_with

DONE, BAD_INPUT = 0, 2
CLASSES = ("DR", "NORMAL", "MH", "ODC", "TSLN")
SITES = ("north", "south", "west")
UNSEEN = {"north": ("TSLN",), "south": ("MH", "ODC"), "west": ("DR",)}  # nobody looks for these
WRONG, ADJUDICATED = 0.25, 0.2  # shares of the training images
SIZE, SEED = 64, 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; return the exit code."""
    parser = Parser(description="Write what three hospitals might send.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="is made, and must be new")
    parser.add_argument("--images", type=int, default=240, help="a third is for the test (240)")
    try:
        options = parser.parse_args(arguments)
        if not 60 <= options.images <= 5000:
            raise UserError(f"--images {options.images}: give a number from 60 to 5000")
        if options.folder.exists():
            raise UserError(f"{options.folder}: exists; name a new folder")
        write(options.folder, count=options.images)
    except (UserError, OSError) as error:
        print(f"example_data: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    print(f"{options.folder}: {options.images} images; go on with docs/own-data.md")
    return DONE


def write(folder: Path, *, count: int) -> None:
    """Draw ``count`` images and write them and their label files."""
    images, true, test = draw_images(count)
    site = np.array(SITES)[np.arange(count) % len(SITES)]
    names = [f"{site[row]}/{row:04d}.png" for row in range(count)]
    twice = next(row for row in range(3, count) if not test[row])  # of north, as the first
    images[twice] = images[0]
    for name in SITES:
        (folder / "images" / name).mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / "images" / name)
    rows = np.arange(count)
    given = observe(true, site)
    write_lines(folder / "train_data.csv", label_lines(names, given, rows[~test]))
    write_lines(folder / "test_data.csv", label_lines(names, true, rows[test]))
    write_lines(folder / "groups.csv", group_lines(names, site, test))
    again = derive(SEED, "adjudicated").random(count) < ADJUDICATED
    write_lines(folder / "true_data.csv", truth_lines(names, true, rows[again & ~test]))


def draw_images(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, SIZE, SIZE, 3) images, (N, C) true labels, and (N,) whether it is for the test."""
    config = Config(image_size=SIZE, train_images=count - count // 3, test_images=count // 3)
    dataset = datasets.load("synthetic", data_options(config, quiet=True))
    columns = [dataset.classes.index(name) for name in CLASSES]
    order = derive(SEED, "order").permutation(count)
    test = dataset.part[order] == TEST
    return dataset.images[order].copy(), dataset.labels[order][:, columns], test


def observe(true: np.ndarray, site: np.ndarray) -> np.ndarray:
    """(N, C) labels as the hospitals give them: some of another image, blank where unseen."""
    draw = derive(SEED, "wrong")
    wrong = draw.random(len(true)) < WRONG
    given = np.where(wrong[:, None], true[draw.permutation(len(true))], true)
    for name, classes in UNSEEN.items():
        columns = [CLASSES.index(cls) for cls in classes]
        given[np.ix_(site == name, columns)] = np.nan
    return given


def label_lines(names: Sequence[str], labels: np.ndarray, rows: np.ndarray) -> list[str]:
    """An export of Excel, of columns that are findings and others."""
    draw = derive(SEED, "persons", len(rows))
    lines = [";".join(("image", *CLASSES, "sex", "age", "reader"))]
    for row in rows.tolist():
        name = names[row].replace("/", "\\") if names[row].startswith("south") else names[row]
        person = (
            draw.choice(["0", "1"]),
            str(draw.integers(30, 90)),
            draw.choice(["Müller", "Roy"]),
        )
        lines.append(";".join((name, *map(_cell, labels[row]), *person)))
    return lines


def group_lines(names: Sequence[str], site: np.ndarray, test: np.ndarray) -> list[str]:
    """Patients of two images each, numbered from 1 by every hospital; one in ten is not known."""
    unknown = derive(SEED, "patients").random(len(names)) < 0.1
    patient = np.zeros(len(names), int)
    for name in SITES:
        for part, first in ((~test, 1), (test, 501)):
            own = np.flatnonzero((site == name) & part)
            patient[own] = np.arange(len(own)) // 2 + first
    ids = np.where(unknown, "NA", patient.astype(str))
    cells = zip(names, ids.tolist(), site.tolist(), strict=True)
    return ["image;patient_id;site", *map(";".join, cells)]


def truth_lines(names: Sequence[str], true: np.ndarray, rows: np.ndarray) -> list[str]:
    """The labels of images that two experts looked at again."""
    return [";".join(("image", *CLASSES))] + [
        ";".join((names[row], *map(_cell, true[row]))) for row in rows.tolist()
    ]


def _cell(label: float) -> str:
    return "" if np.isnan(label) else str(int(label))


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write lines as Excel does on a German machine."""
    path.write_bytes("\r\n".join([*lines, ""]).encode("cp1252"))


if __name__ == "__main__":
    end_with(main)
