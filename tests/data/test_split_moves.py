"""Splits piece by piece: shares, cuts, moves between clients, and what is far from even."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import deal

from utils_.rng import derive
from utils_.splits import skewed
from utils_.splits.base import (
    cut_by_shares,
    dirichlet_shares,
    enough_images,
    fill_small_clients,
    training_groups,
)
from utils_.splits.parts import _report_share
from utils_.splits.plain import _report_uneven
from utils_.splits.skewed import _draw_dirichlet


@pytest.mark.parametrize(("largest", "warned"), [(19, False), (20, True)])
def test_clients_far_from_an_equal_share_are_reported(largest, warned, caplog):
    """By more than half of it, which is 13 images."""
    groups = np.append(np.repeat(0, largest), 1 + np.arange(52 - largest))
    with caplog.at_level(logging.WARNING, logger="fednml"):
        deal(np.zeros((52, 1)), groups=groups, clients=4)
    assert ("shares are uneven: client 0 20 of 52" in caplog.text) == warned


@pytest.mark.parametrize(
    ("images", "told"),
    [
        *(([15, 5, 10, 10], ""), ([16, 4, 10, 10], "client 0 16, client 1 4 of 40")),
        *(([2, 1, 1, 1], ""), ([3, 1, 1, 1], "client 0 3 of 6")),
    ],
)
def test_uneven_means_by_more_than_half_and_by_more_than_one_image(images, told, caplog):
    with caplog.at_level(logging.WARNING, logger="fednml"):
        _report_uneven(np.array(images))
    assert told in caplog.text and bool(told) == bool(caplog.text)


@pytest.mark.parametrize(
    ("images", "total", "told"),
    [(15, 100, False), (16, 100, True), (4, 100, True), (5, 100, False), (2, 10, False)],
)
def test_parts_far_from_their_share_are_reported(images, total, told, caplog):
    """By more than half of it, and more than one image."""
    with caplog.at_level(logging.WARNING, logger="fednml"):
        _report_share(images, total, share=0.1, option="--val-share")
    text = f"--val-share 0.1: the val part has {images} of {total} images ({images} %), since"
    assert (text in caplog.text) == bool(caplog.text) == told


def test_shares_of_the_smallest_and_the_largest_alpha_are_whole_numbers_and_equal():
    """Where gammas underflow, and where they are all alike."""
    for seed in range(20):
        smallest = dirichlet_shares(3, alpha=1e-300, rng=derive(seed, "test"))
        assert sorted(smallest) == [0, 0, 1]
        largest = dirichlet_shares(3, alpha=1e300, rng=derive(seed, "test"))
        assert largest == pytest.approx([1 / 3] * 3, rel=1e-5)


@pytest.mark.parametrize(
    ("images", "clients", "expected"),
    [(2000, 4, 10), (400, 4, 10), (399, 4, 9), (120, 4, 3), (110, 4, 2), (7, 7, 2)],
)
def test_enough_is_a_tenth_of_the_mean_within_bounds(images, clients, expected):
    groups = training_groups(np.arange(images), None, np.zeros((images, 1)), None)
    assert enough_images(groups, clients) == expected


def test_cutting_counts_the_images_before_a_group():
    """Shares 0.25, 0.5 and 0.25 of twelve images: what begins at image 3 or 9 begins a share."""
    sizes = np.array([2, 1, 1, 5, 1, 2])
    assert cut_by_shares(sizes, np.array([0.25, 0.5, 0.25])).tolist() == [0, 0, 1, 1, 2, 2]


def test_moves_take_the_smallest_groups_of_the_largest_client():
    sizes = np.array([5, 4, 1, 1, 3, 1])
    client = np.array([0, 0, 0, 1, 1, 2])  # 10, 4 and 1 images
    moved = fill_small_clients(client, sizes, clients=3, enough=4)
    assert moved.tolist() == [0, 2, 2, 1, 1, 2]
    assert client.tolist() == [0, 0, 0, 1, 1, 2]
    assert fill_small_clients(client, sizes, clients=3, enough=1).tolist() == client.tolist()


def moved_plainly(client: list[int], sizes: list[int], clients: int, enough: int) -> list[int]:
    """As the docstring of fill_small_clients says, by counting anew before each move."""
    by_size = sorted(range(len(sizes)), key=lambda g: (-sizes[g], g))
    held = [[g for g in by_size if client[g] == k] for k in range(clients)]
    while True:
        load = [sum(sizes[g] for g in own) for own in held]
        taker, givers = load.index(min(load)), [k for k in range(clients) if len(held[k]) > 1]
        if load[taker] >= enough or not givers:
            break
        giver = max(givers, key=lambda k: load[k])
        if load[giver] - sizes[held[giver][-1]] <= load[taker]:
            break
        held[taker].append(held[giver].pop())
    return [next(k for k in range(clients) if g in held[k]) for g in range(len(sizes))]


@settings(max_examples=200, deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=12),
    enough=st.integers(1, 12),
)
def test_moves_against_plain_loops(groups, enough):
    client, sizes = zip(*groups, strict=True)
    found = fill_small_clients(np.array(client), np.array(sizes), clients=4, enough=enough)
    assert found.tolist() == moved_plainly(client, sizes, 4, enough)


@pytest.mark.parametrize(
    ("client", "sizes", "enough", "expected"),
    [
        ([0, 0], [3, 9], 9, [1, 0]),
        ([0, 1], [9, 1], 9, [0, 1]),  # nobody has a group to spare
        ([0, 0, 1], [2, 2, 2], 3, [0, 0, 1]),  # the two would only change places
        ([0, 1, 1, 1, 2], [9, 2, 2, 2, 1], 3, [0, 1, 1, 2, 2]),  # the largest has a single one
    ],
)
def test_moves_end_where_nothing_is_to_be_won(client, sizes, enough, expected):
    clients = max(client) + 1 if len(set(client)) > 1 else 2
    found = fill_small_clients(np.array(client), np.array(sizes), clients=clients, enough=enough)
    assert found.tolist() == expected


@pytest.mark.parametrize("size", [1, 3])
def test_a_client_is_full_with_its_share_of_the_images(size):
    """Three classes of 20 groups each go to three clients where one draw takes all."""
    primary, sizes = np.repeat([0, 1, 2], 20), np.full(60, size)
    for seed in range(10):
        rng = derive(seed, "test")
        client = _draw_dirichlet(primary, sizes, clients=3, alpha=1e-9, rng=rng)
        assert np.bincount(client, minlength=3).tolist() == [20, 20, 20]


@pytest.mark.parametrize(("last", "tries"), [(2, 1), (1, 10)])
def test_a_draw_is_repeated_ten_times_unless_all_have_enough_images(last, tries, monkeypatch):
    """Two are enough; they may be those of one patient."""
    drawn = []

    def draw(*_: object, **__: object) -> np.ndarray:
        drawn.append(1)
        return np.array([0] * 8 + [1])

    monkeypatch.setattr(skewed, "_draw_dirichlet", draw)
    groups = np.append(np.arange(8), [8] * last)
    client = deal(np.ones((len(groups), 1)), split="dirichlet", clients=2, groups=groups)
    assert len(drawn) == tries
    assert np.bincount(client).tolist() == [8, 2] if last == 2 else [7, 2]
