"""What every dataset gives: images in memory-mapped arrays, a label table, names and groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils_.datasets.cache.pixel_range import Bounds

TRAIN, VAL, TEST, UNASSIGNED = range(4)
PART_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class ImageDataset:
    """N images with labels for C classes.

    Attributes:
        name: the name on the command line.
        images: (N, H, W, 3) uint8, memory-mapped where it comes from files.
        labels: (N, C) float32: 1 present, 0 absent, NaN not annotated in the files.
        classes: C names in the order of the columns.
        files: N unique names, as they appear in ``assignments.csv``.
        part: (N,) uint8, TRAIN, VAL or TEST where the files fix it, else UNASSIGNED.
        groups: (N,) int64, images of one patient or lesion share a number; None without such ids.
        sites: (N,) names of the sites (str array); None without them.
        image_key: hex digest of the image content and size (never of the labels).
        uncertain: (N, C) bool, cells without annotation whose training starts from 0.5 (a reader
            wrote "uncertain"); None without such.
        verified: (N, C) float32, what is really there, as drawn or as somebody has verified; NaN
            where nobody has. None where nobody has verified any label. For the Oracle alone.
        pixel_bounds: the values of deep pixels that became 0 and 255, where they were measured.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    files: tuple[str, ...]
    part: np.ndarray
    groups: np.ndarray | None
    sites: np.ndarray | None
    image_key: str
    uncertain: np.ndarray | None = None
    verified: np.ndarray | None = None
    pixel_bounds: Bounds | None = None

    @property
    def best_known(self) -> np.ndarray:
        """(N, C) float32 labels as verified where they are, else as the files have them."""
        if self.verified is None:
            return self.labels
        labels: np.ndarray = np.where(np.isnan(self.verified), self.labels, self.verified)
        return labels
