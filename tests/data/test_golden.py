"""Draws that the saved scenarios of users depend on: raise scenario.FORMAT when one changes here.

Each is reduced to a number, from 300 images with 7 classes, blanks, patients and four clients.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL
from utils_.missing import MISSING_TYPES, UP_TO_ALL, visible_cells
from utils_.noise import (
    CLIENT_RATES,
    NOISE_TYPES,
    add_noise,
    client_rates,
    reader_profile,
    reader_rates,
)
from utils_.noise.reader import MORE_READS, READS, SAME
from utils_.rng import derive
from utils_.splits import SPLITS, Deal, assign_clients, cut_parts

IMAGES, CLIENTS = 300, 4
CLASSES = ("MEL", "NV", "Effusion", "Nodule/mass", "edema", "AK", "unheard of")


def labels() -> np.ndarray:
    draw = derive(1, "golden").random((IMAGES, len(CLASSES)))
    given = (draw < np.linspace(0.4, 0.04, len(CLASSES))).astype(np.float32)
    return np.where(derive(2, "golden").random(given.shape) < 0.1, np.float32(np.nan), given)


def clients() -> np.ndarray:
    return derive(3, "golden").integers(-1, CLIENTS, IMAGES).astype(np.int32)


def patients() -> np.ndarray:
    return derive(4, "golden").integers(0, 120, IMAGES)


def pixels() -> np.ndarray:
    coarse = derive(5, "golden").integers(0, 200, (IMAGES, 3, 3, 3))
    pixels = np.kron(coarse, np.ones((1, 5, 4, 1))).astype(np.uint8)
    pixels[:, :5] = 0  # a border without anything to see
    return pixels


def number(array: np.ndarray) -> int:
    """Of an array of whole numbers or NaN."""
    return zlib.crc32(np.nan_to_num(array, nan=9).astype(np.int8).tobytes())


NOISE = {
    "commission": (4174757457, 3975808796),
    "flip": (214277971, 3134694656),
    "instance": (2129259650, 1420364665),
    "none": (2743394762, 2743394762),
    "omission": (1469366472, 4121510870),
    "pair": (121000008, 1030639368),
    "paper": (1557268822, 210235525),
    "reader": (3738249294, 2057761981),
    "symmetric": (1111892565, 3373959812),
}
MASKS = {
    "cells": (3508498154, 581180177),
    "classes": (597403818, 2225858218),
    "images": (3533085257, 3045626179),
    "positive_only": (681291765, 1288580648),
    "single_positive": (3667571346, 4202396864),
}
SPLIT = {
    "dirichlet": (1675098977, 836878766),
    "iid": (4132125590, 228576955),
    "phi": (340062903, 3250487581),
    "quantity": (1436553583, 2289519550),
    "shards": (3626240642, 429798794),
}


@pytest.mark.parametrize("name", sorted(NOISE_TYPES))
def test_noise(name: str) -> None:
    """With one rate for all, and with a rate of each client."""
    found = []
    for rate in (0.45, np.array([0.1, 0.3, 0.6, 1.0])):
        noisy = add_noise(
            labels(),
            clients(),
            rate=rate,
            noise_type=name,
            data_seed=1,
            classes=CLASSES,
            pixels=pixels(),
        )
        found.append(number(noisy))
    assert tuple(found) == NOISE[name]


def test_noise_of_images_that_are_not_at_hand() -> None:
    keywords = {"rate": 0.45, "noise_type": "instance", "data_seed": 1}
    assert number(add_noise(labels(), clients(), **keywords)) == 3951908050


@pytest.mark.parametrize("name", sorted(MISSING_TYPES))
def test_masks(name: str) -> None:
    """By a share, and by a count."""
    found = [
        number(
            visible_cells(
                clients(),
                classes=len(CLASSES),
                clients=CLIENTS,
                missing=missing,
                missing_type=name,
                data_seed=1,
                labels=labels(),
            )
        )
        for missing in (0.55, 3)
    ]
    assert tuple(found) == MASKS[name]


LEFT = {
    "cells": 3341862921,
    "images": 4072681918,
    "positive_only": 1780688105,
    "single_positive": 78593960,
}


@pytest.mark.parametrize("name", sorted(set(MISSING_TYPES) - {"classes"}))
def test_what_is_left_where_nearly_all_is_hidden(name: str) -> None:
    """Of each class and client one cell, in twelve images with blanks."""
    given = np.where(derive(8, "golden").random((12, 4)) < 0.3, np.float32(np.nan), np.float32(0))
    given[3, 1] = given[5, 1] = given[5, 2] = 1
    found = visible_cells(
        derive(9, "golden").integers(-1, 3, 12),
        classes=4,
        clients=3,
        missing=1.0 if name in UP_TO_ALL else 0.999,
        missing_type=name,
        data_seed=1,
        labels=given,
    )
    assert number(found) == LEFT[name]


@pytest.mark.parametrize("name", sorted(set(SPLITS) - {"site"}))
def test_splits(name: str) -> None:
    """With patients, and without."""
    deal = Deal(clients=CLIENTS, data_seed=1, alpha=0.3, shards=3, phi=0.6)
    found = []
    for groups in (patients(), None):
        part = np.where(derive(6, "golden").random(IMAGES) < 0.9, TRAIN, TEST).astype(np.uint8)
        found.append(number(assign_clients(part, groups, labels(), None, split=name, deal=deal)))
    assert tuple(found) == SPLIT[name]


def test_parts() -> None:
    """Cut out of nothing, and where the files fix some."""
    fixed = derive(7, "golden").choice([UNASSIGNED, TRAIN, VAL], IMAGES, p=[0.7, 0.2, 0.1])
    found = [
        number(
            cut_parts(part.astype(np.uint8), groups, val_share=0.15, test_share=0.2, data_seed=1)
        )
        for part in (np.full(IMAGES, UNASSIGNED), fixed)
        for groups in (patients(), None)
    ]
    assert found == [2336085471, 792432973, 1985710894, 2959484405]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("same", [0.6, 0.6, 0.6, 0.6, 0.6]),
        ("uniform", [0.475066, 0.413296, 0.331385, 0.373061, 0.586713]),
        ("bernoulli", [0.475066, 0.0, 0.0, 0.0, 0.586713]),
        ("linear", [0.2, 0.3, 0.4, 0.5, 0.6]),
    ],
)
def test_rates_of_clients(kind: str, expected: list[float]) -> None:
    assert set(CLIENT_RATES) == {"same", "uniform", "bernoulli", "linear"}
    found = client_rates(kind, clients=5, rate=0.6, lowest=0.2, noisy_share=0.5, data_seed=1)
    assert found == pytest.approx(expected, abs=1e-6)


def test_readers_in_the_mean() -> None:
    """Over both tables, the names that stand for others, and one that is in neither."""
    names = [*READS, *MORE_READS, *SAME, "unheard of"]
    rates = np.stack(reader_rates(names))
    assert zlib.crc32(np.round(rates * 1e6).astype(np.int64).tobytes()) == 1248065602


def test_a_reader() -> None:
    omitted, added = reader_profile(CLASSES, data_seed=1, site=2)
    assert omitted == pytest.approx(
        [0.287704, 0.50552, 0.403614, 0.332576, 0.634067, 0.348188, 0.650398], abs=1e-6
    )
    assert added == pytest.approx(
        [0.13434, 0.205886, 0.052022, 0.038353, 0.039992, 0.068529, 0.146868], abs=1e-6
    )
