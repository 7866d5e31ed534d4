"""The rows of a run, a row a round, in as little memory as their numbers need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

ROOM = 64  # rows, at first; pages that nobody has written to are no memory yet


class History:
    """Rows of scalars by column, as dictionaries that lack the columns that a row does not have.

    A dictionary a round would keep some kilobytes each, and a checkpoint would spell them out.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.columns: list[str] = []
        self._place: dict[str, int] = {}
        self._values = np.zeros((ROOM, 0))
        self._known = np.zeros((ROOM, 0), bool)
        self._length = 0
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; a column that is new is blank in the earlier ones."""
        for name in row:
            if name not in self._place:
                self._place[name] = len(self.columns)
                self.columns.append(name)
        self._make_room()
        places = [self._place[name] for name in row]
        self._values[self._length, places] = list(row.values())
        self._known[self._length, places] = True
        self._length += 1

    def _make_room(self) -> None:
        rows, columns = self._values.shape
        if self._length == rows or len(self.columns) > columns:
            shape = (2 * rows if self._length == rows else rows, len(self.columns))
            for name in ("_values", "_known"):
                old = getattr(self, name)
                new = np.zeros(shape, old.dtype)
                new[:rows, :columns] = old
                setattr(self, name, new)

    def column(self, name: str) -> np.ndarray:
        """(rows,) float64, NaN where a row does not have it."""
        if name not in self._place:
            return np.full(len(self), np.nan)
        here = slice(self._length), self._place[name]
        values: np.ndarray = np.where(self._known[here], self._values[here], np.nan)
        return values

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        pairs = zip(self.columns, self._values[place], self._known[place], strict=True)
        return {name: float(value) for name, value, known in pairs if known}

    def __iter__(self) -> Iterator[dict[str, float]]:
        return (self[place] for place in range(len(self)))

    def arrays(self) -> dict[str, np.ndarray]:
        """(rows, columns) ``values``, float64, and ``known``, bool; valid until the next row."""
        here = slice(self._length)
        return {"values": self._values[here], "known": self._known[here]}

    @classmethod
    def from_arrays(cls, columns: list[str], arrays: Mapping[str, np.ndarray]) -> History:
        """Inverse of :meth:`arrays`.

        Raises:
            KeyError, ValueError: an array is absent, or not of these columns.
        """
        history, values, known = cls(), arrays["values"], arrays["known"]
        if values.ndim != 2 or not values.shape[1] == len(columns) == len(set(columns)):
            raise ValueError("its history has other columns")
        if values.dtype != float or known.dtype != bool or known.shape != values.shape:
            raise ValueError("its history is not of numbers")
        history.columns, history._length = list(columns), len(values)
        history._place = {name: place for place, name in enumerate(columns)}
        history._values, history._known = values.copy(), known.copy()
        return history
