"""Noise by cell, image and reader, and rates by client: what moves where, how often, coupled."""

from __future__ import annotations

import csv
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_noise import all_rows, multi_label, noisy_labels, one_hot, same
from tiny import SHARED

from utils_.errors import UserError
from utils_.noise import (
    CLIENT_RATES,
    NOISE_TYPES,
    add_noise,
    client_rates,
    reader_profile,
    reader_rates,
)
from utils_.noise.cells import CONFUSABLE, balance, flip_cells, partners
from utils_.noise.instance import _features, image_features
from utils_.noise.reader import MORE_READS, PRIOR_READS, READS

SHARED_TABLE = SHARED / "data" / "reader_noise.csv"
ISIC = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")


def zeros(images: int) -> np.ndarray:
    return np.zeros(images, np.int32)


def pictures(images: int, *, size: int = 12, seed: int = 0) -> np.ndarray:
    """Images that differ in overall colour and in a few patches."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (images, 3, 3, 3))
    fine = np.kron(coarse, np.ones((1, size // 3, size // 3, 1)))
    return (fine + rng.integers(0, 55, fine.shape)).astype(np.uint8)


# --- all types


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with blanks, clients with rows outside train, and tiny pictures."""
    images, classes = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixture = draw(st.sampled_from([(0.7, 0.3, 0), (0.4, 0.3, 0.3), (1, 0, 0), (0, 1, 0)]))
    labels = rng.choice([0, 1, np.nan], (images, classes), p=mixture).astype(np.float32)
    client = rng.integers(-1, draw(st.integers(1, 4)), images).astype(np.int32)
    pixels = rng.integers(0, 256, (images, draw(st.integers(1, 9)), draw(st.integers(1, 9)), 3))
    if draw(st.booleans()):
        pixels[:] = 7  # nothing to see
    return labels, client, pixels.astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(
    case=cases(),
    noise_type=st.sampled_from(sorted(NOISE_TYPES)),
    rates=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    more=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_higher_rates_of_any_client_only_add(case, noise_type, rates, more):
    labels, client, pixels = case
    low, high = np.minimum(rates, more), np.maximum(rates, more)
    keywords = {"noise_type": noise_type, "data_seed": 3, "pixels": pixels}
    less_noisy = add_noise(labels, client, rate=low, **keywords)
    noisy = add_noise(labels, client, rate=high, **keywords)
    assert (np.isnan(noisy) == np.isnan(labels)).all()
    assert np.isin(noisy[~np.isnan(noisy)], (0, 1)).all()
    assert same(noisy[client < 0], labels[client < 0])
    changed = ~np.isnan(labels) & (less_noisy != labels)
    assert (noisy[changed] == less_noisy[changed]).all()
    # a client at rate 0 keeps its labels, whatever the others' rates
    alone = add_noise(labels, client, rate=np.array([0, 1, 1, 1.0]), **keywords)
    assert same(alone[client == 0], labels[client == 0])


@pytest.mark.parametrize("noise_type", sorted(set(NOISE_TYPES) - {"none"}))
def test_one_rate_for_all_is_the_same_rate_for_each(noise_type):
    labels, client = multi_label(300), (np.arange(300) % 4).astype(np.int32)
    each = noisy_labels(labels, client, noise_type=noise_type, rate=np.full(4, 0.4))
    assert same(each, noisy_labels(labels, client, noise_type=noise_type))


@pytest.mark.parametrize("noise_type", sorted(set(NOISE_TYPES) - {"none", "paper"}))
def test_cells_of_a_client_depend_on_its_own_rate_alone(noise_type):
    labels, client = multi_label(300), (np.arange(300) % 2).astype(np.int32)
    first = noisy_labels(labels, client, noise_type=noise_type, rate=np.array([0.3, 0.0]))
    second = noisy_labels(labels, client, noise_type=noise_type, rate=np.array([0.3, 0.9]))
    assert same(first[client == 0], second[client == 0])
    assert not same(first[client == 1], second[client == 1])


def test_paper_fills_the_quota_of_each_client():
    labels, client = np.zeros((400, 4), np.float32), (np.arange(400) % 4).astype(np.int32)
    noisy = noisy_labels(labels, client, rate=np.array([0, 0.1, 0.5, 1]))
    changed = (noisy != labels).any(axis=1)
    assert [int(changed[client == k].sum()) for k in range(4)] == [0, 10, 50, 100]


def test_noise_that_finds_nothing_to_change_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="fednml"):
        noisy_labels(np.zeros((20, 3), np.float32), zeros(20), noise_type="omission")
    assert "--noise-type omission changes no label" in caplog.text


def test_a_client_with_an_impossible_rate_is_named():
    with pytest.raises(UserError, match=r"--noise 1\.5 is out of range"):
        noisy_labels(multi_label(5), zeros(5), rate=np.array([0.1, 1.5]))


# --- pair


def test_pair_goes_to_the_next_class_of_the_file():
    labels = one_hot(20000)
    noisy = noisy_labels(labels, zeros(20000), noise_type="pair", rate=0.3)
    old, new = labels.argmax(axis=1), noisy.argmax(axis=1)
    assert (noisy.sum(axis=1) == 1).all()
    assert np.isin((new - old) % 5, (0, 1)).all()
    assert abs((new != old).mean() - 0.3) < 0.02


def test_pair_swaps_classes_that_are_confused():
    labels = np.eye(8, dtype=np.float32)
    noisy = noisy_labels(labels, zeros(8), noise_type="pair", rate=1.0, classes=ISIC)
    taken_for = {ISIC[c]: ISIC[row.argmax()] for c, row in enumerate(noisy)}
    named = {"MEL": "NV", "NV": "MEL", "AK": "SCC", "SCC": "AK"}
    assert taken_for == named | {"BCC": "BKL", "BKL": "DF", "DF": "VASC", "VASC": "BCC"}


@given(st.lists(st.sampled_from([n for p in CONFUSABLE for n in p] + ["x", "y", "é"]), unique=True))
def test_no_two_classes_have_the_same_partner(names):
    partner = partners(tuple(names))
    assert sorted(partner) == list(range(len(names)))


def test_pair_on_many_labels_moves_what_can_move():
    labels = multi_label(20000, 8)
    noisy = noisy_labels(labels, zeros(20000), noise_type="pair")
    free = (labels == 1) & (np.roll(labels, -1, axis=1) == 0)
    lost = (labels == 1) & (noisy == 0)
    assert not (lost & ~free).any()
    assert abs(lost.sum() / free.sum() - 0.4) < 0.015
    assert (noisy.sum(axis=1) == labels.sum(axis=1)).all()
    alone = np.ones((4, 1), np.float32)
    assert same(noisy_labels(alone, zeros(4), noise_type="pair", rate=1.0), alone)


# --- omission and commission


@pytest.mark.parametrize("rate", [0.2, 0.7, 1.0])
def test_omission_and_commission_together_are_flip(rate):
    labels = multi_label(3000)
    flipped, omitted, added = (
        noisy_labels(labels, zeros(3000), noise_type=name, rate=rate) != labels
        for name in ("flip", "omission", "commission")
    )
    assert not (omitted & (labels == 0)).any()
    assert not (added & (labels == 1)).any()
    assert (flipped == (omitted | added)).all()


def test_omission_and_commission_keep_their_rates():
    labels = multi_label(40000)
    labels[:, 3] = 0
    positives = labels.sum(axis=0)
    omitted = positives - noisy_labels(labels, zeros(40000), noise_type="omission").sum(axis=0)
    added = noisy_labels(labels, zeros(40000), noise_type="commission").sum(axis=0) - positives
    assert (np.abs(omitted - 0.4 * positives) <= 5 * np.sqrt(0.24 * positives)).all()
    assert (np.abs(added - 0.4 * positives) <= 5 * np.sqrt(0.4 * positives)).all()
    assert omitted[3] == added[3] == 0


# --- instance


def test_features_are_means_over_fields():
    pixels = pictures(3, size=12)
    features = image_features(pixels, np.array([2, 0]))
    assert features.shape == (2, 6 * 6 * 3 + 4 * 4)
    for row, image in zip(features, pixels[[2, 0]] / 255.0, strict=True):
        for y in range(6):
            for x in range(6):
                field = image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(axis=(0, 1))
                assert np.allclose(row[(6 * y + x) * 3 : (6 * y + x) * 3 + 3], field, atol=1e-5)
        grey = image.mean(axis=2)
        down, right = np.zeros((12, 12)), np.zeros((12, 12))
        down[:-1], right[:, :-1] = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
        edges = [
            (down + right)[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].mean()
            for y in range(4)
            for x in range(4)
        ]
        assert np.allclose(row[108:], edges, atol=1e-5)


def test_blocks_of_images_give_what_single_images_give():
    pixels = pictures(600)
    at_once = image_features(pixels, np.arange(600))
    assert np.array_equal(at_once[[5, 555]], image_features(pixels, np.array([5, 555])))


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
def test_instance_moves_the_rate_of_each_class(rate):
    labels = multi_label(4000, 6)
    labels[labels.sum(axis=1) > 3] = 0  # every positive has a negative to move to
    noisy = noisy_labels(
        labels, zeros(4000), noise_type="instance", rate=rate, pixels=pictures(4000)
    )
    lost = ((labels == 1) & (noisy == 0)).sum(axis=0)
    assert (np.abs(lost - rate * labels.sum(axis=0)) <= 1).all()
    assert (noisy.sum(axis=1) == labels.sum(axis=1)).all()


def test_look_alike_images_are_mislabelled_alike():
    """Each picture twice, the copies' pixels a little off: mostly the same error or none."""
    first = pictures(1000)
    pixels = np.concatenate([first, np.clip(first.astype(int) + 3, 0, 255).astype(np.uint8)])
    labels = np.tile(one_hot(1000), (2, 1))
    keywords = {"noise_type": "instance", "rate": 0.4}
    noisy = noisy_labels(labels, zeros(2000), pixels=pixels, **keywords)
    alike = (noisy[:1000] == noisy[1000:]).all(axis=1).mean()
    shuffled = np.random.default_rng(0).permutation(1000)
    unlike = noisy_labels(
        labels, zeros(2000), pixels=np.concatenate([first, pixels[1000:][shuffled]]), **keywords
    )
    assert alike > 0.7
    assert alike > (unlike[:1000] == unlike[1000:]).all(axis=1).mean() + 0.15


def test_errors_can_be_foretold_from_the_image():
    """Among images of one class, those near an erroneous one err more often."""
    pixels, labels = pictures(3000), np.tile(np.eye(4, dtype=np.float32)[0], (3000, 1))
    noisy = noisy_labels(labels, zeros(3000), noise_type="instance", rate=0.5, pixels=pixels)
    wrong, features = noisy[:, 0] == 0, _features(replace(all_rows(labels), pixels=pixels))
    train, test = np.arange(2000), np.arange(2000, 3000)
    design = np.c_[features, np.ones(3000)]
    fit = np.linalg.lstsq(design[train], wrong[train] * 2.0 - 1, rcond=None)[0]
    assert ((design[test] @ fit > 0) == wrong[test]).mean() > 0.75


def test_only_the_pixels_of_training_images_count():
    labels, pixels = multi_label(200), pictures(200)
    client = np.where(np.arange(200) < 150, 0, -1).astype(np.int32)
    first = noisy_labels(labels, client, noise_type="instance", pixels=pixels)
    other = pixels.copy()
    other[150:] = 255 - other[150:]
    assert same(noisy_labels(labels, client, noise_type="instance", pixels=other), first)
    other[:150] = other[:150][::-1]
    assert not same(noisy_labels(labels, client, noise_type="instance", pixels=other), first)


def test_without_pixels_instance_noise_has_the_same_rates():
    labels = one_hot(1000)
    noisy = noisy_labels(labels, zeros(1000), noise_type="instance", rate=0.3)
    assert abs((noisy != labels).any(axis=1).mean() - 0.3) < 0.01


# --- reader


def test_reader_rates_by_hand():
    names = ("Pneumonia", "pleural_thickening", "Pleural Effusion", "PNEUMOTHORAX", "melanoma")
    omitted, added = reader_rates(names)
    pooled = sum(r[1] for r in READS.values()) / sum(r[0] for r in READS.values())
    pooled_added = sum(r[3] for r in READS.values()) / sum(r[2] for r in READS.values())
    assert (round(pooled, 4), round(pooled_added, 4)) == (0.4208, 0.0604)
    assert omitted[0] == pytest.approx((4 + 20 * pooled) / 24)  # four reads: mostly pooled
    assert added[1] == pytest.approx((134 + 20 * pooled_added) / 1542)
    assert omitted[2] == pytest.approx((178 + 20 * pooled) / 472)
    assert omitted[3] == pytest.approx((83 + 181 + 20 * pooled) / (272 + 672 + 20))
    assert (omitted[4], added[4]) == pytest.approx((pooled, pooled_added))
    assert PRIOR_READS == 20


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_reader_noise_has_the_measured_rates(scale):
    names = ("Atelectasis", "Consolidation", "Cardiomegaly", "unknown")
    labels = (np.random.default_rng(0).random((40000, 4)) < 0.3).astype(np.float32)
    sites = (np.arange(40000) % 500).astype(np.int32)  # the measured rates are means over readers
    noisy = noisy_labels(labels, sites, noise_type="reader", rate=scale, classes=names)
    omitted, added = reader_rates(names)
    for c in range(4):
        positive = labels[:, c] == 1
        assert abs((noisy[positive, c] == 0).mean() - scale * omitted[c]) < 0.025
        assert abs((noisy[~positive, c] == 1).mean() - scale * added[c]) < 0.015


READ = ("Atelectasis", "Pneumonia", "unknown")


def profiles(sites: int) -> np.ndarray:
    """(sites, 2, C) rates of the readers."""
    return np.array([reader_profile(READ, data_seed=1, site=k) for k in range(sites)])


def test_readers_differ_by_site_as_the_counts_leave_open():
    found = profiles(4000)
    pooled = [np.sum([r[i] for r in READS.values()]) for i in range(4)]
    for c, name in enumerate(READ):
        counts = READS.get(name, (0, 0, 0, 0))
        for kind in range(2):
            reads, seen = counts[2 * kind : 2 * kind + 2]
            a = seen + PRIOR_READS * pooled[2 * kind + 1] / pooled[2 * kind]
            b = reads + PRIOR_READS - a
            spread = np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))  # of a Beta distribution
            drawn = found[:, kind, c]
            assert drawn.mean() == pytest.approx(a / (a + b), abs=5 * spread / np.sqrt(4000))
            assert drawn.mean() == pytest.approx(reader_rates(READ)[kind][c], abs=0.01)
            assert drawn.std() == pytest.approx(spread, rel=0.07)


def test_a_reader_belongs_to_its_site_alone():
    first, again = profiles(3), profiles(3)
    assert np.array_equal(first, again)
    assert len({row.tobytes() for row in first}) == 3
    other = reader_profile(READ, data_seed=2, site=0)
    assert not np.array_equal(first[0], other)
    # the rows of site 1 stay what they are when other sites come, go or change their images
    labels = (np.random.default_rng(0).random((600, 3)) < 0.4).astype(np.float32)
    keywords = {"noise_type": "reader", "rate": 0.8, "classes": READ}
    few = (np.arange(600) % 2).astype(np.int32)
    many = np.where(few == 1, 1, np.arange(600) % 40 + 2).astype(np.int32)
    noisy = [noisy_labels(labels, client, **keywords)[few == 1] for client in (few, many)]
    assert same(*noisy)


def test_the_cells_of_a_site_flip_at_the_rates_of_its_reader():
    labels = (np.random.default_rng(0).random((60000, 3)) < 0.5).astype(np.float32)
    sites = np.repeat([4, 9], 30000).astype(np.int32)
    noisy = noisy_labels(labels, sites, noise_type="reader", rate=0.9, classes=READ)
    for k in (4, 9):
        omitted, added = reader_profile(READ, data_seed=1, site=k)
        for c in range(3):
            mine, positive = sites == k, labels[:, c] == 1
            assert (noisy[mine & positive, c] == 0).mean() == pytest.approx(
                0.9 * omitted[c], abs=0.015
            )
            assert (noisy[mine & ~positive, c] == 1).mean() == pytest.approx(
                0.9 * added[c], abs=0.015
            )


def test_every_count_of_reads_is_one():
    for shown, omitted, absent, reported in (*READS.values(), *MORE_READS.values()):
        assert 0 < omitted <= shown
        assert 0 < reported < absent
    for shown, _, absent, _ in READS.values():
        assert shown + absent == 2 * 810  # two readers of 810 radiographs


@pytest.mark.skipif(not SHARED_TABLE.exists(), reason="../shared is absent")
def test_the_shipped_counts_are_those_of_the_shared_table():
    with SHARED_TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            table = READS if row["source"] == "chest_xray_all_findings" else MORE_READS
            shown, omitted, absent, reported = table[row["finding"]]
            assert (shown, absent) == (
                int(row["reads_of_positive_cells"]),
                int(row["reads_of_negative_cells"]),
            )
            assert omitted / shown == pytest.approx(float(row["omission_rate"]), abs=6e-5)
            assert reported / absent == pytest.approx(float(row["commission_rate"]), abs=6e-5)


def test_flip_cells_takes_rates_by_row_and_class():
    training = all_rows(multi_label(500))
    omit = np.where(np.arange(500) < 250, 0.0, 1.0)[:, None] * np.array([1, 0, 1, 0, 1, 0])
    noisy = flip_cells(training, omit=omit, add=0)
    assert same(noisy[:250], training.labels[:250])
    assert not noisy[250:, ::2].any()
    assert same(noisy[250:, 1::2], training.labels[250:, 1::2])


# --- rates by client


def rates_of(kind: str, **changes: float) -> np.ndarray:
    keywords = {"clients": 6, "rate": 0.6, "lowest": 0.2, "noisy_share": 0.5, "data_seed": 1}
    return client_rates(kind, **(keywords | changes))


@given(
    kind=st.sampled_from(sorted(CLIENT_RATES)),
    clients=st.integers(1, 30),
    lowest=st.floats(0, 1),
    rate=st.floats(0, 1),
    more=st.floats(0, 1),
    noisy_share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_client_rates_are_in_range_and_grow_with_the_rate(
    kind, clients, lowest, rate, more, noisy_share, seed
):
    lowest, rate, more = sorted((lowest, rate, more))
    settings_ = {"clients": clients, "lowest": lowest, "noisy_share": noisy_share}
    low = rates_of(kind, rate=rate, data_seed=seed, **settings_)
    high = rates_of(kind, rate=more, data_seed=seed, **settings_)
    assert low.shape == (clients,)
    assert (low <= high + 1e-15).all()
    noisy = low > 0
    assert (low <= rate + 1e-15).all()
    if kind != "same":
        assert (low[noisy] >= lowest - 1e-15).all()


def test_the_same_rate_is_that_rate_to_the_bit():
    assert (rates_of("same", rate=0.3, lowest=0.9) == 0.3).all()
    for kind in CLIENT_RATES:
        assert (rates_of(kind, rate=0.0) == 0).all()


def test_linear_goes_from_the_lowest_to_the_rate():
    assert rates_of("linear", clients=5) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert rates_of("linear", clients=2, lowest=0) == pytest.approx([0, 0.6])
    assert rates_of("linear", clients=1, rate=1.0) == pytest.approx([1])


def test_uniform_and_bernoulli_have_their_distribution():
    uniform, bernoulli = (rates_of(kind, clients=20000) for kind in ("uniform", "bernoulli"))
    assert abs(uniform.mean() - 0.4) < 0.005
    assert abs(uniform.var() - 0.4**2 / 12) < 0.001
    assert abs((bernoulli > 0).mean() - 0.5) < 0.02
    noisy = bernoulli[bernoulli > 0]
    assert abs(noisy.mean() - 0.4) < 0.005
    assert (rates_of("bernoulli", noisy_share=1.0) == rates_of("uniform")).all()
    assert not rates_of("bernoulli", noisy_share=0.0).any()


def test_more_clients_keep_the_rates_of_the_first():
    for kind in ("uniform", "bernoulli"):
        assert (rates_of(kind, clients=9)[:6] == rates_of(kind)).all()
        assert (rates_of(kind, data_seed=2) != rates_of(kind)).any()


def test_no_noisy_client_is_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="fednml"):
        assert 0 < (rates_of("bernoulli") > 0).sum() < 6
        assert not caplog.text
        rates_of("bernoulli", noisy_share=0.0)
    assert "no client is noisy" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "unifrom"}, "did you mean 'uniform'"),
        ({"lowest": 0.7}, r"--noise-low 0\.7 .* --noise 0\.6"),
        ({"lowest": math.nan}, "--noise-low nan"),
        ({"rate": 1.2}, r"--noise 1\.2"),
        ({"noisy_share": -0.1}, r"--noisy-share -0\.1"),
        ({"noisy_share": 1.5}, r"--noisy-share 1\.5"),
    ],
)
def test_impossible_client_rates_are_named(changes, message):
    kind = changes.pop("kind", "uniform")
    with pytest.raises(UserError, match=message):
        rates_of(kind, **changes)


def test_balance_is_positives_a_negative_and_at_most_one():
    """Columns of no positive, as many as negatives, one negative, no negative, and blanks."""
    labels = np.array(
        [[0, 1, 1, 1, 1], [0, 1, 1, 1, np.nan], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]], np.float32
    )
    labels[:2, 2] = [1, np.nan]  # one positive beside one negative is left
    labels[2, 2] = np.nan
    assert balance(all_rows(labels)).tolist() == [0, 1, 1, 1, 0.5]


def test_the_only_positive_of_a_class_moves_as_often_as_others():
    """Its rank among itself is luck alone."""
    labels = np.zeros((3, 2), np.float32)
    labels[1, 0] = 1
    moved = [
        add_noise(labels, zeros(3), rate=0.4, noise_type="instance", data_seed=seed)[1, 0] == 0
        for seed in range(400)
    ]
    assert abs(np.mean(moved) - 0.4) < 0.13  # five standard errors
