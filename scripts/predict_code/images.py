"""Which image files are meant: named alone, below a folder, or in a CSV file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils_.datasets.cache.image_files import SUFFIXES
from utils_.datasets.folder import ImageFolder
from utils_.datasets.label_files.image_column import lead_by_images
from utils_.datasets.label_files.tables import read_csv
from utils_.datasets.label_files.text_files import EXPORT
from utils_.errors import UserError

NO_CSV = (".xlsx", ".xls", ".ods", ".tsv", ".txt")


@dataclass(frozen=True)
class ImageFile:
    """An image that is asked for; ``name`` is what the output calls it."""

    name: str
    path: Path


def gather(places: Sequence[Path], *, data_dir: Path | None) -> list[ImageFile]:
    """Return every image once, in the order of the places.

    - One folder: names are the paths below it, so that they fit label files. Of several places
      they are the paths as given.
    - A CSV file: names as it writes them, of files in ``images/`` of its folder or of ``data_dir``.

    Raises:
        UserError: a place is not there, holds no image, or is a file of another kind.
    """
    if data_dir and not any(_is_csv(place) for place in places):
        raise UserError("--data-dir: says where the images of a CSV file lie; leave it out")
    found: dict[Path, ImageFile] = {}
    for place in places:
        for image in _images_of(place, data_dir, alone=len(places) == 1):
            found.setdefault(image.path.absolute(), image)
    return list(found.values())


def _images_of(place: Path, data_dir: Path | None, *, alone: bool) -> list[ImageFile]:
    if place.is_dir():
        files = sorted(_below(place))
        if not files:
            raise UserError(f"{place}: holds no image file ({' '.join(SUFFIXES)})")
        names = [path.relative_to(place) if alone else path for path in files]
        return [ImageFile(name.as_posix(), path) for name, path in zip(names, files, strict=True)]
    if not place.exists():
        raise UserError(f"{place}: no such image, folder or CSV file; see --help")
    if place.suffix.lower() in NO_CSV:
        raise UserError(f"{place}: is no image and no CSV file; {EXPORT}")
    return _listed(place, data_dir) if _is_csv(place) else [ImageFile(str(place), place)]


def _is_csv(place: Path) -> bool:
    return place.suffix.lower() == ".csv" and not place.is_dir()


def _below(folder: Path) -> Iterator[Path]:
    """Image files at any depth; what begins with a dot is hidden, as .cache or ._copy.png are."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent) / name


def _listed(path: Path, data_dir: Path | None) -> list[ImageFile]:
    base = data_dir or path.parent
    if not base.is_dir():
        raise UserError(f"--data-dir {base}: no such folder; give the one that holds images/")
    folder = ImageFolder(base / "images" if (base / "images").is_dir() else base)
    names = lead_by_images(read_csv(path), folder).names
    files = folder.place(names)
    if not any((folder.path / file).is_file() for file in files):
        raise UserError(
            f"{path}: none of its {len(names)} images lies in {folder.path} (first: {names[0]}); "
            "give the folder that holds images/ with --data-dir"
        )
    return [ImageFile(name, folder.path / file) for name, file in zip(names, files, strict=True)]
