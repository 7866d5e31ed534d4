"""What labels are judged by: drawn or verified labels, the files' where flaws are simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils_.datasets.base import PART_NAMES, TRAIN, ImageDataset

if TYPE_CHECKING:
    from utils_.scenario import Scenario

DRAWN, VERIFIED, FILES, UNKNOWN = "drawn", "verified", "files", "unknown"
WORDS = {
    DRAWN: "training labels are judged by those that were drawn",
    VERIFIED: "training labels are judged by the verified ones of true_data.csv alone",
    FILES: "training labels are judged by those of the files, which nobody has verified: the "
    "figures are about the simulated flaws",
    UNKNOWN: "noise of the training labels: unknown, since nobody has verified them and nothing is "
    "simulated; verified labels belong into true_data.csv",
}


@dataclass(frozen=True)
class Reference:
    """What training labels are judged by.

    Attributes:
        kind: ``drawn``, ``verified``, ``files`` or ``unknown``.
        labels: (N, C) float32, NaN where there is nothing to judge by.
    """

    kind: str
    labels: np.ndarray


def reference(dataset: ImageDataset, scenario: Scenario, *, noise: bool) -> Reference:
    """What the training labels of a scenario are judged by.

    - Drawn images: what was drawn. Verified labels: those, and nothing else.
    - Otherwise the files' labels, but only for what the simulation has done to them: all cells
      where it makes some wrong, else the cells that it hides.

    Args:
        dataset: N images with C classes.
        scenario: theirs, before any attack.
        noise: whether labels are made wrong on purpose, by noise or by an attack.
    """
    if dataset.verified is not None:
        return Reference(DRAWN if dataset.name == "synthetic" else VERIFIED, dataset.verified)
    read = scenario.annotated & ~scenario.assumed
    judged = ~np.isnan(dataset.labels) & (noise | ~read) & (scenario.client >= 0)[:, None]
    labels = np.where(judged, dataset.labels, np.float32(np.nan))
    return Reference(FILES if judged.any() else UNKNOWN, labels)


def truth_summary(
    dataset: ImageDataset, part: np.ndarray, truth: Reference
) -> dict[str, str | int]:
    """What ``result.json`` says of the truth.

    Args:
        dataset: N images.
        part: (N,) uint8, as a scenario cuts it.
        truth: what the training labels are judged by.

    Returns:
        ``reference``, its ``kind``; ``train_cells``, how many training cells it judges;
        ``val_cells`` and ``test_cells``, how many cells there are verified (or drawn). The others
        of these two parts are judged by the files' labels.
    """
    verified = np.nan if dataset.verified is None else dataset.verified
    known = ~np.isnan(np.where((part == TRAIN)[:, None], truth.labels, verified))
    counts = {f"{name}_cells": int(known[part == p].sum()) for p, name in enumerate(PART_NAMES)}
    return {"reference": truth.kind, **counts}
