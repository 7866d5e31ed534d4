"""The file of predictions: a row an image, a probability and a label a class."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from src.model_facts import ModelFacts
from utils_.errors import UserError, some
from utils_.files import atomic_path
from utils_.spreadsheet import harmless

NOT_TRAINED = "not trained"
FIRST, LAST = "image", "problem"  # columns
PROBABILITY, LABEL = "probability_", "label_"  # before the name of a class


class PredictionSheet:
    """Rows of predictions, written as they come."""

    def __init__(self, writer: Any, facts: ModelFacts) -> None:
        self._writer, self._trained, self._cuts = writer, facts.trained, facts.cuts
        pairs = [f"{kind}{name}" for name in facts.classes for kind in (PROBABILITY, LABEL)]
        writer.writerow([FIRST, *pairs, LAST])

    def predicted(self, name: str, probability: np.ndarray) -> None:
        """Write the (C,) probabilities of an image, NaN of untrained classes."""
        called = labels(probability, self._cuts)
        cells = zip(probability.tolist(), called, self._trained, strict=True)
        pairs = [self._pair(*cell) for cell in cells]
        self._writer.writerow([harmless(name), *(cell for pair in pairs for cell in pair), ""])

    def unreadable(self, name: str, problem: str) -> None:
        """Write why an image has no prediction."""
        blanks = [""] * (2 * len(self._trained))
        self._writer.writerow([harmless(name), *blanks, harmless(problem)])

    @staticmethod
    def _pair(probability: float, label: float, trained: bool) -> tuple[str, str]:
        if not trained:
            return NOT_TRAINED, NOT_TRAINED
        return f"{probability:.6g}", "" if np.isnan(label) else f"{label:.0f}"


def labels(probability: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """1 at or above the threshold, 0 below, NaN where there is none; the shape of probability."""
    with np.errstate(invalid="ignore"):
        above = (probability >= cuts).astype(np.float64)
    return np.where(np.isnan(cuts) | np.isnan(probability), np.nan, above)


@contextmanager
def prediction_sheet(path: Path, facts: ModelFacts) -> Iterator[PredictionSheet]:
    """Yield a sheet that lies at ``path`` once the block has succeeded.

    Raises:
        UserError: something else than predictions lies there, or it cannot be written.
    """
    _refuse_other_files(path)
    try:
        with atomic_path(path) as temporary:
            # By its mark Excel reads UTF-8; a name that is no UTF-8 is shown by its bytes.
            options = {"encoding": "utf-8-sig", "errors": "backslashreplace", "newline": ""}
            with temporary.open("w", **options) as file:
                yield PredictionSheet(csv.writer(file, lineterminator="\n"), facts)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror or error})") from error


def _refuse_other_files(path: Path) -> None:
    """Labels that somebody wrote must not be lost to a wrong --out."""
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file")
    if not path.exists():
        return
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.readline()
    if not head.startswith(f"{FIRST},{PROBABILITY}"):
        raise UserError(f"--out {path}: exists and holds no predictions; choose another name")


def remarks(facts: ModelFacts) -> list[str]:
    """What the cells without number or label mean."""
    pairs = list(zip(facts.classes, facts.trained, facts.thresholds, strict=True))
    untrained = [name for name, trained, _ in pairs if not trained]
    uncut = [name for name, trained, cut in pairs if trained and cut is None]
    lines = []
    if uncut:
        why = "no image of the validation part is known to show them, or none to lack them"
        lines.append(f"no threshold, so no label: {some(uncut, 10)} ({why})")
    if untrained:
        lines.append(f"{NOT_TRAINED}: {some(untrained, 10)} (no site annotates them)")
    return lines
