"""What may be wrong with a data set: found on the labels and pixels as a run would see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils_.datasets.base import PART_NAMES, TEST, UNASSIGNED, VAL, ImageDataset
from utils_.datasets.cache.facts import same_pixels
from utils_.datasets.copies import FINE, judge_copies
from utils_.datasets.medmnist import SETS
from utils_.errors import some
from utils_.one_sided import count_labels, named, one_sided
from utils_.site_names import SiteNames
from utils_.uncertainty import FEW, few

if TYPE_CHECKING:
    import pandas as pd

    from utils_.scenario import Scenario

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
    annotated, and the positives and negatives of each part that has images, as ``train +``."""
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
        shown, known = count_labels(labels[dataset.part == NAMES.index(name)])
        table |= {f"{name} +": shown, f"{name} -": known - shown}
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


def examine(dataset: ImageDataset, *, assume_negative: bool = False) -> list[Finding]:
    """Return everything found, what is wrong first.

    Args:
        dataset: N images.
        assume_negative: whether a run would take blank training cells for negatives.
    """
    found = [
        *find_straddling(dataset),
        *find_duplicates(dataset),
        *find_one_sided(dataset, assume_negative=assume_negative),
        *find_label_oddities(dataset),
        *find_counts(dataset),
        *find_unlike_truth(dataset),
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


def find_one_sided(dataset: ImageDataset, *, assume_negative: bool) -> list[Finding]:
    """Classes that cannot be learnt or judged: without positives, or without negatives."""
    part, found = dataset.part, []
    for aim, rows, labels in (
        ("learn from", ~np.isin(part, (VAL, TEST)), dataset.labels),
        ("test on", np.isin(part, (TEST, UNASSIGNED)), dataset.best_known),
    ):
        lacking = one_sided(labels[rows], dataset.classes)
        if lacking["no_positive"]:
            names = ", ".join(lacking["no_positive"])
            found.append(Finding(False, f"no positive image to {aim}: {names}"))
        learnt = aim == "learn from"
        if lacking["no_negative"] and not (learnt and assume_negative):
            names = ", ".join(lacking["no_negative"])
            advice = "--assume-negative takes blank cells for 0" if learnt else "write 0 where so"
            found.append(Finding(learnt, f"no negative image to {aim}: {names}; {advice}"))
    return found


def find_thin_parts(dataset: ImageDataset, scenario: Scenario) -> list[Finding]:
    """Classes of one kind of label, or of few, in a part or at a client as a run would cut them."""
    parts = [(name, scenario.part == place) for place, name in enumerate(PART_NAMES)]
    clients = range(int(scenario.client.max()) + 1)
    train = scenario.observed
    places = [(n, train[rows] if n == "train" else dataset.best_known[rows]) for n, rows in parts]
    places += [(f"client {client}", train[scenario.rows(client)]) for client in clients]
    lacking: dict[str, list[str]] = {"no_positive": [], "no_negative": [], "few": []}
    for place, labels in places:
        kinds = one_sided(labels, dataset.classes) if len(labels) else {}
        if place in ("val", "test"):  # what is scored; a small client learns from the others
            kinds |= {"few": named(few(*count_labels(labels)), dataset.classes)}
        for kind, names in kinds.items():
            lacking[kind] += [f"{place}: {some(names)}"] * bool(names)
    heads = {
        "no_positive": "no annotated positive",
        "no_negative": "no annotated negative",
        "few": f"fewer than {FEW} annotated positives or negatives",
    }
    return [Finding(False, f"{heads[k]} in {'; '.join(own)}") for k, own in lacking.items() if own]


def find_unlike_truth(dataset: ImageDataset) -> list[Finding]:
    """How many cells are verified, and how many annotations differ from them."""
    if dataset.verified is None or dataset.name == "synthetic":
        return []
    known = ~np.isnan(dataset.verified)
    annotated = known & ~np.isnan(dataset.labels)
    wrong = annotated & (dataset.labels != dataset.verified)
    text = (
        f"{known.sum():,} cells of {known.any(axis=1).sum():,} images are verified; of those, "
        f"{annotated.sum():,} are annotated, {wrong.sum():,} of them otherwise"
    )
    return [Finding(False, text)]


def find_label_oddities(dataset: ImageDataset) -> list[Finding]:
    """Images without any label, and rows against the rules of the data set."""
    labels = dataset.labels
    found = []
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
