"""Which labels are suspect, how an order of them is judged, and predictions that saw no label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny

from src.cross_fitting import cross_fit, deal_folds, plain_settings
from src.simulation import build_model
from utils_.review import Review, cleanlab_scores, has_cleanlab, review_cells, review_images
from utils_.rng import derive, derive_seed
from utils_.suspects import (
    _calibrate,
    _loss,
    _ranks,
    doubt_images,
    doubt_labels,
    doubt_share,
    log_odds_of,
    mixture_share,
    second_look,
    share_of_strangers,
    weigh_labels,
)


def federation(*, images: int = 300, classes: int = 6, seed: int = 1) -> tuple[np.ndarray, ...]:
    """True labels, given ones (a fifth of the images have another's) and fair predictions."""
    draw = derive(seed, "suspects")
    true = (draw.random((images, classes)) < 0.3).astype(float)
    wrong = draw.random(images) < 0.2
    given = np.where(wrong[:, None], true[draw.permutation(images)], true)
    logits = 2.5 * (2 * true - 1) + draw.normal(0, 1.5, true.shape) - 1
    return true, given, 1 / (1 + np.exp(-logits))


def test_wrong_labels_come_first() -> None:
    true, given, probability = federation()
    doubt = doubt_labels(probability, given)
    wrong = given != true
    review = review_cells(doubt.suspicion, wrong, np.ones_like(wrong))
    assert review.precision(50) > 0.9 and review.gain() > 5
    plain = review_cells(np.abs(given - probability), wrong, np.ones_like(wrong))
    assert review.precision(100) >= plain.precision(100)
    assert 0.5 < doubt.wrong.sum() / wrong.sum() < 2  # a probability, not only an order
    assert ((doubt.wrong >= 0) & (doubt.wrong <= doubt.suspicion)).all()


def test_blanks_are_not_judged_and_change_nothing() -> None:
    _, given, probability = federation()
    blank = derive(1, "blank").random(given.shape) < 0.4
    blank[3] = True  # an image of which nothing is known
    given = np.where(blank, np.nan, given)
    garbage = np.where(blank, 0.97, probability)
    one, other = doubt_labels(probability, given), doubt_labels(garbage, given)
    assert np.array_equal(np.isnan(one.wrong), blank)
    np.testing.assert_array_equal(one.wrong, other.wrong)
    np.testing.assert_array_equal(one.suspicion, other.suspicion)


def test_order_of_images_and_classes_does_not_matter() -> None:
    _, given, probability = federation()
    rows, columns = (derive(2, "order", n).permutation(n) for n in given.shape)
    doubt = doubt_labels(probability, given)
    moved = doubt_labels(probability[rows][:, columns], given[rows][:, columns])
    np.testing.assert_allclose(moved.suspicion, doubt.suspicion[rows][:, columns], atol=1e-9)


def strangers(probability: np.ndarray, given: np.ndarray, *, seed: int = 0) -> float:
    return share_of_strangers(weigh_labels(probability, given), given, derive(seed, "strangers"))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_without_a_clean_label_the_share_of_wrong_images_is_estimated(share: float) -> None:
    true, _, probability = federation(images=2000)
    draw = derive(5, "wrong")
    wrong = draw.random(len(true)) < share
    given = np.where(wrong[:, None], true[draw.permutation(len(true))], true)
    assert strangers(probability, given) == pytest.approx(share, abs=0.12)


def test_predictions_that_know_nothing_find_all_labels_strange() -> None:
    true, given, _ = federation(images=2000)
    blind = derive(3, "blind").random(true.shape)
    assert strangers(blind, given) > 0.8


def test_too_few_positives_for_an_estimate() -> None:
    _, given, probability = federation()
    given = np.where(np.arange(len(given))[:, None] < 19, given, 0.0)
    assert np.isnan(strangers(probability, given))


def test_evidence_is_the_log_ratio_of_two_stories() -> None:
    """Labels drawn without a look, against labels as predicted; by loops over the cells."""
    _, given, probability = federation(images=40)
    given = np.where(derive(4, "blank").random(given.shape) < 0.3, np.nan, given)
    evidence = weigh_labels(probability, given)
    for i, row in enumerate(given):
        ratio = 0.0
        for c, y in enumerate(row):
            if not np.isnan(y):
                drawn, present = evidence.drawn[c], evidence.present[i, c]
                ratio += np.log(drawn / present) if y else np.log((1 - drawn) / (1 - present))
        assert evidence.log_odds[i] == pytest.approx(ratio)


def test_the_share_of_a_mixture_is_the_likeliest() -> None:
    log_odds = derive(6, "mixture").normal(-0.5, 2, 300)
    share = mixture_share(log_odds)
    grid = np.linspace(0.001, 0.999, 999)
    likelihood = [np.log(s * np.exp(log_odds) + 1 - s).sum() for s in grid]
    assert share == pytest.approx(grid[np.argmax(likelihood)], abs=2e-3)
    assert mixture_share(np.full(9, -3.0)) < 1e-3 and mixture_share(np.full(9, 3.0)) > 0.999


def test_doubt_grows_with_evidence_and_with_the_share() -> None:
    log_odds = np.linspace(-3, 3, 50)
    doubt = doubt_images(log_odds, 0.4)
    assert (np.diff(doubt) > 0).all() and ((doubt > 0) & (doubt < 1)).all()
    assert (doubt_images(log_odds, 0.6) > doubt).all()


def test_golden_doubts() -> None:
    """Of five images: right, one wrong, all wrong, half blank, and nothing known."""
    given = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, np.nan, 0], [np.nan] * 3])
    probability = np.array([[0.9, 0.2, 0.1], [0.8, 0.1, 0.3], [0.95, 0.05, 0.2], [0.7, 0.5, 0.4]])
    probability = np.vstack([probability, [0.5, 0.5, 0.5]])
    evidence = weigh_labels(probability, given)
    doubt = doubt_labels(probability, given)
    assert evidence.before == pytest.approx([0.16, 0.48, 0.64, 0.32, 0.0])
    assert evidence.drawn == pytest.approx([0.683326, 0.747961, 0.316674], abs=1e-6)
    assert evidence.log_odds == pytest.approx(
        [-0.873337, 0.417776, 1.28687, 0.037463, 0.0], abs=1e-5
    )
    assert doubt.image == pytest.approx([0.17045, 0.462716, 0.648499, 0.337233, 0.172971], abs=1e-5)
    assert doubt.present[:2].ravel() == pytest.approx(
        [0.761354, 0.529155, 0.213778, 0.709225, 0.462136, 0.298313], abs=1e-5
    )
    against = np.abs(given - doubt.present)
    np.testing.assert_allclose(doubt.wrong, doubt.image[:, None] * against)
    np.testing.assert_allclose(doubt.suspicion, np.sqrt(doubt.image)[:, None] * against)


def test_golden_share_of_strangers() -> None:
    """Images change places with those of equally many positives, five times."""
    _, given, probability = federation(images=1500)
    assert strangers(probability, given) == pytest.approx(0.21068938807126258, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.4, 0.97, 1.0])
def test_doubts_of_a_known_share_have_it_as_their_mean(share: float) -> None:
    log_odds = derive(7, "share").normal(-1, 3, 200)
    found = doubt_share(log_odds, share)
    assert found.mean() == pytest.approx(share, abs=1e-9)
    if share in (0, 1):
        assert (found == share).all()
    else:  # one shift for all
        odds = np.log(found / (1 - found)) - log_odds
        np.testing.assert_allclose(odds, odds[0], atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_share_is_met_however_far_the_evidence_lies_apart(sign: int) -> None:
    found = doubt_share(sign * np.array([200.0, 300.0, 301.0]), 0.4)
    assert found.mean() == pytest.approx(0.4)


def test_nothing_is_taken_for_certain() -> None:
    """Probabilities keep 1e-4 off 0 and 1, whatever predictions and labels say."""
    ends = np.array([1e-4, 1 - 1e-4])
    assert log_odds_of(np.array([0.0, 1.0])) == pytest.approx(np.log(ends / (1 - ends)))
    assert second_look(np.array([0.0, 1.0])) == pytest.approx(ends * np.log(ends / (1 - ends)))
    given = np.tile([0.0, 1.0], (60, 1))
    evidence = weigh_labels(given, given)
    assert evidence.present == pytest.approx(np.tile(ends, (60, 1)))
    assert evidence.drawn == pytest.approx(ends)


def test_the_scale_of_logits_is_bounded() -> None:
    label = np.tile([0.0, 1.0], (100, 1))
    logits = np.where(label == 1, 1.0, -1.0)
    assert _calibrate(logits, label, np.ones_like(label))[0] == 2
    assert _calibrate(-logits, label, np.ones_like(label))[0] == 0.3


def test_ranks_are_those_of_the_mean_loss_of_what_is_known() -> None:
    known = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], bool)
    assert _ranks(np.array([3, 1.5, 1.2, 0]), known).tolist() == [0.5, 0.75, 0.25, 0]
    equal = _ranks(np.tile([1.0, 0.0], 200), np.ones((400, 1), bool))
    assert equal[1::2].tolist() == [place / 400 for place in range(200)]
    loss = _loss(np.array([1.0, -2.0]), np.array([1.0, 0.0]))
    assert loss == pytest.approx([np.log1p(np.exp(-1)), np.log1p(np.exp(-2))])


def test_doubt_of_images_goes_half_of_the_way() -> None:
    """By its equation: the share is met by the mean of the doubts that follow from it."""
    log_odds, share = np.array([-2.0, 0.5, 3.0]), 0.3

    def doubts(one: float) -> np.ndarray:
        odds = one / (1 - one) * np.exp(log_odds)
        return odds / (1 + odds)

    expected = doubts((share + doubts(share).mean()) / 2)
    np.testing.assert_allclose(doubt_images(log_odds, share), expected)


def test_twenty_images_with_a_positive_are_enough_for_an_estimate() -> None:
    _, given, probability = federation(images=60)
    given[:, 0] = 0
    for count, known in ((19, False), (20, True)):
        given[:] = 0
        given[:count, 1] = 1
        assert np.isfinite(strangers(probability, given)) == known


@pytest.mark.parametrize("images", [1, 2])
def test_few_images_and_sure_models_are_no_trouble(images: int) -> None:
    given = np.array([[1.0, 0.0], [np.nan, 1.0]])[:images]
    doubt = doubt_labels(np.array([[0.0, 1.0], [1.0, 0.0]])[:images], given)
    assert doubt.wrong.shape == given.shape
    assert np.isfinite(doubt.wrong[~np.isnan(given)]).all()


def test_second_look_is_cross_entropy_minus_entropy() -> None:
    """By the formula of the paper, of a label 1 that is predicted with p."""
    p = np.array([0.02, 0.3, 0.5, 0.9])
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(second_look(1 - p), -np.log(p) - entropy)
    assert (np.diff(second_look(np.linspace(0.23, 1, 50))) >= 0).all()
    np.testing.assert_allclose(log_odds_of(np.array([0.5, 0.75])), [0, np.log(3)])


def test_a_review_by_hand() -> None:
    wrong = np.array([[1, 0], [0, 0], [1, 1]], bool)
    score = np.array([[0.9, 0.1], [0.8, np.nan], [0.2, 0.3]])
    judged = np.array([[1, 1], [1, 1], [1, 0]], bool)
    cells = review_cells(score, wrong, judged)  # 0.9 wrong, 0.8 right, 0.2 wrong, 0.1 right
    assert cells.wrong.tolist() == [True, False, True, False]
    assert cells.found.tolist() == [1, 1, 2, 2] and cells.base == 0.5
    assert cells.precision(1) == 1 and np.isnan(cells.precision(5))
    assert cells.gain(0.5) == 1.0 and np.isnan(cells.gain(0.1))
    images = review_images(score, wrong, judged)  # sums 1.0, 0.8, 0.2
    assert images.wrong.tolist() == [True, False, True]
    assert Review(np.array([], bool)).summary() == {"looked_at": 0, "wrong": 0}
    assert "precision_at_10" not in cells.summary()


@pytest.mark.skipif(not has_cleanlab(), reason="cleanlab is not installed")
def test_cleanlab_ranks_what_is_annotated() -> None:
    _, given, probability = federation()
    given[:, 0] = 0  # a class of one kind, and blanks: it could take neither
    given[5, 1:] = np.nan
    scores = cleanlab_scores(probability, given)
    assert np.array_equal(np.isnan(scores), np.isnan(given) | (np.arange(6) == 0))
    np.testing.assert_allclose(scores[:5, 1:], np.abs(given - probability)[:5, 1:], atol=1e-6)


# ---- cross-fitting


def test_folds_are_even_and_keep_patients_together() -> None:
    client = np.repeat([0, 1, -1], [30, 25, 5])
    groups = np.arange(60) // 3
    fold = deal_folds(client, groups, folds=3, seed=1)
    assert (fold[client < 0] == -1).all()
    for site in (0, 1):
        counts = np.bincount(fold[client == site], minlength=3)
        assert counts.max() - counts.min() <= 6
        for patient in np.unique(groups[client == site]):
            assert len(set(fold[(groups == patient) & (client == site)])) == 1
    alone = deal_folds(client, None, folds=5, seed=1)
    assert np.bincount(alone[client == 0]).tolist() == [6] * 5


def test_an_image_s_own_label_does_not_reach_its_prediction() -> None:
    """Its site, its fold and the calibration see it; the models that predict it never do."""
    dataset = tiny.make_dataset()
    scenario = tiny.make_scenario(dataset, mask="cells")
    config = plain_settings(tiny.make_config("fednml", rounds=3), rounds=2)
    assert config.method == "fedavg" and config.rounds == 2 and config.attack == "none"

    def predict(noisy: np.ndarray) -> np.ndarray:
        calls = []
        probability = cross_fit(
            config,
            dataset,
            replace(scenario, noisy=noisy),
            model=build_model(config, classes=len(dataset.classes)),
            folds=2,
            repeats=1,
            progress=lambda: calls.append(1),
        )
        assert len(calls) == 2 * config.rounds
        return probability

    before = predict(scenario.noisy.copy())
    held = scenario.client >= 0
    assert np.array_equal(np.isnan(before).any(axis=1), ~held)
    row = int(np.flatnonzero(held)[0])
    flipped = scenario.noisy.copy()
    flipped[row] = 1 - flipped[row]
    after = predict(flipped)
    seed = derive_seed(config.seed, "audit", 0) % 2**31
    fold = deal_folds(scenario.client, None, folds=2, seed=seed)
    same = fold == fold[row]
    np.testing.assert_array_equal(after[same], before[same])
    assert (after[held & ~same] != before[held & ~same]).any()
