"""What may be wrong with a data set: found on the labels and pixels as a run would see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils_.datasets.base import PART_NAMES, TEST, UNASSIGNED, VAL, ImageDataset
from utils_.datasets.cache.facts import same_pixels, some
from utils_.datasets.copies import FINE, judge_copies
from utils_.datasets.medmnist import SETS
from utils_.site_names import SiteNames

if TYPE_CHECKING:
    import pandas as pd

NO_NAMES = SiteNames()
NAMES = (*PART_NAMES, "unassigned")
# Images of the official release in train, val, test, and those assigned to no part.
OFFICIAL = {
    "mured": (1764, 0, 444, 0),
    "isic": (0, 0, 0, 25331),
    "ham10000": (0, 0, 0, 10015),
    "rfmid": (1920, 640, 640, 0),
    "brset": (0, 0, 0, 16259),  # of 16,266 rows seven have no image
    "ich": (0, 0, 0, 752803),
    "chestxray14": (86524, 0, 25596, 0),
}
NORMAL = {"mured": "NORMAL", "odir": "N"}  # excludes every other class
ONE_CLASS = (
    "isic",
    "ham10000",
    *(name for name, known in SETS.items() if name != "chestmnist" and known.positive is None),
)


@dataclass(frozen=True)
class Finding:
    """One observation: ``wrong`` spoils results, the rest is worth knowing."""

    wrong: bool
    text: str


def part_counts(dataset: ImageDataset) -> dict[str, int]:
    """Return the images of each part that has any."""
    counts = np.bincount(dataset.part, minlength=len(NAMES)).tolist()
    return {name: count for name, count in zip(NAMES, counts, strict=True) if count}


def label_table(dataset: ImageDataset) -> pd.DataFrame:
    """One row a class: ``positive``, ``negative`` and ``blank`` images, ``prevalence`` among the
    annotated, and the positives of each part that has images."""
    import pandas as pd

    labels = dataset.labels
    positive, negative = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        prevalence = positive / (positive + negative)
    table = {
        "class": dataset.classes,
        "positive": positive,
        "negative": negative,
        "blank": np.isnan(labels).sum(axis=0),
        "prevalence": prevalence,
    }
    for name in part_counts(dataset):
        table[name] = (labels[dataset.part == NAMES.index(name)] == 1).sum(axis=0)
    return pd.DataFrame(table)


def client_prevalence(
    dataset: ImageDataset, client: np.ndarray, names: SiteNames = NO_NAMES
) -> pd.DataFrame:
    """One row a class, one column a client: the share of positives among annotated cells.

    Args:
        dataset: N images.
        client: (N,) int, -1 where an image belongs to none.
        names: what the clients are called.
    """
    import pandas as pd

    table = {"class": dataset.classes}
    for number in range(client.max() + 1):
        labels = dataset.labels[client == number]
        known = (~np.isnan(labels)).sum(axis=0)
        with np.errstate(invalid="ignore"):
            table[names.called(number)] = (labels == 1).sum(axis=0) / known
    return pd.DataFrame(table)


def examine(dataset: ImageDataset) -> list[Finding]:
    """Return everything found, what is wrong first."""
    found = [
        *find_straddling(dataset),
        *find_duplicates(dataset),
        *find_label_oddities(dataset),
        *find_counts(dataset),
    ]
    return sorted(found, key=lambda finding: not finding.wrong)


def find_straddling(dataset: ImageDataset) -> list[Finding]:
    """Patients or lesions with images in several of the parts that the files fix."""
    if dataset.groups is None:
        return [Finding(False, "no patient ids: images of one patient may be split up")]
    parts: dict[int, set[int]] = defaultdict(set)
    example: dict[int, str] = {}
    for group, part, file in zip(
        dataset.groups.tolist(), dataset.part.tolist(), dataset.files, strict=True
    ):
        if part != UNASSIGNED:
            parts[group].add(part)
            example[group] = file
    files = [example[group] for group, several in parts.items() if len(several) > 1]
    if not files:
        return []
    text = f"{len(files)} patients (or lesions) have images in several parts, e.g. {some(files)}"
    return [Finding(True, text)]


def find_duplicates(dataset: ImageDataset) -> list[Finding]:
    """Images with the same pixels at the loaded size, judged by what that spoils; flat ones."""
    copies, flat = same_pixels(dataset.images)
    found = []
    if flat:
        names = some([dataset.files[row] for row in flat])
        found.append(Finding(True, f"{len(flat)} images are of a single colour: {names}"))
    for why, sets in judge_copies(dataset, copies).items():
        names = some(["=".join(dataset.files[row] for row in rows) for rows in sets])
        text = f"{len(sets)} sets of images with the same pixels {why}: {names}"
        found.append(Finding(why != FINE, text))
    return found


def find_label_oddities(dataset: ImageDataset) -> list[Finding]:
    """Classes that cannot be learnt or judged, and rows against the rules of the data set."""
    labels, part = dataset.labels, dataset.part
    found = []
    for name, rows in (
        ("learn from", ~np.isin(part, (VAL, TEST))),
        ("test on", np.isin(part, (TEST, UNASSIGNED))),
    ):
        empty = ~(labels[rows] == 1).any(axis=0)
        if empty.any():
            classes = [dataset.classes[column] for column in np.flatnonzero(empty)]
            found.append(Finding(False, f"no positive image to {name}: {', '.join(classes)}"))
    blank = np.isnan(labels).all(axis=1)
    if blank.any():
        found.append(Finding(False, f"{blank.sum()} images have no label at all"))
    positives = (labels == 1).sum(axis=1)
    if dataset.name in ONE_CLASS and (odd := int(((positives != 1) & ~blank).sum())):
        found.append(Finding(False, f"{odd} images do not show exactly one class"))
    normal = NORMAL.get(dataset.name)
    if normal in dataset.classes:
        alone = labels[:, dataset.classes.index(normal)] == 1
        if odd := int((alone & (positives > 1)).sum()):
            found.append(Finding(False, f"{odd} images are {normal} and something else"))
        if odd := int(((positives == 0) & ~blank).sum()):
            found.append(Finding(False, f"{odd} images are neither {normal} nor anything else"))
    return found


def find_counts(dataset: ImageDataset) -> list[Finding]:
    """A number of images that is not that of the official release."""
    official = OFFICIAL.get(dataset.name)
    counts = tuple(np.bincount(dataset.part, minlength=len(NAMES)).tolist())
    if official in (None, counts):
        return []

    def text(numbers: Sequence[int]) -> str:
        pairs = zip(NAMES, numbers, strict=True)
        return ", ".join(f"{name} {number:,}" for name, number in pairs if number)

    return [Finding(False, f"the official release has {text(official)}; here: {text(counts)}")]
