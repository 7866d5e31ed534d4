"""Noise: the published definition, realised rates, coupling, blanks, no dependence on order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils_.errors import UserError
from utils_.noise import NOISE_TYPES, TrainingLabels, add_noise, flip
from utils_.noise.paper import _draw_classes, paper_affinity, select
from utils_.rng import derive

REAL_TYPES = sorted(set(NOISE_TYPES) - {"none"})


def noisy_labels(labels: np.ndarray, client: np.ndarray, **changes: object) -> np.ndarray:
    return add_noise(
        labels, client, **{"rate": 0.4, "noise_type": "paper", "data_seed": 1} | changes
    )


def multi_label(images: int, classes: int = 6, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    prevalence = np.linspace(0.3, 0.05, classes)
    return (rng.random((images, classes)) < prevalence).astype(np.float32)


def one_hot(images: int, classes: int = 5) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.random.default_rng(1).integers(0, classes, images)]


def all_rows(labels: np.ndarray, clients: int = 3, *, data_seed: int = 1) -> TrainingLabels:
    rows = np.arange(len(labels))
    return TrainingLabels(labels, (rows % clients).astype(np.int32), rows, len(labels), data_seed)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=True)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels with any mixture of 0, 1 and blank, and clients with rows outside train."""
    images, classes = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixture = draw(st.sampled_from([(0.7, 0.3, 0), (0.4, 0.3, 0.3), (1, 0, 0), (0, 1, 0)]))
    labels = rng.choice([0, 1, np.nan], (images, classes), p=mixture).astype(np.float32)
    labels[rng.random(images) < draw(st.sampled_from([0, 0.3]))] = np.nan
    return labels, rng.integers(-1, draw(st.integers(1, 5)), images).astype(np.int32)


rates = st.one_of(st.sampled_from([0.0, 0.4, 1.0]), st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(case=cases(), noise_type=st.sampled_from(sorted(NOISE_TYPES)), rate=rates, more=rates)
def test_coupled_and_blind_to_blanks_other_parts_and_client_numbers(case, noise_type, rate, more):
    labels, client = case
    rate, more = sorted((rate, more))
    keywords = {"noise_type": noise_type, "data_seed": 3}
    less_noisy = add_noise(labels, client, rate=rate, **keywords)
    noisy = add_noise(labels, client, rate=more, **keywords)
    assert noisy.dtype == np.float32
    assert (np.isnan(noisy) == np.isnan(labels)).all()
    assert np.isin(noisy[~np.isnan(noisy)], (0, 1)).all()
    assert same(noisy[client < 0], labels[client < 0])
    # a higher rate only adds: what the lower rate changed is changed, and to the same value
    changed = ~np.isnan(labels) & (less_noisy != labels)
    assert (noisy[changed] == less_noisy[changed]).all()
    if noise_type == "reader":  # whose readers are the sites'
        return
    # numbering the clients backwards changes nothing
    backwards = np.where(client < 0, client, client.max() - client)
    assert same(add_noise(labels, backwards, rate=more, **keywords), noisy)


@pytest.mark.parametrize("noise_type", sorted(NOISE_TYPES))
def test_rate_zero_changes_nothing(noise_type):
    training = all_rows(multi_label(200))
    assert same(NOISE_TYPES[noise_type](training, 0.0), training.labels)
    client = np.zeros(200, np.int32)
    labels = training.labels
    assert same(noisy_labels(labels, client, rate=0.0, noise_type=noise_type), labels)
    assert same(noisy_labels(labels, client, rate=0.9, noise_type="none"), labels)


@pytest.mark.parametrize("noise_type", REAL_TYPES)
def test_input_is_left_alone_and_seeds_decide(noise_type):
    labels, client = multi_label(300), np.zeros(300, np.int32)
    before = labels.copy()
    first = noisy_labels(labels, client, noise_type=noise_type)
    assert same(labels, before)
    assert same(noisy_labels(labels, client, noise_type=noise_type), first)
    assert not same(noisy_labels(labels, client, noise_type=noise_type, data_seed=2), first)


@pytest.mark.parametrize("noise_type", ["symmetric", "flip"])
def test_cell_noise_does_not_depend_on_how_images_are_dealt(noise_type):
    labels = multi_label(300)
    one, many = np.zeros(300, np.int32), (np.arange(300) % 7).astype(np.int32)
    assert same(
        noisy_labels(labels, one, noise_type=noise_type),
        noisy_labels(labels, many, noise_type=noise_type),
    )


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rates_out_of_range_are_named(rate):
    with pytest.raises(UserError, match=f"--noise {rate}"):
        noisy_labels(multi_label(5), np.zeros(5, np.int32), rate=rate)


def test_unknown_type_gets_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'symmetric'"):
        noisy_labels(multi_label(5), np.zeros(5, np.int32), noise_type="symetric")


# --- paper (docs/methods.md 14.6)


def plain_paper_s(s: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Step 1 of 14.6 for given Dirichlet draws, an image at a time."""
    frequency = labels.mean(axis=0) / labels.mean(axis=0).sum()
    result = []
    for draw, row in zip(s, labels, strict=True):
        draw = draw.copy()
        for c in np.flatnonzero(row):
            draw[c] += 0.5 / row.sum()
        result.append(0.7 * draw / draw.sum() + 0.3 * frequency)
    return result


def plain_p_t(s: np.ndarray, row: np.ndarray) -> float:
    return float(s[row == 1].mean() if row.any() else s.mean())


def published_paper_noise(
    labels: np.ndarray, client: np.ndarray, rate: float, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """14.6 as published, with Generator.choice; returns noisy labels and the selected rows."""
    classes = labels.shape[1]
    s = plain_paper_s(rng.dirichlet(np.full(classes, 0.1), len(labels)), labels)
    most = max(2, min(int(labels.sum(axis=1).max()), classes))
    noisy, selected = labels.copy(), np.zeros(len(labels), bool)
    for k in np.unique(client):
        rows = np.flatnonzero(client == k)
        weight = np.array([1 - plain_p_t(s[j], labels[j]) for j in rows])
        size = math.floor(rate * len(rows))
        for j in rng.choice(rows, size, replace=False, p=weight / weight.sum()):
            chance = np.where(labels[j] == 1, 0.2, 1) * s[j]
            m = rng.integers(1, most)
            drawn = rng.choice(classes, m, replace=False, p=chance / chance.sum())
            noisy[j] = np.isin(np.arange(classes), drawn)
            selected[j] = True
    return noisy, selected


def our_selection(training: TrainingLabels, rate: float) -> np.ndarray:
    """(n,) bool: the rows that paper noise replaces."""
    positive = training.positive.any(axis=1)
    s = paper_affinity(training)
    p_t = np.array([plain_p_t(s[j], training.labels[j]) for j in range(len(positive))])
    key = training.draw("paper/select", lambda rng: rng.standard_exponential(training.images))
    chosen = np.zeros(len(positive), bool)
    chosen[select(training, key=key, weight=1 - p_t, rate=rate)] = True
    return chosen


def test_paper_equals_a_plain_loop_on_the_same_random_numbers():
    labels, seed, rate, classes = multi_label(120), 7, 0.4, 6
    client = (np.arange(120) % 3).astype(np.int32)

    def stream(name: str) -> np.random.Generator:
        return derive(seed, "noise", name)

    s = plain_paper_s(stream("paper/s").dirichlet(np.full(classes, 0.1), 120), labels)
    clock = stream("paper/select").standard_exponential(120)
    uniform, gumbel = (
        stream("paper/size").random(120),
        stream("paper/classes").gumbel(size=(120, 6)),
    )
    most = max(2, min(int(labels.sum(axis=1).max()), classes)) - 1
    expected = labels.copy()
    for k in range(3):
        rows = [j for j in range(120) if client[j] == k]
        rows.sort(key=lambda j: clock[j] / (1 - plain_p_t(s[j], labels[j])))
        for j in rows[: math.floor(rate * len(rows))]:
            chance = s[j] * np.where(labels[j] == 1, 0.2, 1)
            ranked = sorted(range(classes), key=lambda c: -(math.log(chance[c]) + gumbel[j, c]))
            expected[j] = 0
            expected[j, ranked[: 1 + int(uniform[j] * most)]] = 1
    assert same(noisy_labels(labels, client, rate=rate, data_seed=seed), expected)


def test_paper_has_the_published_distribution():
    """Against 14.6 drawn with NumPy's own choice: who is selected, how many and which classes."""
    labels = multi_label(900)
    client = (np.arange(900) % 3).astype(np.int32)
    ours, published = [], []
    for seed in range(25):
        training = TrainingLabels(labels, client, np.arange(900), 900, seed)
        noisy = noisy_labels(labels, client, data_seed=seed)
        ours.append((noisy, our_selection(training, 0.4)))
        published.append(published_paper_noise(labels, client, 0.4, rng=derive(seed, "plain")))
    statistics = [
        np.array([describe(labels, *draw) for draw in draws]) for draws in (ours, published)
    ]
    mean, other = (table.mean(axis=0) for table in statistics)
    error = np.sqrt(sum(table.var(axis=0, ddof=1) / len(table) for table in statistics))
    assert (np.abs(mean - other) <= 4.5 * error + 1e-12).all(), np.round((mean - other) / error, 1)


def describe(labels: np.ndarray, noisy: np.ndarray, selected: np.ndarray) -> np.ndarray:
    positives = labels.sum(axis=1)
    new, old = noisy[selected], labels[selected]
    return np.concatenate(
        [
            [selected[positives == p].mean() for p in range(4)],  # who is selected
            [(new.sum(axis=1) == m).mean() for m in range(1, 5)],  # how many classes
            new.mean(axis=0),  # which classes
            [new[old == 1].mean(), (new == old).all(axis=1).mean()],  # what survives
            new[old[:, 0] == 1].mean(axis=0),
        ]
    )


@pytest.mark.parametrize("rate", [0.2, 0.29, 0.4, 0.6, 1.0])
def test_paper_corrupts_exactly_the_floor_of_each_client(rate):
    labels = multi_label(350)
    training = all_rows(labels, clients=3)
    selected, noisy = our_selection(training, rate), NOISE_TYPES["paper"](training, rate)
    most = max(2, int(labels.sum(axis=1).max())) - 1
    for k in range(3):
        size = int((training.client == k).sum())
        assert selected[training.client == k].sum() == math.floor(round(rate * size, 6))
    assert same(noisy[~selected], labels[~selected])
    assert set(noisy[selected].sum(axis=1)) <= set(range(1, most + 1))
    changed = (noisy != labels).any(axis=1)
    assert changed[selected & ~labels.any(axis=1)].all()  # a normal image always becomes diseased
    assert 0.85 * selected.sum() < changed.sum() <= selected.sum()


def test_floor_is_not_spoilt_by_floating_point():
    assert our_selection(all_rows(multi_label(100), clients=1), 0.29).sum() == 29


def test_paper_keeps_one_hot_rows_one_hot():
    labels = one_hot(500)
    noisy = NOISE_TYPES["paper"](all_rows(labels), 0.5)
    assert (noisy.sum(axis=1) == 1).all()
    assert 0.3 < (noisy != labels).any(axis=1).mean() <= 0.5


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((20, 4)),  # no positive: h is uniform
        np.ones((20, 4)),
        np.ones((20, 1)),  # a single class takes all of s: weight 0
        np.eye(4)[np.zeros(20, int)],  # one class only: h is one-hot
    ],
)
def test_paper_survives_what_stops_the_published_code(labels):
    labels = labels.astype(np.float32)
    noisy = NOISE_TYPES["paper"](all_rows(labels, clients=1), 0.5)
    assert (noisy != labels).any(axis=1).sum() <= 10
    assert (noisy.sum(axis=1) >= 1).sum() >= 10


@pytest.mark.filterwarnings("error")
def test_paper_draws_at_random_where_every_weight_is_zero():
    """With one class p_t is 1 for every image."""
    changed = NOISE_TYPES["paper"](all_rows(np.zeros((400, 1), np.float32), clients=1), 0.5) == 1
    assert changed.sum() == 200
    assert 60 < changed[:200].sum() < 140


def test_paper_draws_among_known_classes_and_counts_labelled_images():
    labels = multi_label(400)
    labels[:, 1:4] = np.nan
    labels[:100] = np.nan
    training = all_rows(labels, clients=2)
    noisy = NOISE_TYPES["paper"](training, 1.0)
    assert (noisy[100:] == 1).any(axis=1).all()
    client = training.client
    changed = (np.isfinite(labels) & (noisy != labels)).any(axis=1)
    half = add_noise(labels, client, rate=0.5, noise_type="paper", data_seed=1)
    half_changed = (np.isfinite(labels) & (half != labels)).any(axis=1)
    assert not changed[:100].any()
    for k in range(2):
        assert half_changed[client == k].sum() <= 75  # of 150 with a label


# --- symmetric


def test_symmetric_on_one_hot_rows_is_uniform_over_the_other_classes():
    labels = one_hot(20000)
    noisy = noisy_labels(labels, np.zeros(20000, np.int32), noise_type="symmetric")
    assert (noisy.sum(axis=1) == 1).all()
    old, new = labels.argmax(axis=1), noisy.argmax(axis=1)
    transition = np.array([np.bincount(new[old == c], minlength=5) for c in range(5)]) / 4000
    expected = np.where(np.eye(5) == 1, 0.6, 0.1)
    assert np.abs(transition - expected).max() < 0.04


def test_symmetric_moves_each_positive_with_the_rate_and_keeps_their_number():
    labels = multi_label(20000, 8)
    noisy = noisy_labels(labels, np.zeros(20000, np.int32), noise_type="symmetric")
    assert (noisy.sum(axis=1) == labels.sum(axis=1)).all()
    movable = labels.sum(axis=1) <= 4  # every positive has a negative to move to
    lost = (labels[movable] == 1) & (noisy[movable] == 0)
    assert abs(lost.sum() / labels[movable].sum() - 0.4) < 0.015


def test_symmetric_leaves_rows_without_choice():
    labels = np.array([[0, 0, 0], [1, 1, 1], [1, np.nan, 1]], np.float32)
    noisy = noisy_labels(labels, np.zeros(3, np.int32), noise_type="symmetric", rate=1.0)
    assert same(noisy, labels)
    tight = np.array([[1, 1, 0]], np.float32)
    moved = noisy_labels(tight, np.zeros(1, np.int32), noise_type="symmetric", rate=1.0)
    assert moved.sum() == 2
    assert moved[0, 2] == 1


# --- flip


def test_flip_omits_with_the_rate_and_adds_as_many_as_it_drops():
    labels = multi_label(40000)
    noisy = noisy_labels(labels, np.zeros(40000, np.int32), noise_type="flip")
    omitted = ((labels == 1) & (noisy == 0)).sum(axis=0)
    added = ((labels == 0) & (noisy == 1)).sum(axis=0)
    positives = labels.sum(axis=0)
    assert np.abs(omitted / positives - 0.4).max() < 0.04
    assert (np.abs(added - omitted) < 5 * np.sqrt(0.8 * positives)).all()


def test_flip_never_exceeds_the_rate_where_a_class_is_common():
    labels = (np.random.default_rng(0).random((20000, 2)) < 0.9).astype(np.float32)
    noisy = noisy_labels(labels, np.zeros(20000, np.int32), noise_type="flip", rate=0.3)
    for value in (0, 1):
        assert abs((noisy[labels == value] != value).mean() - 0.3) < 0.03


def test_flip_takes_separate_rates():
    training = all_rows(multi_label(5000))
    noisy = flip(training, 0.0, false_positive=np.array([1, 0, 0, 0, 0, 0.5]))
    assert (noisy[:, 0] == 1).all()
    assert same(noisy[:, 1:5], training.labels[:, 1:5])
    added = noisy[training.labels[:, 5] == 0, 5]
    assert abs(added.mean() - 0.5) < 0.04
    omitted = flip(training, 1.0, false_positive=0.0)
    assert not omitted.any()


@pytest.mark.parametrize("noise_type", sorted(NOISE_TYPES))
def test_without_a_training_row_nothing_changes(noise_type: str) -> None:
    labels = multi_label(5)
    assert same(noisy_labels(labels, np.full(5, -1), noise_type=noise_type), labels)


@pytest.mark.parametrize(
    ("noise_type", "rate", "told"),
    [
        *(("flip", 0.9, False), ("flip", 1e-9, True), ("flip", 0.0, False), ("none", 1.0, False)),
        ("symmetric", np.array([0, 1e-9]), True),
    ],
)
def test_noise_that_changes_no_label_is_reported(noise_type, rate, told, caplog) -> None:
    """Blanks are no change; a rate of 0 and no noise are what was asked for."""
    labels = multi_label(40)
    labels[:, 1] = np.nan
    client = np.arange(40) % 2
    with caplog.at_level("WARNING", logger="fednml"):
        noisy_labels(labels, client, noise_type=noise_type, rate=rate)
    assert ("changes no label" in caplog.text) == told


def test_without_a_positive_anywhere_all_classes_are_as_likely() -> None:
    training = all_rows(np.zeros((30, 5), np.float32))
    drawn = training.draw("paper/s", lambda rng: rng.dirichlet(np.full(5, 0.1), 30))
    np.testing.assert_allclose(paper_affinity(training), 0.7 * drawn + 0.3 / 5)


def test_frequencies_are_those_among_known_cells() -> None:
    """Of a class that is known in one image too: its share is 1, that of the other 1 / 4."""
    labels = np.array([[np.nan, 1], [1, 0], [np.nan, 0], [np.nan, 0]], np.float32)
    training = all_rows(labels)
    s = training.draw("paper/s", lambda rng: rng.dirichlet(np.full(2, 0.1), 4))
    s = s + 0.5 * (labels == 1)
    s /= s.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(paper_affinity(training), 0.7 * s + 0.3 * np.array([0.8, 0.2]))


@pytest.mark.filterwarnings("error")
def test_no_more_classes_are_drawn_than_there_is_a_chance_for() -> None:
    chance = np.array([[0.5, 0, 0], [0.2, 0.3, 0.5], [0, 0, 0]])
    drawn = _draw_classes(chance, np.array([2, 2, 2]), np.zeros((3, 3)))
    assert drawn.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
