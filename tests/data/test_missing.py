"""Missing labels: coverage at every amount, nested, uniform, and clear errors."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils_.errors import UserError
from utils_.missing import (
    MISSING_TYPES,
    UP_TO_ALL,
    class_ranks,
    hidden_count,
    visible_cells,
)


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
        with pytest.raises(UserError, match=f"--missing {most}( or less)?,") as caught:
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
        assert [hidden_count(share, 8) for share in (0.0, 0.5)] == [0, 4]
        assert not caplog.text
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


# --- cells, images, positives


def visible(labels: np.ndarray, client: np.ndarray, **changes: object) -> np.ndarray:
    keywords = {"missing": 0.5, "missing_type": "cells", "data_seed": 1} | changes
    clients = int(client.max()) + 1
    return visible_cells(
        client, classes=labels.shape[1], clients=clients, labels=labels, **keywords
    )


def random_labels(images: int, classes: int = 6, *, prevalence: float = 0.2) -> np.ndarray:
    draw = np.random.default_rng(3).random((images, classes))
    return (draw < prevalence).astype(np.float32)


def in_turn(images: int, clients: int = 3) -> np.ndarray:
    return (np.arange(images) % clients).astype(np.int32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels with blanks and clients, each with an image, some rows outside train."""
    images, classes = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixture = draw(st.sampled_from([(0.7, 0.3, 0), (0.3, 0.1, 0.6), (1, 0, 0), (0, 1, 0)]))
    labels = rng.choice([0, 1, np.nan], (images, classes), p=mixture).astype(np.float32)
    clients = draw(st.integers(1, min(5, images)))
    client = rng.integers(-1, clients, images)
    client[rng.permutation(images)[:clients]] = np.arange(clients)
    return labels, client.astype(np.int32)


amounts = st.one_of(st.floats(0, 1, exclude_max=True), st.integers(0, 5))


@settings(max_examples=300, deadline=None)
@given(
    case=cases(),
    missing_type=st.sampled_from(sorted(MISSING_TYPES)),
    missing=amounts,
    more=amounts,
    seed=st.integers(0, 9),
)
def test_any_amount_covers_classes_and_clients_and_more_only_adds(
    case, missing_type, missing, more, seed
):
    labels, client = case
    train, known = client >= 0, ~np.isnan(labels)
    seen = []
    for amount in sorted((missing, more)):
        try:
            seen.append(
                visible(labels, client, missing=amount, missing_type=missing_type, data_seed=seed)
            )
        except UserError as error:
            assert str(error).startswith(f"--missing {amount}")
            assert "\n" not in str(error)
            return
        assert seen[-1].shape == labels.shape
        assert seen[-1][~train].all()
        annotated = seen[-1] & known
        if missing_type != "classes":  # there blanks in the files may hide what is left
            assert (annotated[train].any(axis=0) == known[train].any(axis=0)).all()
            for k in range(client.max() + 1):
                inside = client == k
                assert annotated[inside].any() == known[inside].any()
        else:
            assert seen[-1][train].any(axis=0).all()
    if type(missing) is type(more):
        assert (seen[0] | ~seen[1]).all()


@pytest.mark.parametrize("missing_type", sorted(MISSING_TYPES))
def test_nothing_is_hidden_unless_asked_for(missing_type):
    labels = random_labels(30)
    for nothing in (0, 0.0):
        assert visible(labels, in_turn(30), missing=nothing, missing_type=missing_type).all()


@pytest.mark.parametrize("missing_type", ["classes", "cells", "images"])
def test_these_types_read_no_label(missing_type):
    labels, client = random_labels(200), in_turn(200)
    first = visible(labels, client, missing_type=missing_type)
    other = np.random.default_rng(0).permutation(labels.ravel()).reshape(labels.shape)
    for labels_ in (1 - labels, other, None):
        again = visible_cells(
            client,
            classes=6,
            clients=3,
            missing=0.5,
            missing_type=missing_type,
            data_seed=1,
            labels=labels_,
        )
        assert (again == first).all()


def test_cells_are_hidden_at_random():
    hidden = ~visible(random_labels(20000), in_turn(20000), missing=0.3)
    assert abs(hidden.mean() - 0.3) < 0.006
    assert (np.abs(hidden.mean(axis=0) - 0.3) < 0.017).all()
    pairs = hidden.T.astype(float) @ hidden / len(hidden)  # independent: 0.3 x 0.3
    assert (np.abs(pairs[~np.eye(6, dtype=bool)] - 0.09) < 0.011).all()
    counted = ~visible(random_labels(20000), in_turn(20000), missing=2)
    assert counted.sum(axis=1).max() == 2
    assert (counted.sum(axis=1) == 2).mean() > 0.999  # but where the last of a class stays
    assert (np.abs(counted.mean(axis=0) - 1 / 3) < 0.017).all()


def test_images_lose_all_labels_or_none():
    seen = visible(random_labels(301), in_turn(301), missing=0.4, missing_type="images")
    assert (seen.all(axis=1) | ~seen.any(axis=1)).all()
    for k in range(3):
        size = int((in_turn(301) == k).sum())
        assert (~seen[in_turn(301) == k].any(axis=1)).sum() == math.floor(0.4 * size + 0.5)
    counted = visible(random_labels(301), in_turn(301), missing=7, missing_type="images")
    assert [(~counted[in_turn(301) == k].any(axis=1)).sum() for k in range(3)] == [7, 7, 7]


def test_nearly_all_images_leave_one_a_client():
    seen = visible(random_labels(12), in_turn(12), missing=0.999, missing_type="images")
    assert [seen[in_turn(12) == k].any(axis=1).sum() for k in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("clients", [1, 2, 3])
@pytest.mark.parametrize("missing_type", ["cells", "images"])
def test_of_a_single_class_each_client_keeps_a_label(clients, missing_type):
    client = in_turn(12, clients)
    seen = visible(np.zeros((12, 1)), client, missing=0.9999, missing_type=missing_type)
    assert [seen[client == k].sum() for k in range(clients)] == [1] * clients


def test_positive_only_hides_every_negative():
    labels = random_labels(600)
    seen = visible(labels, in_turn(600), missing=1.0, missing_type="positive_only")
    assert (seen == (labels == 1)).all()
    half = visible(labels, in_turn(600), missing=0.5, missing_type="positive_only")
    changed = ~half.all(axis=1)
    assert (half[changed] == (labels == 1)[changed]).all()
    full = (labels == 1).all(axis=1)  # such an image has no negative to hide
    assert 300 - full.sum() <= changed.sum() <= 300


def test_single_positive_leaves_one_of_each_image():
    labels = random_labels(3000, prevalence=0.5)
    seen = visible(labels, in_turn(3000), missing=1.0, missing_type="single_positive")
    assert (seen.sum(axis=1) == labels.any(axis=1)).all()
    assert not (seen & (labels == 0)).any()
    kept = seen.sum(axis=0) / labels.sum(axis=0)
    assert kept.std() < 0.03  # each positive of an image is as likely as the next


@pytest.mark.parametrize("missing_type", UP_TO_ALL)
def test_a_class_or_client_without_positives_keeps_a_negative(missing_type):
    labels = random_labels(300, prevalence=0.4)
    labels[:, 2] = 0
    labels[in_turn(300) == 1] = 0
    seen = visible(labels, in_turn(300), missing=1.0, missing_type=missing_type)
    assert seen[:, 2].sum() >= 1
    assert seen[in_turn(300) == 1].sum() >= 1
    assert (seen & (labels == 0)).sum() <= 2


@pytest.mark.parametrize(
    ("missing_type", "missing", "message"),
    [
        ("cells", 1.0, "--missing 1.0 is out of range; give a share from 0 up to below 1"),
        ("cells", 6, "--missing 6 is out of range for 6 classes"),
        ("cells", float("nan"), "--missing nan"),
        ("images", 1.0, "--missing 1.0 is out of range; give a share from 0 up to below 1"),
        ("images", -0.5, "--missing -0.5"),
        ("images", 10, "--missing 10 is out of range: of client . at most 9 of 10 images"),
        ("images", -1, "--missing -1 is out of range"),
        ("positive_only", 1.1, "--missing 1.1 is out of range; give a share of the images"),
        ("single_positive", 11, "of client 0 at most 10 of 10 images"),
        ("positive_only", True, "--missing True"),
    ],
)
def test_amounts_out_of_range_are_named(missing_type, missing, message):
    with pytest.raises(UserError, match=message):
        visible(random_labels(30), in_turn(30), missing=missing, missing_type=missing_type)


@pytest.mark.parametrize("missing_type", ["cells", "images", "positive_only"])
def test_an_amount_that_hides_nothing_is_reported(missing_type, caplog):
    with caplog.at_level(logging.WARNING, logger="fednml"):
        visible(np.ones((4, 2)), in_turn(4, 2), missing=0.001, missing_type=missing_type)
    assert "hides no label" in caplog.text


@pytest.mark.parametrize("missing_type", sorted(MISSING_TYPES))
def test_an_amount_that_hides_something_or_is_nothing_is_not_reported(missing_type, caplog):
    with caplog.at_level(logging.WARNING, logger="fednml"):
        for missing in (0, 0.0, 0.5):
            visible(random_labels(40), in_turn(40), missing=missing, missing_type=missing_type)
    assert not caplog.text


def test_unknown_labels_are_taken_for_negative():
    """As in a dry run: of each class and client one cell stays."""
    seen = visible_cells(
        in_turn(30),
        classes=6,
        clients=3,
        missing=1.0,
        missing_type="positive_only",
        data_seed=1,
    )
    assert (seen.sum(axis=0) >= 1).all()
    assert seen.sum() <= 6 + 3


def test_a_class_that_would_stay_nowhere_keeps_a_positive_and_a_blank_one_nothing():
    labels = np.array([[1, 1, 1, np.nan], [0, 0, 0, np.nan], [0, 0, 0, np.nan]], np.float32)
    seen = visible(labels, in_turn(3, 1), missing=1.0, missing_type="single_positive")
    assert seen.tolist() == [[True, True, True, False], [False] * 4, [False] * 4]


def test_a_count_may_be_all_that_the_smallest_client_can_hide():
    client = np.repeat([0, 1], [3, 10])
    labels = random_labels(13)
    visible(labels, client, missing=3, missing_type="positive_only")
    with pytest.raises(UserError, match="of client 0 at most 3 of 3 images can be hidden"):
        visible(labels, client, missing=4, missing_type="positive_only")


@pytest.mark.parametrize("missing_type", sorted(MISSING_TYPES))
def test_a_client_without_an_image_is_no_trouble(missing_type):
    seen = visible_cells(
        in_turn(20, 2),
        classes=6,
        clients=3,
        missing=0.5,
        missing_type=missing_type,
        data_seed=1,
        labels=random_labels(20),
    )
    assert seen.any() and not seen.all()
