"""Which column of a label file names the images, and whether the file has a header at all."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence

from utils_.datasets.cache.image_files import SUFFIXES
from utils_.datasets.folder import ImageFolder
from utils_.datasets.label_files.tables import CsvTable, bare_name, shown
from utils_.errors import UserError

logger = logging.getLogger("fednml")
LOOKED_AT = 200  # rows are enough to tell
NUMBER = re.compile(r"[-+]?\d+([.,]\d*)?|nan|na|true|false|", re.IGNORECASE)
_IMAGE_COLUMNS = """
    image images img imageid imageindex imagename imagefile imagefilename imagepath filename file
    filepath path idcode isicid dicomid fundus scan photo
"""
IMAGE_COLUMNS = frozenset(_IMAGE_COLUMNS.split())


def lead_by_images(table: CsvTable, folder: ImageFolder) -> CsvTable:
    """Return the table with the column of image names in front, judged by the files there are.

    The first column is that column, unless few of its cells name an image and another's do, or
    unless it has no name and another is called ``image`` or the like.

    Raises:
        UserError: the first line is data.
    """
    _refuse_data_as_header(table, folder)
    columns = zip(*table.rows[:LOOKED_AT], strict=True)
    share = {n: _share_of_files(c, folder) for n, c in zip(table.header, columns, strict=True)}
    first = table.header[0]
    best = max(share, key=lambda name: share[name])  # the first of several
    if share[first] < 0.5 and share[best] > share[first]:
        return _led_by(table, best)
    named = [name for name in table.header if bare_name(name) in IMAGE_COLUMNS]
    unnamed = not first or bare_name(first).startswith("unnamed")
    if unnamed and len(named) == 1 and share[first] <= share[named[0]]:
        return _led_by(table, named[0])
    return table


def _led_by(table: CsvTable, name: str) -> CsvTable:
    logger.info("%s: column '%s' names the images", table.path, name)
    return table.led_by(name)


def _share_of_files(cells: Sequence[str], folder: ImageFolder) -> float:
    """The share of the cells that name an image file; 0 where all are a few values."""
    texts = Counter(cells)
    if len(texts.keys() - {""}) < min(3, len(cells)):
        return 0.0
    return sum(n for text, n in texts.items() if _is_image(text, folder)) / len(cells)


def _refuse_data_as_header(table: CsvTable, folder: ImageFolder) -> None:
    """Check that the first line holds names of columns."""
    first, others = table.header[0], table.header[1:]
    suffixed = first.lower().endswith(tuple(SUFFIXES))
    repeated = all(
        NUMBER.fullmatch(name) or name in {row[place] for row in table.rows[:LOOKED_AT]}
        for place, name in enumerate(others, start=1)
    )
    if suffixed or (others and repeated and _is_image(first, folder)):
        line = ", ".join(table.header[:4])
        raise UserError(
            f"{table.path}, line 1: {shown(line)} looks like data, not like the names of columns; "
            "add a line of names above it, such as image,class1,class2"
        )


def _is_image(name: str, folder: ImageFolder) -> bool:
    try:
        return bool(name) and folder.find(name) is not None
    except UserError:  # it fits several files, or leads out of the folder
        return True
