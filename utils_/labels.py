"""What a site knows of its labels (LabelState), apart from the truth (Oracle)."""

from __future__ import annotations

import numpy as np

MISSING, OBSERVED, CORRECTED, PSEUDO = range(4)
UNCERTAIN_TARGET = 0.5


class LabelState:
    """The labels of one client, N images by C classes.

    Attributes:
        observed: (N, C) float32, 0 or 1 as annotated, NaN where not annotated; read-only.
        annotated: (N, C) bool, True where somebody looked; read-only.
        target: (N, C) float32 in [0, 1], what training fits; 0 where weight is 0.
        weight: (N, C) float32 in [0, 1], 0 where nothing is known.
        status: (N, C) uint8, one of MISSING, OBSERVED, CORRECTED, PSEUDO.

    ``target``, ``weight`` and ``status`` change through :meth:`correct` alone.
    """

    def __init__(self, observed: np.ndarray) -> None:
        """Start from what the annotators wrote: (N, C) of 0, 1 and NaN where nobody looked."""
        self.observed = np.array(observed, dtype=np.float32)
        self.annotated = ~np.isnan(self.observed)
        self._target = np.where(self.annotated, self.observed, 0).astype(np.float32)
        self._weight = self.annotated.astype(np.float32)
        self._status = np.where(self.annotated, OBSERVED, MISSING).astype(np.uint8)
        self.observed.flags.writeable = self.annotated.flags.writeable = False

    @property
    def target(self) -> np.ndarray:
        return _read_only(self._target)

    @property
    def weight(self) -> np.ndarray:
        return _read_only(self._weight)

    @property
    def status(self) -> np.ndarray:
        return _read_only(self._status)

    @property
    def annotated_classes(self) -> np.ndarray:
        """(C,) bool: classes with at least one annotated cell."""
        classes: np.ndarray = np.any(self.annotated, axis=0)
        return classes

    def correct(
        self, cells: np.ndarray, values: np.ndarray, *, weight: float | np.ndarray = 1.0
    ) -> None:
        """Write ``values`` into the chosen cells and note where they came from.

        Args:
            cells: (N, C) bool, the cells to change.
            values: (N, C), read at ``cells`` only; each in [0, 1].
            weight: a number or (N, C) array in [0, 1].

        Raises:
            ValueError: a value or weight at ``cells`` is outside [0, 1] or not a number.
        """
        new = np.broadcast_to(np.asarray(values, dtype=np.float32), cells.shape)[cells]
        weights = np.broadcast_to(np.asarray(weight, dtype=np.float32), cells.shape)[cells]
        for name, array in (("value", new), ("weight", weights)):
            if not ((array >= 0) & (array <= 1)).all():
                raise ValueError(f"label {name} outside [0, 1]")
        self._target[cells], self._weight[cells] = new, weights
        kept = self.annotated[cells] & (new == self.observed[cells])
        annotated = np.where(kept, OBSERVED, CORRECTED)
        guessed = np.where(weights > 0, PSEUDO, MISSING)  # a weight of 0 takes a guess back
        self._status[cells] = np.where(self.annotated[cells], annotated, guessed)

    def soften(self, cells: np.ndarray) -> None:
        """Start cells that an annotator called uncertain, (N, C) bool, from a target of 0.5.

        They stay without annotation: a method may guess them anew like any other missing cell.
        """
        self.correct(cells & ~self.annotated, np.full(cells.shape, UNCERTAIN_TARGET))

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the arrays that change, for a checkpoint."""
        return {name: getattr(self, name).copy() for name in ("target", "weight", "status")}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            KeyError, ValueError: an array is absent or of other images or classes.
        """
        for name in ("target", "weight", "status"):
            if state[name].shape != self.observed.shape:
                raise ValueError(f"label {name} of shape {state[name].shape}")
            getattr(self, f"_{name}")[:] = state[name]


class Oracle:
    """The truth, as far as it is known. Held by the evaluator alone, out of reach of training."""

    def __init__(self, true: np.ndarray, noisy: np.ndarray) -> None:
        """Take the labels of all images: ``true`` (N, C) and ``noisy`` (N, C) before masking.

        ``true`` is NaN where nobody knows; ``noisy`` where the files give none.
        """
        self._true = np.array(true, dtype=np.float32)
        self._noisy = np.array(noisy, dtype=np.float32)

    def true(self, rows: np.ndarray) -> np.ndarray:
        """(rows, C) true labels of the given images, NaN where nobody knows."""
        labels: np.ndarray = self._true[rows]
        return labels

    def noise(self, rows: np.ndarray) -> np.ndarray:
        """(rows, C) bool: cells whose observed value would differ from the true one."""
        return wrong_cells(self._true[rows], self._noisy[rows])


def wrong_cells(true: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Bool of the tables' shape: cells in which both are known, and differ."""
    return np.asarray((true != given) & ~np.isnan(true) & ~np.isnan(given))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
