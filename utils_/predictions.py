"""What the models of a run say of its validation and test images, kept beside its result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from utils_.files import atomic_path

FILE = "predictions.safetensors"
METADATA = "fednml"  # the only key, as in the files of weights


@dataclass(frozen=True)
class Predictions:
    """Probabilities and what they are judged by, image by image.

    Where each site has a model of its own (``local``), probabilities are (K, n, C). A part without
    images has n = 0.

    Attributes:
        val_probability: (n, C) float32 in [0, 1], of the last model.
        val_truth: (n, C) float32 of 0, 1 and NaN = unknown.
        val_row: (n,) int64, rows of the data set.
        test_probability, test_truth, test_row: the same of the test part.
        test_probability_selected: of the model that validation prefers; None where it cannot tell.
    """

    val_probability: np.ndarray
    val_truth: np.ndarray
    val_row: np.ndarray
    test_probability: np.ndarray
    test_truth: np.ndarray
    test_row: np.ndarray
    test_probability_selected: np.ndarray | None = None

    def models(self, *, selected: bool = False) -> np.ndarray:
        """(M, n, C) probabilities of the test images, M = 1 unless each site has a model.

        Raises:
            ValueError: of the selected model, where validation has selected none.
        """
        found = self.test_probability_selected if selected else self.test_probability
        if found is None:
            raise ValueError("no round was selected by validation")
        return found[None] if found.ndim == 2 else found


def write_predictions(path: Path, predictions: Predictions, *, classes: Sequence[str]) -> None:
    """Write the file; its metadata name the classes in the order of the columns."""
    from safetensors.numpy import save_file

    values = {field.name: getattr(predictions, field.name) for field in fields(Predictions)}
    arrays = {name: np.ascontiguousarray(a) for name, a in values.items() if a is not None}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata={METADATA: json.dumps({"classes": list(classes)})})


def read_predictions(folder: Path) -> Predictions | None:
    """The predictions of the run in ``folder``; None if it has none, being older than this file.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = Predictions(**load_file(path))
        _check(found)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{FILE} is damaged ({' '.join(str(error).split())})") from error
    return found


def _check(found: Predictions) -> None:
    """Shapes fit, and nothing but probabilities and labels is there: a wrong bit would show."""
    for part in ("val", "test"):
        truth, rows = getattr(found, f"{part}_truth"), getattr(found, f"{part}_row")
        for name in (f"{part}_probability", f"{part}_probability_selected"):
            own = getattr(found, name, None)
            if own is None:
                continue
            if own.shape[-2:] != truth.shape or rows.shape != truth.shape[:1]:
                raise ValueError(f"{name} has shape {own.shape}, {part}_truth {truth.shape}")
            if not ((own >= 0) & (own <= 1)).all():
                raise ValueError(f"{name} holds what is no probability")
        if not ((truth == 0) | (truth == 1) | np.isnan(truth)).all():
            raise ValueError(f"{part}_truth holds values other than 0, 1 and NaN")
