"""Two clusters are found, the right side is the noisy one, and no answer is invented."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils_.mixture import split_noisy
from utils_.rng import derive


def clusters(
    clean: int, noisy: int, *, seed: int = 0, spread: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Agreement and loss: clean images at (0.9, 0.2), noisy ones at (0.5, 1.0) behind them."""
    draw = derive(seed, "clusters")
    agreement = np.repeat([0.9, 0.5], [clean, noisy]) + draw.normal(0, spread, clean + noisy)
    loss = np.repeat([0.2, 1.0], [clean, noisy]) + draw.normal(0, spread, clean + noisy)
    return agreement, loss


@pytest.mark.parametrize(("clean", "noisy"), [(70, 30), (30, 70), (95, 5), (12, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_clear_clusters_are_told_apart_with_the_right_side(
    clean: int, noisy: int, seed: int
) -> None:
    split = split_noisy(*clusters(clean, noisy, seed=seed), seed=seed)
    assert split.separated
    assert split.reason == ""
    np.testing.assert_array_equal(split.noisy, np.repeat([False, True], [clean, noisy]))
    np.testing.assert_allclose(split.means, [[0.9, 0.2], [0.5, 1.0]], atol=0.06)
    assert split.probability.dtype == np.float32
    assert ((split.probability >= 0) & (split.probability <= 1)).all()


def test_scale_and_order_do_not_matter() -> None:
    agreement, loss = clusters(60, 40)
    plain = split_noisy(agreement, loss, seed=1)
    scaled = split_noisy(agreement, 1000 * loss, seed=1)
    np.testing.assert_array_equal(plain.noisy, scaled.noisy)
    order = derive(0, "order").permutation(100)
    shuffled = split_noisy(agreement[order], loss[order], seed=1)
    np.testing.assert_array_equal(plain.noisy[order], shuffled.noisy)


def assert_nothing(split, images: int, reason: str) -> None:
    assert not split.separated
    assert split.reason == reason
    assert split.probability.shape == (images,)
    assert not split.probability.any()
    assert not split.noisy.any()
    assert np.isnan(split.means).all()


@pytest.mark.parametrize("images", [0, 1, 2, 19])
def test_too_few_images_are_not_judged(images: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = split_noisy(*(a[:images] for a in clusters(10, 10)), seed=0)
    assert_nothing(split, images, "too few images")


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize(
    ("fill", "reason"), [(0.5, "no spread"), (np.nan, None), (np.inf, None), (-np.inf, None)]
)
def test_constant_or_broken_features_are_not_judged(
    column: int, fill: float, reason: str | None
) -> None:
    features = clusters(50, 50)
    if reason:
        features[column][:] = fill
    else:
        features[column][7] = fill
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = split_noisy(*features, seed=0)
    assert_nothing(split, 100, reason or "values not finite")


@pytest.mark.parametrize("images", [40, 200, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_contradicting_components_are_not_judged(images: int, seed: int) -> None:
    """Where higher agreement goes with a higher loss, neither side is the noisy one."""
    agreement, loss = clusters(images // 2, images // 2, seed=seed)
    assert_nothing(split_noisy(agreement, -loss, seed=seed), images, "components not apart")


@pytest.mark.parametrize("images", [50, 200, 1000])
def test_clean_unimodal_data_hold_nothing_noisy(images: int) -> None:
    """Agreement and loss of one bell: a mixture always finds two halves, the gap tells."""
    found = []
    for seed in range(10):
        draw = derive(seed, "bell")
        features = draw.normal([0.8, 0.3], [0.05, 0.1], (images, 2))
        found.append(split_noisy(*features.T, seed=seed).separated)
    assert not any(found)


def test_the_gap_is_the_parameter_that_decides() -> None:
    features = clusters(50, 50, spread=0.3)
    assert split_noisy(*features, seed=0, min_gap=0).separated
    assert not split_noisy(*features, seed=0, min_gap=2.1).separated  # beyond what a half can have


def test_the_number_of_images_is_a_parameter() -> None:
    features = clusters(6, 6)
    assert split_noisy(*features, seed=0, min_images=12).separated
    assert not split_noisy(*features, seed=0, min_images=13).separated


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**62))
def test_the_same_seed_gives_the_same_bits(seed: int) -> None:
    features = clusters(40, 25, spread=0.2)
    one, two = (split_noisy(*features, seed=seed) for _ in range(2))
    assert one.probability.tobytes() == two.probability.tobytes()
    assert one.means.tobytes() == two.means.tobytes()
