"""LabelState: what may change and what may not; the Oracle's two answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from utils_.labels import CORRECTED, MISSING, OBSERVED, PSEUDO, LabelState, Oracle

NAN = np.nan
OBSERVATIONS = arrays(np.float32, (5, 3), elements=st.sampled_from([0.0, 1.0, NAN]))
VALUES = arrays(np.float32, (5, 3), elements=st.floats(0, 1, width=32))
CELLS = arrays(bool, (5, 3))


def test_a_cell_that_nobody_looked_at_has_no_weight_and_no_value() -> None:
    labels = LabelState(np.array([[1, 0, NAN], [NAN, NAN, NAN]]))
    assert labels.annotated.tolist() == [[True, True, False], [False, False, False]]
    assert labels.target.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert labels.weight.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert labels.status.tolist() == [[OBSERVED, OBSERVED, MISSING], [MISSING] * 3]
    assert labels.annotated_classes.tolist() == [True, True, False]
    assert labels.target.dtype == labels.weight.dtype == labels.observed.dtype == np.float32


@pytest.mark.parametrize("name", ["observed", "annotated", "target", "weight", "status"])
def test_no_array_can_be_written_from_outside(name: str) -> None:
    labels = LabelState(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        getattr(labels, name)[0, 0] = 1


@pytest.mark.parametrize("name", ["observed", "annotated", "target", "weight", "status"])
def test_no_array_can_be_replaced_from_outside(name: str) -> None:
    labels = LabelState(np.zeros((2, 2)))
    if name in ("target", "weight", "status"):
        with pytest.raises(AttributeError):
            setattr(labels, name, np.ones((2, 2)))
    else:
        with pytest.raises(ValueError, match="WRITEABLE"):
            getattr(labels, name).view().flags.writeable = True


def test_the_given_array_is_copied() -> None:
    given_array = np.zeros((2, 2), np.float32)
    labels = LabelState(given_array)
    given_array[:] = 1
    assert not labels.observed.any()
    assert not labels.target.any()


@settings(max_examples=100, deadline=None)
@given(OBSERVATIONS, CELLS, VALUES, st.floats(0, 1, width=32))
def test_correct_against_a_loop(
    observed: np.ndarray, cells: np.ndarray, values: np.ndarray, weight: float
) -> None:
    labels = LabelState(observed)
    labels.correct(cells, values, weight=weight)
    for i, c in np.ndindex(cells.shape):
        known = not np.isnan(observed[i, c])
        if not cells[i, c]:
            expected = (observed[i, c], 1, OBSERVED) if known else (0, 0, MISSING)
        elif known:
            same = values[i, c] == observed[i, c]
            expected = (values[i, c], weight, OBSERVED if same else CORRECTED)
        else:
            expected = (values[i, c], weight, PSEUDO if weight else MISSING)
        found = labels.target[i, c], labels.weight[i, c], labels.status[i, c]
        assert found == pytest.approx(expected, abs=0)
    np.testing.assert_array_equal(labels.observed, observed)


def test_a_cell_corrected_back_is_observed_again() -> None:
    labels = LabelState(np.array([[1.0]]))
    everywhere = np.array([[True]])
    labels.correct(everywhere, np.array([[0.25]]))
    assert labels.status.item() == CORRECTED
    labels.correct(everywhere, np.array([[1.0]]))
    assert labels.status.item() == OBSERVED


@pytest.mark.parametrize("bad", [NAN, -0.01, 1.01, np.inf])
@pytest.mark.parametrize("where", ["values", "weight"])
def test_values_outside_the_range_are_refused_and_nothing_changes(bad: float, where: str) -> None:
    labels = LabelState(np.array([[0.0, 1.0]]))
    before = labels.state()
    table = np.array([[0.5, bad]])
    good = np.full((1, 2), 0.5)
    both = {"values": table, "weight": good} if where == "values" else None
    both = both or {"values": good, "weight": table}
    with pytest.raises(ValueError, match=where.removesuffix("s")):
        labels.correct(np.ones((1, 2), bool), both["values"], weight=both["weight"])
    for name, array in before.items():
        np.testing.assert_array_equal(array, getattr(labels, name))


def test_values_are_read_at_the_chosen_cells_only() -> None:
    labels = LabelState(np.array([[0.0, 1.0]]))
    labels.correct(np.array([[True, False]]), np.array([[1.0, NAN]]))
    assert labels.target.tolist() == [[1, 1]]


@settings(max_examples=50, deadline=None)
@given(OBSERVATIONS, CELLS, VALUES)
def test_state_returns_to_the_same_bits(
    observed: np.ndarray, cells: np.ndarray, values: np.ndarray
) -> None:
    labels, other = LabelState(observed), LabelState(observed)
    labels.correct(cells, values, weight=0.5)
    state = labels.state()
    other.load_state(state)
    for name in ("target", "weight", "status"):
        assert getattr(other, name).tobytes() == getattr(labels, name).tobytes()
        state[name][:] = 0  # copies: what happens to them afterwards is of no account
        assert getattr(other, name).tobytes() == getattr(labels, name).tobytes()
    assert set(state) == {"target", "weight", "status"}


@pytest.mark.parametrize("name", ["target", "weight", "status"])
@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (3, 2), (1, 1)])
def test_a_state_of_other_images_or_classes_is_refused(name: str, shape: tuple[int, int]) -> None:
    """Also one whose rows could be spread over all images."""
    labels = LabelState(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=name):
        labels.load_state(labels.state() | {name: np.zeros(shape, np.float32)})


def test_uncertain_cells_start_from_a_half_and_are_guesses() -> None:
    labels = LabelState(np.array([[1, NAN, NAN]]))
    labels.soften(np.array([[True, True, False]]))
    assert labels.target.tolist() == [[1, 0.5, 0]]
    assert labels.weight.tolist() == [[1, 1, 0]]
    assert labels.status.tolist() == [[OBSERVED, PSEUDO, MISSING]]


def test_a_weight_of_zero_takes_a_guess_back() -> None:
    labels = LabelState(np.array([[NAN, 1.0]]))
    for weight, status in ((0.5, PSEUDO), (0.0, MISSING)):
        labels.correct(np.ones((1, 2), bool), np.ones((1, 2)), weight=weight)
        assert labels.status.tolist() == [[status, OBSERVED]]


def test_a_value_counts_as_observed_at_the_precision_of_labels() -> None:
    """Float64 values and weights are rounded first, and only then compared and checked."""
    labels = LabelState(np.array([[0.1, 0.0]], np.float32))
    labels.correct(np.ones((1, 2), bool), np.array([[0.1, 1 + 1e-12]]), weight=1 + 1e-12)
    assert labels.status.tolist() == [[OBSERVED, CORRECTED]]
    assert labels.target.tolist() == [[np.float32(0.1), 1]]


def test_the_oracle_tells_truth_and_noise_of_known_cells() -> None:
    true = np.array([[1, 0, NAN], [1, 1, 0]], np.float32)
    noisy = np.array([[0, 0, 1], [1, NAN, 0]], np.float32)
    oracle = Oracle(true.astype(np.float64), noisy.astype(np.float64))
    rows = np.array([1, 0])
    np.testing.assert_array_equal(oracle.true(rows), true[rows])
    assert oracle.true(rows).dtype == np.float32
    assert oracle.noise(rows).tolist() == [[False, False, False], [True, False, False]]
    true[:] = 0
    assert oracle.true(np.array([1])).tolist() == [[1, 1, 0]]
