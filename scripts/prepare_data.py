"""Fetch a data set and put it into the layout that the program reads.

python scripts/prepare_data.py NAME [--data-dir DIR] [--from-zip FILE ...] [--size PIXELS]

What is open to everybody is downloaded; a broken-off download goes on where it stopped. For the
rest the steps are shown; archives fetched by hand are then given with --from-zip. Exit codes: 0 the
data are in place; 2 something is lacking, and one line (or the list of steps) says what; 130
interrupted.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from src.config import Config
from src.job import load_dataset
from utils_ import datasets
from utils_.datasets.fetch.archives import take
from utils_.datasets.fetch.download import fetch
from utils_.datasets.fetch.recipes import Recipe, recipe_of
from utils_.errors import UserError, as_known, nearest
from utils_.files import file_digest
from utils_.script import Parser, end_with, exit_code

DONE, BAD_INPUT = 0, 2
PREPARED = [name for name in datasets.DATASETS if name not in ("synthetic", "csv")]
NAMES_SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare one data set; return the exit code."""
    logging.basicConfig(format="prepare_data: %(message)s", level=logging.INFO)
    left = "run the same command to go on"
    return exit_code(lambda: run(_parse(arguments)), name="prepare_data", interrupted=left)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Fetch a data set and put it into its folder.")
    parser.add_argument("name", metavar="NAME", help=", ".join(PREPARED))
    parser.add_argument("--data-dir", type=Path, help="its folder (default data/NAME)")
    parser.add_argument(
        "--from-zip",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="archives or tables fetched by hand; nothing is downloaded then",
    )
    parser.add_argument("--size", type=int, help="pixels of the images of a set of MedMNIST (64)")
    parser.add_argument("--keep", action="store_true", help="keep the downloaded archives")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Download, unpack, convert and look whether all is there.

    Raises:
        UserError: see there.
    """
    name = as_known(options.name, PREPARED)
    if name not in PREPARED:
        raise UserError(f"{name}: there is nothing to prepare; {nearest(name, PREPARED)}")
    folder = options.data_dir or datasets.default_folder(name)
    recipe = recipe_of(name, data_dir=folder, size=options.size)
    if not options.from_zip and is_complete(name, folder, options.size):
        print(f"{name}: complete in {folder}")
        return DONE
    if not (options.from_zip or recipe.sources):
        print(steps_of(name, folder, recipe), file=sys.stderr)
        return BAD_INPUT
    print(f"{name}: licence: {recipe.licence}")
    downloads = folder / ".downloads"
    archives = options.from_zip or download(recipe, downloads, quiet=options.quiet)
    unpack(name, folder, recipe, archives, quiet=options.quiet)
    print(verify(name, folder, options.size))
    if not options.keep and not options.from_zip:
        shutil.rmtree(downloads)
    print(f"next: python scripts/check_data.py {name} --data-dir {folder}")
    return DONE


def steps_of(name: str, folder: Path, recipe: Recipe) -> str:
    """Return what a person has to do, as numbered lines."""
    command = f"python scripts/prepare_data.py {name} --data-dir {folder} --from-zip FILE ..."
    steps = [*recipe.steps, f"run {command} with the archives and tables"]
    lines = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
    head = f"prepare_data: {name} cannot be downloaded by a program; licence: {recipe.licence}"
    section = datasets.default_folder(name).name
    return "\n".join([head, *lines, f"More in data/README.md, section {section}."])


def download(recipe: Recipe, folder: Path, *, quiet: bool) -> list[Path]:
    """Fetch all sources with a progress bar each; say what cannot be checked."""
    paths = []
    for source in recipe.sources:
        with _bar(source.name, "B", quiet=quiet, unit_scale=True, unit_divisor=1024) as bar:

            def show(have: int, total: int | None, bar: tqdm = bar) -> None:
                bar.total = total
                bar.n = have
                bar.refresh()

            paths.append(fetch(source, folder, progress=show))
        if source.checksum is None:
            found = file_digest(paths[-1], "sha256")
            print(f"{source.name}: sha256 {found} (its owner publishes none to compare with)")
    return paths


def unpack(
    name: str, folder: Path, recipe: Recipe, archives: Sequence[Path], *, quiet: bool
) -> None:
    """Take what is wanted out of all archives and convert it.

    Raises:
        UserError: an archive is damaged or unsafe, or holds nothing of this data set.
    """
    for path in archives:
        with _bar(path.name, "file", quiet=quiet) as bar:
            if not take(path, folder, recipe.rules, progress=bar.update):
                raise UserError(f"{path}: holds nothing of {name}; see data/README.md, {name}")
    try:
        recipe.finish(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error


def is_complete(name: str, folder: Path, size: int | None) -> bool:
    """Whether the labels can be read and every image is there."""
    try:
        verify(name, folder, size)
    except UserError:
        return False
    return True


def verify(name: str, folder: Path, size: int | None) -> str:
    """Return what is in place, without opening an image.

    Raises:
        UserError: the label files are wrong, or images that they name are absent.
    """
    logger = logging.getLogger("fednml")
    before = logger.level
    logger.setLevel(logging.ERROR)  # notes on the content are for check_data
    try:
        if name not in datasets.READERS:
            return _verify_medmnist(name, folder, size or 64)
        listing = datasets.READERS[name](folder)
    finally:
        logger.setLevel(before)
    absent = [file for file in listing.files if not (listing.folder / file).is_file()]
    if absent:
        raise UserError(
            f"{folder}: {len(absent)} of {len(listing.files)} images are absent, first "
            f"{', '.join(absent[:NAMES_SHOWN])}; give the archives that hold them with --from-zip"
        )
    return f"{name}: {len(listing.files):,} images, {len(listing.classes)} classes in {folder}"


def _verify_medmnist(name: str, folder: Path, size: int) -> str:
    path = folder / datasets.medmnist.file_name(name, size)
    if not path.is_file():
        raise UserError(f"{path} is absent; fetch it, or give it with --from-zip")
    config = replace(Config(), dataset=name, data_dir=str(folder), image_size=size)
    data = load_dataset(config, quiet=True, labels_only=True)
    return f"{name}: {len(data.files):,} images, {len(data.classes)} classes in {path}"


@contextmanager
def _bar(title: str, unit: str, *, quiet: bool, **options: object) -> Iterator[tqdm]:
    # disable=None: no bar where nobody watches.
    hidden = True if quiet else None
    with tqdm(desc=title, unit=unit, disable=hidden, leave=False, **options) as bar:
        yield bar


if __name__ == "__main__":
    end_with(main)
