"""Missing classes: coverage at every count, nested, uniform, and clear errors."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils_.errors import UserError
from utils_.missing import class_ranks, hidden_count, visible_cells


def visible_classes(clients: int, classes: int, missing: float | int, seed: int = 1) -> np.ndarray:
    """(K, C) bool, from one image a client."""
    return visible_cells(
        np.arange(clients, dtype=np.int32),
        classes=classes,
        clients=clients,
        missing=missing,
        missing_type="classes",
        data_seed=seed,
    )


@given(clients=st.integers(1, 12), classes=st.integers(1, 25), seed=st.integers(0, 999))
def test_every_feasible_count_covers_every_class_and_the_next_is_refused(clients, classes, seed):
    most = classes - math.ceil(classes / clients)
    wider = np.ones((clients, classes), dtype=bool)
    for hidden in range(most + 1):
        visible = visible_classes(clients, classes, hidden, seed)
        assert (visible.sum(axis=1) == classes - hidden).all()
        assert visible.any(axis=0).all()
        assert (wider | ~visible).all()  # nested: hiding more hides what was hidden before
        wider = visible
    if most + 1 < classes:
        with pytest.raises(UserError, match=f"--missing {most} or less") as caught:
            visible_classes(clients, classes, most + 1, seed)
        needed = int(str(caught.value).split("--clients ")[1].split()[0])
        assert needed > clients
        visible_classes(needed, classes, most + 1, seed)
        with pytest.raises(UserError):
            visible_classes(needed - 1, classes, most + 1, seed)


def test_rows_of_a_client_share_its_classes_and_other_parts_see_everything():
    client = np.array([0, 1, -1, 1, 0, -1], np.int32)
    visible = visible_cells(
        client, classes=6, clients=2, missing=0.5, missing_type="classes", data_seed=1
    )
    assert visible[client == -1].all()
    for k in range(2):
        rows = visible[client == k]
        assert (rows == rows[0]).all()
        assert rows[0].sum() == 3


@pytest.mark.parametrize(("clients", "hidden"), [(4, 8), (2, 3), (9, 5)])
def test_sets_of_one_client_are_uniform(clients, hidden):
    """Each class, and each pair of classes, is hidden as often as in a uniform draw."""
    classes, draws = 10 if clients > 2 else 6, 6000
    hides = np.array(
        [class_ranks(clients, classes, data_seed=s)[-1] >= classes - hidden for s in range(draws)]
    )
    alone = hidden / classes
    together = alone * (hidden - 1) / (classes - 1)
    pairs = hides.T.astype(float) @ hides / draws
    off_diagonal = ~np.eye(classes, dtype=bool)
    assert np.abs(np.diag(pairs) - alone).max() < 5 * math.sqrt(alone * (1 - alone) / draws)
    error = math.sqrt(together * (1 - together) / draws)
    assert np.abs(pairs[off_diagonal] - together).max() < 5 * error


def test_golden_value():
    """The saved scenarios of users depend on it: raise scenario.FORMAT when this changes."""
    assert class_ranks(2, 4, data_seed=1).tolist() == [[1, 2, 3, 0], [2, 1, 0, 3]]


def test_seed_decides():
    assert (class_ranks(4, 8, data_seed=1) == class_ranks(4, 8, data_seed=1)).all()
    assert (class_ranks(4, 8, data_seed=1) != class_ranks(4, 8, data_seed=2)).any()


@pytest.mark.parametrize(
    ("missing", "classes", "count"),
    [
        (0, 8, 0),
        (0.0, 8, 0),
        (0.5, 8, 4),
        (0.5, 7, 4),
        (0.4, 20, 8),
        (0.99, 8, 7),
        (0.99, 1, 0),
        (3, 8, 3),
        (1, 8, 1),
        (np.int64(2), 8, 2),
        (np.float32(0.5), 8, 4),
    ],
)
def test_a_float_is_a_share_and_an_int_a_count(missing, classes, count):
    assert hidden_count(missing, classes) == count


@pytest.mark.parametrize("missing", [-1, 8, 9, 1.0, 4.0, -0.1, float("nan"), True, "4"])
def test_values_out_of_range_are_named(missing):
    with pytest.raises(UserError, match=f"--missing {missing} is out of range"):
        hidden_count(missing, 8)


def test_a_share_that_rounds_to_nothing_is_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="fednml"):
        assert hidden_count(0.01, 8) == 0
    assert "no label is hidden" in caplog.text


def test_unknown_type_gets_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'classes'"):
        visible_cells(
            np.zeros(2, np.int32),
            classes=2,
            clients=1,
            missing=0,
            missing_type="clases",
            data_seed=1,
        )
