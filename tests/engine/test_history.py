"""The rows of a run: as dictionaries, in little memory, and to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils_.history import ROOM, History

ROWS = st.lists(st.dictionaries(st.sampled_from("abcd"), st.floats(), min_size=1), max_size=6)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_it_is_a_list_of_its_rows(rows: list[dict[str, float]]) -> None:
    history = History(rows)
    assert len(history) == len(rows)
    again = History.from_arrays(history.columns, history.arrays())
    for found in (list(history), history[:], [again[i] for i in range(len(again))]):
        for row, own in zip(rows, found, strict=True):
            assert {n: np.float64(v).tobytes() for n, v in row.items()} == {
                n: np.float64(v).tobytes() for n, v in own.items()
            }
    for name in "abcd":
        expected = [row.get(name, math.nan) for row in rows]
        np.testing.assert_array_equal(history.column(name), expected)


def test_rows_beyond_the_room_and_columns_that_come_later() -> None:
    rows = [{"round": i} | ({"late": i / 2} if i > ROOM else {}) for i in range(3 * ROOM)]
    history = History()
    for row in rows:
        history.append(row)
    assert list(history) == rows
    assert history[-1] == rows[-1] and history[-3:] == rows[-3:]
    again = History.from_arrays(history.columns, history.arrays())
    again.append({"late": 1.0, "new": 2.0})
    assert list(again) == [*rows, {"late": 1.0, "new": 2.0}]
    with pytest.raises(IndexError):
        history[len(rows)]


def test_what_it_gives_away_is_its_own_no_longer() -> None:
    history = History([{"a": 1.0}])
    again = History.from_arrays(history.columns, history.arrays())
    history.column("a")[:] = 9
    history[0]["a"] = 9
    assert history[0] == {"a": 1.0}
    history.append({"b": 2.0})
    assert list(again) == [{"a": 1.0}] and again.columns == ["a"]


def test_a_thousand_rows_take_nine_bytes_a_number() -> None:
    row = {f"column{i}": 0.5 for i in range(40)}
    history = History([row] * 1000)
    assert sum(array.nbytes for array in history.arrays().values()) == 1000 * 40 * 9
