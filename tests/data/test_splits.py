"""Splits: nothing lost, nothing twice, groups whole, labels without influence, no hang."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config
from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL
from utils_.errors import UserError
from utils_.rng import derive
from utils_.splits import (
    MIN_IMAGES,
    SPLITS,
    Deal,
    TrainingGroups,
    assign_clients,
    cut_parts,
)
from utils_.splits.base import dirichlet_shares, primary_class
from utils_.splits.skewed import _which_classes


def random_labels(images: int, classes: int, *, seed: int = 0, rate: float = 0.2) -> np.ndarray:
    return (np.random.default_rng(seed).random((images, classes)) < rate).astype(np.float32)


def cut(part: np.ndarray, groups: np.ndarray | None = None, **changes: float) -> np.ndarray:
    return cut_parts(
        part, groups, **{"val_share": 0.1, "test_share": 0.2, "data_seed": 1} | changes
    )


def assign(
    part: np.ndarray, groups: object, labels: np.ndarray, sites: object, **given: object
) -> np.ndarray:
    """With the defaults of the main job."""
    split = given.pop("split")
    dealt = replace(Config(), **given).part(Deal)
    return assign_clients(part, groups, labels, sites, split=split, deal=dealt)


def deal(labels: np.ndarray, **changes: object) -> np.ndarray:
    """Clients of images that are all in train."""
    keywords = {"split": "iid", "clients": 4, "alpha": 0.5, "data_seed": 1, "groups": None}
    keywords |= {"sites": None} | changes
    part = np.full(len(labels), TRAIN, np.uint8)
    groups, sites = keywords.pop("groups"), keywords.pop("sites")
    return assign(part, groups, labels, sites, **keywords)


def unassigned(images: int) -> np.ndarray:
    return np.full(images, UNASSIGNED, np.uint8)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, np.ndarray | None]:
    """Small odd datasets: parts fixed or not, patients, sites, blanks, any labels."""
    images, classes = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.choice([0, 1, np.nan], (images, classes), p=draw(mixtures)).astype(np.float32)
    groups = rng.integers(0, draw(st.integers(1, images)), images) if draw(st.booleans()) else None
    part = rng.choice([TRAIN, VAL, TEST, UNASSIGNED], images, p=draw(part_mixtures))
    if groups is not None:  # the files themselves do not split a patient
        part = part[np.unique(groups, return_index=True)[1]][
            np.unique(groups, return_inverse=True)[1].reshape(-1)
        ]
    sites = np.array(["b", "a", "c"])[rng.integers(0, 3, images)] if draw(st.booleans()) else None
    return {"part": part.astype(np.uint8), "groups": groups, "labels": labels, "sites": sites}


mixtures = st.sampled_from([(0.8, 0.2, 0), (0.5, 0.2, 0.3), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
part_mixtures = st.sampled_from([(0, 0, 0, 1), (0.8, 0, 0.2, 0), (0.3, 0.2, 0.2, 0.3)])


@settings(max_examples=300, deadline=None)
@given(
    table=tables(),
    split=st.sampled_from(sorted(SPLITS)),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([1e-300, 0.01, 0.5, 100.0, 1e300]),
    val_share=st.sampled_from([0, 0.1, 0.5, 0.99]),
    test_share=st.sampled_from([0, 0.2, 0.99]),
    seed=st.integers(0, 99),
    shards=st.integers(1, 5),
    phi=st.sampled_from([0, 0.01, 0.5, 1]),
)
def test_any_split_is_a_partition_with_whole_groups_or_a_user_error(
    table, split, clients, alpha, val_share, test_share, seed, shards, phi
):
    part, groups = table["part"], table["groups"]
    try:
        cut_part = cut_parts(
            part, groups, val_share=val_share, test_share=test_share, data_seed=seed
        )
        client = assign(
            cut_part,
            groups,
            table["labels"],
            table["sites"],
            split=split,
            clients=clients,
            alpha=alpha,
            shards=shards,
            phi=phi,
            data_seed=seed,
        )
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert np.isin(cut_part, (TRAIN, VAL, TEST)).all()
    assert (cut_part[np.isin(part, (VAL, TEST))] == part[np.isin(part, (VAL, TEST))]).all()
    assert (cut_part[part == TRAIN] != TEST).all()
    assert ((client >= 0) == (cut_part == TRAIN)).all()
    assert set(client[client >= 0]) == set(range(clients))
    if groups is not None:
        for group in np.unique(groups):
            inside = groups == group
            assert len(set(cut_part[inside])) == 1
            assert len(set(client[inside])) == 1


@settings(max_examples=100, deadline=None)
@given(table=tables(), clients=st.integers(1, 12))
def test_iid_sizes_differ_by_at_most_one_group(table, clients):
    labels, groups = table["labels"], table["groups"]
    sizes = (
        np.ones(len(labels), int) if groups is None else np.unique(groups, return_counts=True)[1]
    )
    if clients > len(sizes):
        with pytest.raises(UserError, match=f"--clients {len(sizes)} or fewer"):
            deal(labels, groups=groups, clients=clients)
        return
    loads = np.bincount(deal(labels, groups=groups, clients=clients), minlength=clients)
    assert loads.sum() == len(labels)
    assert loads.max() - loads.min() <= sizes.max()


def test_iid_evens_out_large_groups_with_single_images():
    groups = np.concatenate([np.repeat([0, 1, 2], [30, 20, 10]), 3 + np.arange(140)])
    loads = np.bincount(deal(np.zeros((200, 1)), groups=groups[::-1], clients=4))
    assert loads.tolist() == [50, 50, 50, 50]


def test_iid_golden_value():
    """The saved splits of users depend on it: raise scenario.FORMAT when this changes."""
    assert deal(np.zeros((10, 1)), clients=3).tolist() == [2, 0, 2, 0, 1, 1, 0, 2, 0, 1]


def test_iid_gives_every_image_the_same_chance_at_every_client():
    counts = np.zeros((8, 4))
    for seed in range(2000):
        counts[np.arange(8), deal(np.zeros((8, 1)), data_seed=seed)] += 1
    assert np.abs(counts / 2000 - 0.25).max() < 0.05  # five standard errors


def test_parts_iid_quantity_and_site_do_not_read_labels():
    rng = np.random.default_rng(5)
    labels, groups = random_labels(300, 6), rng.integers(0, 120, 300)
    sites = np.array(["x", "y", "z"])[groups % 3]
    part = cut(unassigned(300), groups)
    others = [rng.permutation(labels), 1 - labels, np.full_like(labels, np.nan)]
    for split, clients in (("iid", 5), ("quantity", 5), ("site", 3)):
        keywords = {"split": split, "clients": clients, "alpha": 0.5, "data_seed": 1}
        first = assign(part, groups, labels, sites, **keywords)
        for other in others:
            assert (assign(part, groups, other, sites, **keywords) == first).all()


def test_seeds_and_nothing_else_change_the_draw():
    labels = random_labels(200, 5)
    for split in sorted(set(SPLITS) - {"site"}):
        assert (deal(labels, split=split) == deal(labels, split=split)).all()
        assert (deal(labels, split=split) != deal(labels, split=split, data_seed=2)).any()
    assert (cut(unassigned(200)) != cut(unassigned(200), data_seed=2)).any()


@pytest.mark.parametrize(("test_share", "val_share"), [(0.2, 0.1), (0.5, 0.5), (0.01, 0)])
def test_shares_count_images(test_share, val_share):
    part = cut(unassigned(1000), test_share=test_share, val_share=val_share)
    test = round(1000 * test_share)
    assert (part == TEST).sum() == test
    assert (part == VAL).sum() == round((1000 - test) * val_share)


def test_shares_are_met_within_half_a_group():
    groups = np.repeat(np.arange(100), np.random.default_rng(0).integers(1, 8, 100))
    part = cut(unassigned(len(groups)), groups)
    test = (part == TEST).sum()
    assert abs(test - 0.2 * len(groups)) <= 3.5
    assert abs((part == VAL).sum() - 0.1 * (len(groups) - test)) <= 3.5


def test_parts_fixed_by_the_files_stay():
    fixed = np.repeat([TRAIN, VAL, TEST], [50, 20, 30]).astype(np.uint8)
    assert (cut(fixed) == fixed).all()
    without_val = np.repeat([TRAIN, TEST], [60, 40]).astype(np.uint8)
    part = cut(without_val)
    assert (part[60:] == TEST).all()
    assert (part[:60] == VAL).sum() == 6
    assert (cut(without_val, val_share=0) == without_val).all()


def test_unassigned_images_join_the_fixed_part_of_their_patient():
    part = np.array([TRAIN, UNASSIGNED, TEST, UNASSIGNED, VAL, UNASSIGNED, UNASSIGNED], np.uint8)
    groups = np.array([7, 7, 3, 3, 1, 1, 9])
    assert cut(part, groups).tolist() == [TRAIN, TRAIN, TEST, TEST, VAL, VAL, TRAIN]


def test_patients_that_the_files_spread_are_reported_and_not_spread_further(caplog):
    part = np.array([TRAIN, UNASSIGNED, TEST] + [TRAIN] * 20, np.uint8)
    groups = np.array([0, 0, 0, *range(1, 21)])
    for seed in range(20):
        with caplog.at_level(logging.WARNING, logger="fednml"):
            cut_part = cut(part, groups, val_share=0.9, data_seed=seed)
        assert cut_part[:3].tolist() == [TRAIN, TEST, TEST]
    assert "images of 1 patients or lesions" in caplog.text


@pytest.mark.parametrize(
    ("option", "groups", "said"),
    [
        ("test", [0], "--test-share 0.2 cannot be cut: there is 1 image; add images"),
        ("val", [0], "there is 1 image; add images or use --val-share 0"),
        ("test", [4, 4], "the 2 images are of one patient, or of such as are in other parts too; "),
        ("val", [4, 4], "too; check the ids of the patients or use --val-share 0"),
    ],
)
def test_why_nothing_can_be_cut_is_told(option, groups, said):
    """Only a test part cannot be done without."""
    shares = {"val_share": 0, "test_share": 0} | {f"{option}_share": 0.2}
    with pytest.raises(UserError) as caught:
        cut(unassigned(len(groups)), np.array(groups), **shares)
    assert said in str(caught.value)
    assert ("or use" in str(caught.value)) == (option == "val")


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({"val_share": 1.0}, 10, "--val-share 1.0"),
        ({"val_share": float("nan")}, 10, "--val-share nan"),
        ({"test_share": -0.1}, 10, "--test-share -0.1"),
        ({"test_share": 0.2}, 1, "--test-share 0.2 cannot be cut"),
        ({"test_share": 0, "val_share": 0.2}, 1, "--val-share 0.2 cannot be cut"),
    ],
)
def test_shares_that_cannot_be_are_named(changes, images, message):
    with pytest.raises(UserError, match=message):
        cut(unassigned(images), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dirichlett"}, "did you mean 'dirichlet'"),
        ({"clients": 0}, "--clients 0"),
        ({"clients": 41}, "use --clients 40 or fewer"),
        ({"split": "dirichlet", "alpha": 0}, "--alpha 0"),
        ({"split": "dirichlet", "alpha": float("nan")}, "--alpha nan"),
        ({"split": "dirichlet", "alpha": float("inf")}, "--alpha inf"),
        ({"split": "quantity", "alpha": -1}, "--alpha -1"),
        ({"split": "phi", "alpha": 0}, "--alpha 0"),
        ({"split": "phi", "phi": 1.5}, "--phi 1.5"),
        ({"split": "phi", "phi": float("nan")}, "--phi nan"),
        ({"split": "shards", "shards": 0}, "--shards 0"),
        ({"split": "shards", "shards": 11}, "need 44 images or patients, and 40.*--shards 10"),
        ({"split": "site"}, "--split site needs sites"),
        ({"split": "site", "sites": np.array(["a", "b"] * 20)}, r"2 \(a, b\), not 4; use --cl"),
    ],
)
def test_impossible_splits_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        deal(random_labels(40, 3), **changes)


@pytest.mark.parametrize(
    ("groups", "clients", "said"),
    [
        (None, 7, "the 6 images left for training; use --clients 6"),
        ([0, 0, 1, 1, 2, 2], 6, "the 3 patients or lesions (of 6 images) left for training; check"),
        ([0, 0, 1, 1, 2, 2], 7, "the 3 patients or lesions (of 6 images) left for training; check"),
    ],
)
def test_too_many_clients_are_told_what_there_is(groups, clients, said):
    groups = None if groups is None else np.array(groups)
    with pytest.raises(UserError) as caught:
        deal(np.zeros((6, 1)), groups=groups, clients=clients)
    assert said in str(caught.value)


def test_who_holds_no_image_of_train_is_minus_one():
    part = np.array([TRAIN, TEST, VAL, TRAIN], np.uint8)
    client = assign(part, None, np.zeros((4, 1)), None, split="iid", clients=1, data_seed=1)
    assert client.tolist() == [0, -1, -1, 0]
    assert client.dtype == np.int32


def test_no_training_image_left():
    part = np.full(5, TEST, np.uint8)
    with pytest.raises(UserError, match="no training image"):
        assign(part, None, np.zeros((5, 2)), None, split="iid", clients=1, alpha=1, data_seed=1)


def test_sites_are_clients_in_alphabetical_order():
    sites = np.array(["rome", "bonn", "rome", "lyon"])
    client = deal(np.zeros((4, 2)), split="site", clients=3, sites=sites)
    assert client.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize(
    ("third", "told"), [("a", "1 patients or lesions with several"), ("b", "")]
)
def test_a_patient_at_two_sites_goes_where_most_images_are(third, told, caplog):
    sites = np.array([third, "b", "b", "a", "a", "b", "b"])
    groups = np.array([0, 0, 0, 1, 1, 2, 2])
    with caplog.at_level(logging.WARNING, logger="fednml"):
        client = deal(np.zeros((7, 2)), split="site", clients=2, sites=sites, groups=groups)
    assert client.tolist() == [1, 1, 1, 0, 0, 1, 1]
    assert told in caplog.text and bool(told) == bool(caplog.text)


@pytest.mark.parametrize("classes", [6, 40])
def test_primary_class_is_the_rarest_positive_of_the_group(classes):
    """Against a plain loop over groups and classes; of equally rare ones the first."""
    labels = random_labels(200, classes, seed=3, rate=1.2 / classes)
    labels[::7, 2] = np.nan
    index = np.unique(np.random.default_rng(0).integers(0, 90, 200), return_inverse=True)[1]
    groups = TrainingGroups(index, np.bincount(index), labels, None)
    count = len(groups.sizes)
    every = range(classes)
    positive = [{c for c in every if (labels[index == g, c] == 1).any()} for g in range(count)]
    rarity = [sum(c in found for found in positive) for c in every]
    expected = [min(found, key=lambda c: (rarity[c], c), default=classes) for found in positive]
    assert primary_class(groups).tolist() == expected
    assert classes in expected


@pytest.mark.parametrize("alpha", [0.05, 1.0, 20.0])
def test_dirichlet_shares_have_the_moments_of_the_distribution(alpha):
    rng = derive(0, "test")
    shares = np.array([dirichlet_shares(4, alpha=alpha, rng=rng) for _ in range(6000)])
    variance = 3 / (16 * (4 * alpha + 1))
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.abs(shares.mean(axis=0) - 0.25).max() < 5 * np.sqrt(variance / 6000)
    assert np.abs(shares.var(axis=0) / variance - 1).max() < 0.12


def class_skew(labels: np.ndarray, client: np.ndarray) -> float:
    """Mean over classes of the largest share that one client holds of the positives."""
    counts = np.array([labels[client == k].sum(axis=0) for k in range(client.max() + 1)])
    return float((counts.max(axis=0) / counts.sum(axis=0)).mean())


def test_smaller_alpha_skews_the_classes_more():
    labels = random_labels(3000, 10, rate=0.08)
    skews = [
        np.mean(
            [
                class_skew(labels, deal(labels, split="dirichlet", alpha=alpha, data_seed=seed))
                for seed in range(5)
            ]
        )
        for alpha in (0.05, 0.5, 5.0, 1000.0)
    ]
    assert skews[0] > skews[1] + 0.05 > skews[2] + 0.1
    assert skews[3] < class_skew(labels, deal(labels)) + 0.05


def test_dirichlet_gives_nothing_more_to_a_full_client():
    """Before its last class a client holds fewer than n/K images (the rule of NIID-bench)."""
    labels = np.eye(10)[np.arange(2000) % 10]
    for seed in range(20):
        client = deal(labels, split="dirichlet", alpha=0.01, data_seed=seed)
        assert np.bincount(client).max() < 2000 / 4 + 200


def test_dirichlet_shuffles_within_a_class():
    """Neighbours in the file, often of one source, must not stay together."""
    client = deal(np.ones((1000, 1)), split="dirichlet", alpha=1000.0, clients=4)
    assert 0.6 < (client[1:] != client[:-1]).mean() < 0.9


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("clients", [1, 4, 50])
def test_dirichlet_leaves_no_client_nearly_empty(alpha, clients, grouped):
    labels = random_labels(1764, 20, rate=0.06)
    groups = np.arange(1764) // 2 if grouped else None
    client = deal(labels, split="dirichlet", alpha=alpha, clients=clients, groups=groups)
    enough = min(MIN_IMAGES, max(2, 1764 // clients // 10))
    assert np.bincount(client, minlength=clients).min() >= enough


@pytest.mark.parametrize("labels", [np.zeros((30, 3)), np.ones((30, 3)), np.full((30, 3), np.nan)])
def test_dirichlet_takes_labels_without_information(labels):
    client = deal(labels, split="dirichlet", alpha=0.01, clients=15)
    assert np.bincount(client, minlength=15).min() == 2


def test_dirichlet_with_as_many_clients_as_images_gives_one_each():
    client = deal(random_labels(25, 3), split="dirichlet", alpha=0.01, clients=25)
    assert sorted(client) == list(range(25))


# --- quantity, shards, phi


def test_quantity_skews_sizes_and_not_classes():
    labels = random_labels(4000, 3, rate=0.3)
    spreads, differences = [], []
    for alpha in (0.1, 1.0, 100.0):
        sizes, rates = [], []
        for seed in range(10):
            client = deal(labels, split="quantity", alpha=alpha, data_seed=seed)
            sizes.append(np.bincount(client, minlength=4))
            rates += [labels[client == k].mean(axis=0) for k in range(4) if sizes[-1][k] > 400]
        spreads.append(np.std(sizes))
        differences.append(np.abs(np.array(rates) - 0.3).max())
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 200 < 1000 < spreads[0]
    assert max(differences) < 0.12  # five standard errors of 400 images


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("split", ["quantity", "phi"])
@pytest.mark.parametrize("clients", [1, 4, 50])
def test_skewed_splits_leave_no_client_nearly_empty(clients, split, grouped):
    labels = random_labels(1764, 20, rate=0.06)
    groups = np.arange(1764) // 2 if grouped else None
    client = deal(labels, split=split, alpha=0.01, clients=clients, groups=groups, phi=0.1)
    enough = min(MIN_IMAGES, max(2, 1764 // clients // 10))
    assert np.bincount(client, minlength=clients).min() >= enough


@pytest.mark.parametrize("split", sorted(set(SPLITS) - {"site"}))
def test_hard_cases_end_in_a_valid_split(split):
    """One client; as many clients as images; more clients than positives; no positive at all."""
    few = np.zeros((25, 3))
    few[:2, 0] = 1
    for labels in (few, np.zeros((25, 3)), np.ones((25, 3)), np.full((25, 3), np.nan)):
        for clients in (1, 12, 25):
            keywords = {"alpha": 0.01, "phi": 0.0, "shards": 1}
            client = deal(labels, split=split, clients=clients, **keywords)
            assert set(client) == set(range(clients))


def test_shards_have_equal_size_and_few_classes():
    labels = np.eye(10)[np.random.default_rng(0).permutation(np.arange(2000) % 10)]
    client = deal(labels, split="shards", clients=20, shards=2)
    assert (np.bincount(client) == 100).all()
    held = np.array([labels[client == k].any(axis=0).sum() for k in range(20)])
    assert held.max() <= 2  # 40 shards of 50, 4 of each class of 200
    more = deal(labels, split="shards", clients=20, shards=5)
    assert np.mean([labels[more == k].any(axis=0).sum() for k in range(20)]) > held.mean() + 1


def test_shards_shuffle_within_a_class():
    client = deal(np.ones((1000, 1)), split="shards", clients=4, shards=1)
    assert 0.6 < (client[1:] != client[:-1]).mean() < 0.9


def test_phi_is_the_share_of_classes_that_a_client_has():
    labels = np.eye(10)[np.arange(20000) % 10]
    for phi in (0.3, 0.7, 1.0):
        shares = []
        for seed in range(10):
            client = deal(labels, split="phi", clients=10, phi=phi, alpha=100.0, data_seed=seed)
            shares += [labels[client == k].any(axis=0).mean() for k in range(10)]
        assert abs(np.mean(shares) - phi) < 5 * np.sqrt(phi * (1 - phi) / 1000) + 0.01


def test_phi_shares_follow_alpha():
    """At large alpha the clients that have a class share it evenly, at small alpha one takes it."""
    labels = np.eye(4)[np.arange(4000) % 4]
    even = deal(labels, split="phi", phi=1.0, alpha=1e4)
    counts = np.array([labels[even == k].sum(axis=0) for k in range(4)])
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250)
    skewed = [
        class_skew(labels, deal(labels, split="phi", phi=1.0, alpha=0.05, data_seed=s))
        for s in range(10)
    ]
    assert np.mean(skewed) > 0.8


def test_which_classes_leaves_no_client_and_no_class_out():
    for chance in (0.0, 0.01, 0.5):
        for seed in range(50):
            has = _which_classes(7, 5, chance=chance, rng=derive(seed, "test"))
            assert has.any(axis=0).all()
            assert has.any(axis=1).all()
    assert _which_classes(7, 5, chance=1.0, rng=derive(0, "test")).all()


@pytest.mark.parametrize(
    ("split", "expected"),
    [("quantity", "111001100022"), ("shards", "110202120102"), ("phi", "211121211100")],
)
def test_golden_values_of_skewed_splits(split, expected):
    """The saved splits of users depend on them: raise scenario.FORMAT when this changes."""
    labels = np.eye(2)[np.arange(12) % 2]
    assert "".join(map(str, deal(labels, split=split, clients=3))) == expected
