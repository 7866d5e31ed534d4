"""Data where nothing is simulated: a hospital's own label file, and the server's held-out images.

The server never sees a label of a site. It is told counts, and stands in rows for them that have
the same counts, so that whatever describes a run (clients.csv, which site annotates what) works.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from src.config import Config
from src.option import flag
from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL, ImageDataset
from utils_.errors import UserError, some
from utils_.labels import LabelState
from utils_.priors import class_counts
from utils_.scenario import Scenario

MOST_IMAGES = 2_000_000  # at a site: the server makes a row for each


class SiteFault(UserError):
    """Why a site cannot take part, in words that may leave it: no file, no image, no label."""


@dataclass(frozen=True)
class SiteTable:
    """What a hospital tells of its data.

    Attributes:
        name: of the site.
        images: how many it trains on.
        positives: (C,) positive cells of each class of the run.
        annotated: (C,) annotated cells.
        pixels: (3, 3) see :func:`utils_.augment.channel_sums`.
        held_out: how many further images it has to evaluate on.
    """

    name: str
    images: int
    positives: np.ndarray
    annotated: np.ndarray
    pixels: np.ndarray
    held_out: int = 0

    def fault(self, classes: int) -> str | None:
        """What is wrong with it, as the end of a sentence."""
        if not self.name or len(self.name) > 100 or not self.name.isprintable():
            return "it has no name"
        if not (1 <= self.images <= MOST_IMAGES and 0 <= self.held_out <= MOST_IMAGES):
            return f"it has {self.images} images instead of 1 to {MOST_IMAGES:,}"
        counts = (self.positives, self.annotated)
        if any(c.shape != (classes,) or c.dtype.kind not in "iu" for c in counts):
            return "its counts are not one number a class"
        inside = (self.positives >= 0) & (self.positives <= self.annotated)
        if not (inside & (self.annotated <= self.images)).all():
            return "its counts do not fit its number of images"
        if self.pixels.shape != (3, 3) or not (np.isfinite(self.pixels) & (self.pixels >= 0)).all():
            return "the sums of its pixels are none"
        return None if (self.pixels[0] > 0).all() else "it has no pixels"

    def as_json(self) -> dict[str, Any]:
        """For the run's folder."""
        counts = {name: getattr(self, name).tolist() for name in ("positives", "annotated")}
        sizes = {"images": self.images, "held_out": self.held_out}
        return {"name": self.name, **sizes, "pixels": self.pixels.tolist(), **counts}

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> SiteTable:
        """What :meth:`as_json` gave."""
        positives, annotated = (np.array(table[name]) for name in ("positives", "annotated"))
        pixels = np.array(table["pixels"], np.float64)
        held_out = table.get("held_out", 0)  # runs of before know of none
        return cls(table["name"], table["images"], positives, annotated, pixels, held_out)


def refuse_simulated(settings: dict[str, Any], config: Config, *, clients: int) -> dict[str, Any]:
    """The settings of a run of hospitals, where nothing is simulated.

    Raises:
        UserError: a setting that simulates something, or that needs what only a simulation has.
    """
    made = {
        "noise": config.noise and "noise" in settings,
        "missing": config.missing and "missing" in settings,
        "attack": config.attack != "none",
        "assume_negative": config.assume_negative,
        "split_file": config.split_file,
        "min_positives": config.min_positives,
        "split": config.split not in ("iid", "site"),
    }
    for name, asked in made.items():
        if asked:
            raise UserError(
                f"{flag(name)} {getattr(config, name)}: nothing is simulated where hospitals take "
                "part with labels of their own; leave it out"
            )
    if config.dataset != "csv":
        raise UserError(
            f"--dataset {config.dataset}: hospitals take part; give dataset='csv' and data-dir, "
            "the server's folder with images/ and test_data.csv"
        )
    return settings | {"split": "site", "clients": clients, "noise": 0, "missing": 0}


def own_labels(dataset: ImageDataset, classes: Sequence[str]) -> ImageDataset:
    """A hospital's training images with labels for the classes of the run, matched by name.

    A class that the hospital lacks is annotated nowhere there.

    Raises:
        SiteFault: a class that the run has not, or none that it has.
    """
    unknown = [name for name in dataset.classes if name not in classes]
    if unknown:
        raise SiteFault(
            f"its classes {some(unknown)} are none of this run's ({some(classes, 20)}); rename "
            "them, or name them in its --node-config as ignore-columns"
        )
    soft = np.zeros(dataset.labels.shape, bool) if dataset.uncertain is None else dataset.uncertain
    rows = np.flatnonzero((dataset.part == TRAIN) | (dataset.part == UNASSIGNED))
    own = replace(dataset, uncertain=_by_name(soft, dataset.classes, classes, missing=False))
    return _rows_of(own, rows, dataset.labels, classes)


def own_held_out(dataset: ImageDataset, classes: Sequence[str]) -> dict[int, ImageDataset]:
    """The images of a hospital's validation and test part, by part; those that it has."""
    parts = {part: np.flatnonzero(dataset.part == part) for part in (VAL, TEST)}
    return {
        part: _rows_of(replace(dataset, uncertain=None), rows, dataset.best_known, classes)
        for part, rows in parts.items()
        if len(rows)
    }


def _rows_of(
    dataset: ImageDataset, rows: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> ImageDataset:
    """Some images, as training images, with labels for the classes of the run."""
    return replace(
        dataset,
        images=dataset.images[rows] if len(rows) < len(dataset.images) else dataset.images,
        labels=_by_name(labels, dataset.classes, classes, missing=np.nan)[rows],
        classes=tuple(classes),
        files=tuple(dataset.files[row] for row in rows),
        part=np.full(len(rows), TRAIN, np.uint8),
        uncertain=None if dataset.uncertain is None else dataset.uncertain[rows],
        groups=None,
        sites=None,
        verified=None,
    )


def _by_name(
    cells: np.ndarray, there: Sequence[str], classes: Sequence[str], *, missing: float
) -> np.ndarray:
    """(n, C) cells by the classes of the run."""
    found = np.full((len(cells), len(classes)), missing, cells.dtype)
    found[:, [classes.index(name) for name in there]] = cells
    return found


def count_site(dataset: ImageDataset, name: str, pixels: np.ndarray, *, held_out: int) -> SiteTable:
    """What a hospital tells of its labels and pixels."""
    counts = class_counts(LabelState(dataset.labels))
    whole = {key: np.asarray(value).astype(np.int64) for key, value in counts.items()}
    counts_of_class = whole["positives"], whole["annotated"]
    return SiteTable(name, len(dataset.labels), *counts_of_class, pixels, held_out)


def with_sites(held_out: ImageDataset, tables: Sequence[SiteTable]) -> ImageDataset:
    """The server's images, followed by rows without images that have the sites' counts."""
    labels = [held_out.labels, *(_rows(table) for table in tables)]
    parts = [held_out.part, *(np.full(table.images, TRAIN, np.uint8) for table in tables)]
    sites = [[""] * len(held_out.labels), *([table.name] * table.images for table in tables)]
    names = [f"at {table.name}: {row}" for table in tables for row in range(table.images)]
    return replace(
        held_out,
        labels=np.concatenate(labels),
        part=np.concatenate(parts),
        files=(*held_out.files, *names),
        sites=np.array([name for one in sites for name in one], dtype=np.str_),
        groups=None,
        uncertain=None,
        verified=None,
    )


def own_scenario(dataset: ImageDataset, tables: Sequence[SiteTable]) -> Scenario:
    """Who holds which of the rows of :func:`with_sites`; nothing is hidden or made wrong."""
    counts = [table.images for table in tables]
    first = len(dataset.labels) - sum(counts)
    holder = np.concatenate([np.full(first, -1), np.repeat(np.arange(len(counts)), counts)])
    digest = hashlib.sha256(json.dumps([table.as_json() for table in tables]).encode())
    digest.update(dataset.labels.tobytes())
    key = digest.hexdigest()[:32]
    known = ~np.isnan(dataset.labels)
    return Scenario(dataset.part, holder.astype(np.int32), dataset.labels.copy(), known, key)


def held_out_part(dataset: ImageDataset) -> ImageDataset:
    """The rows that the server evaluates on.

    Raises:
        UserError: there are none for the test.
    """
    rows = np.flatnonzero((dataset.part == VAL) | (dataset.part == TEST))
    if not (dataset.part == TEST).any():
        raise UserError("--data-dir: the server needs images to test on; write test_data.csv there")
    if len(rows) == len(dataset.part):
        return dataset
    return replace(
        dataset,
        images=dataset.images[rows],
        labels=dataset.labels[rows],
        files=tuple(dataset.files[row] for row in rows),
        part=dataset.part[rows],
    )


def _rows(table: SiteTable) -> np.ndarray:
    """(images, C) labels with the table's counts: positives first, then negatives, then NaN."""
    place = np.arange(table.images)[:, None]
    labels = np.where(place < table.positives, 1.0, 0.0)
    return np.where(place < table.annotated, labels, np.nan).astype(np.float32)
