"""Metrics against scikit-learn, on ties, unknown cells and classes that cannot be scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from tiny import make_config, make_scenario, simulate

from utils_.datasets.base import TEST, VAL, ImageDataset
from utils_.metrics import annotated_missing_means, multilabel_metrics
from utils_.rng import derive
from utils_.thresholds import best_thresholds, tuned_metrics

LEVELS = [0.0, -0.0, 1e-40, 0.1, 0.25, 0.5, np.nextafter(0.5, 0), 0.9, 1.0]


def random_case(
    seed: int, *, images: int, classes: int, unknown: float, dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties for even seeds, and truth with some unknown cells."""
    draw = derive(seed, "case")
    probability = (
        draw.random((images, classes)) if seed % 2 else draw.choice(LEVELS, (images, classes))
    )
    truth = (draw.random((images, classes)) < draw.random(classes)).astype(float)
    truth[draw.random(truth.shape) < unknown] = np.nan
    return probability.astype(dtype), truth


def reference(probability: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """One class after the other, with scikit-learn."""
    rows = []
    for p, y in zip(probability.T, truth.T, strict=True):
        known = ~np.isnan(y)
        p, y = p[known], y[known].astype(int)
        guess, both = (p >= 0.5).astype(int), 0 < y.sum() < len(y)
        options = {"zero_division": 0, "average": "binary"}
        precision, recall, f1 = (np.nan, np.nan, np.nan)
        if both:
            precision, recall, f1, _ = sk.precision_recall_fscore_support(y, guess, **options)
        rows.append(
            {
                "ap": sk.average_precision_score(y, p) if both else np.nan,
                "auroc": sk.roc_auc_score(y, p) if both else np.nan,
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "balanced_accuracy": sk.balanced_accuracy_score(y, guess) if both else np.nan,
                "positives": y.sum(),
                "evaluated": len(y),
            }
        )
    return {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}


def calibration_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error, bin by bin."""
    known = ~np.isnan(truth)
    p, y = probability[known], truth[known]
    total, edges = 0.0, np.arange(16) / 15
    for i in range(15):
        inside = (p >= edges[i]) & ((p < edges[i + 1]) | (i == 14))
        if inside.any():
            total += inside.sum() * abs(p[inside].mean() - y[inside].mean())
    return total / len(p)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 40),
    classes=st.integers(1, 5),
    unknown=st.sampled_from([0.0, 0.3, 0.9]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_equals_scikit_learn(seed, images, classes, unknown, dtype):
    probability, truth = random_case(
        seed, images=images, classes=classes, unknown=unknown, dtype=dtype
    )
    got = multilabel_metrics(probability, truth).per_class
    expected = reference(probability, truth)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_overall_are_means_over_classes_that_can_be_scored(unknown):
    probability, truth = random_case(3, images=200, classes=8, unknown=unknown)
    truth[:, 2] = 0  # no positives: in no mean
    truth[:, 5] = 1  # no negatives: in no mean either
    overall, table = multilabel_metrics(probability, truth).overall, reference(probability, truth)
    both = [0, 1, 3, 4, 6, 7]
    expected = {
        "mAP": table["ap"][both].mean(),
        "macro_f1": table["f1"][both].mean(),
        "macro_recall": table["recall"][both].mean(),
        "macro_precision": table["precision"][both].mean(),
        "balanced_accuracy": table["balanced_accuracy"][both].mean(),
        "macro_auroc": table["auroc"][both].mean(),
        "hamming_loss": ((probability >= 0.5) != (truth == 1))[~np.isnan(truth)].mean(),
        "ece": calibration_error(probability, truth),
        "classes_evaluated": 6,
        "classes_without_positives": 1,
        "classes_without_negatives": 1,
    }
    assert overall == pytest.approx(expected, abs=1e-12)


def test_golden_values():
    probability = np.array([[0.9], [0.8], [0.8], [0.1]])
    metrics = multilabel_metrics(probability, np.array([[1], [0], [1], [0]]))
    # thresholds .9: P 1, R 1/2; .8 (tied): P 2/3, R 1 -> AP = 1/2 * 1 + 1/2 * 2/3
    assert metrics.per_class["ap"][0] == pytest.approx(5 / 6, abs=1e-12)
    # pairs: (.9,.8) (.9,.1) (.8,.1) won, (.8,.8) half -> 3.5 / 4
    assert metrics.per_class["auroc"][0] == 0.875
    assert metrics.per_class["balanced_accuracy"][0] == 0.75
    assert metrics.overall["hamming_loss"] == 0.25


def test_perfect_and_reversed():
    truth = derive(0, "perfect").integers(0, 2, (50, 4))
    perfect = multilabel_metrics(truth.astype(float), truth).overall
    assert [perfect[k] for k in ("mAP", "macro_f1", "macro_auroc", "balanced_accuracy")] == [1] * 4
    assert perfect["ece"] == perfect["hamming_loss"] == 0
    assert multilabel_metrics(1.0 - truth, truth).overall["macro_auroc"] == 0


def test_order_of_images_and_classes_does_not_matter():
    probability, truth = random_case(2, images=60, classes=6, unknown=0.2)
    rows, columns = derive(1, "rows").permutation(60), derive(1, "columns").permutation(6)
    first = multilabel_metrics(probability, truth)
    second = multilabel_metrics(probability[rows][:, columns], truth[rows][:, columns])
    assert second.overall == pytest.approx(first.overall, abs=1e-12)
    for name, values in first.per_class.items():
        np.testing.assert_allclose(second.per_class[name], values[columns], atol=1e-12)


def test_probability_of_an_unknown_cell_does_not_matter():
    probability, truth = random_case(4, images=60, classes=6, unknown=0.4)
    other = np.where(np.isnan(truth), 1 - probability, probability)
    first, second = multilabel_metrics(probability, truth), multilabel_metrics(other, truth)
    assert first.overall == second.overall
    for name, values in first.per_class.items():
        np.testing.assert_array_equal(second.per_class[name], values)


def test_nothing_to_score_is_nan_and_counted():
    overall = multilabel_metrics(np.full((3, 2), 0.5), np.full((3, 2), np.nan)).overall
    assert np.isnan(overall["mAP"]) and np.isnan(overall["hamming_loss"])
    assert (overall["classes_evaluated"], overall["classes_without_positives"]) == (0, 2)
    assert np.isnan(multilabel_metrics(np.zeros((0, 2)), np.zeros((0, 2))).overall["mAP"])


@pytest.mark.parametrize(
    ("probability", "truth", "message"),
    [
        ([[0.1, np.nan], [0.2, np.inf]], [[0, 1], [1, 0]], "in 1 of 2 classes"),
        ([[0.1, 1.5]], [[0, 1]], "outside"),
        ([[-0.1, 0.5]], [[0, 1]], "outside"),
        ([[0.1, 0.5]], [[0, 2]], "other than 0, 1 and NaN"),
        ([[0.1, 0.5]], [[0], [1]], "shape"),
        ([0.1, 0.5], [0, 1], "shape"),
    ],
)
def test_bad_input_is_refused(probability, truth, message):
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(np.array(probability, dtype=float), np.array(truth, dtype=float))


def test_annotated_and_missing_means_go_over_pairs():
    annotated = np.array([[True, True, False, True], [True, False, False, False]])
    means = annotated_missing_means(np.array([0.2, 0.4, 0.6, np.nan]), annotated)
    assert means == pytest.approx(
        {"mAP_annotated": (0.2 + 0.4 + 0.2) / 3, "mAP_missing": (0.6 + 0.4 + 0.6) / 3}
    )
    assert annotated_missing_means(np.array([0.2]), np.ones((2, 1), bool)) == {
        "mAP_annotated": pytest.approx(0.2)
    }


# ---- thresholds chosen on validation


def best_by_search(probability: np.ndarray, truth: np.ndarray) -> list[float]:
    """Try every probability of a class, from high to low, with scikit-learn; NaN if one-sided."""
    found = []
    for p, y in zip(probability.T, truth.T, strict=True):
        p, y = p[~np.isnan(y)].astype(float), y[~np.isnan(y)]
        best, score = np.nan, 0.0
        for threshold in np.unique(p)[::-1] if y.any() and not y.all() else ():
            f1 = sk.f1_score(y, p >= threshold, zero_division=0)
            if f1 > score + 1e-12:
                best, score = threshold, f1
        found.append(best)
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 25),
    unknown=st.sampled_from([0.0, 0.3, 0.9]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_thresholds_are_those_of_a_search(seed, images, unknown, dtype):
    probability, truth = random_case(seed, images=images, classes=3, unknown=unknown, dtype=dtype)
    thresholds = best_thresholds(probability, truth)
    np.testing.assert_array_equal(thresholds, best_by_search(probability, truth))
    others, other_truth = random_case(seed + 2, images=20, classes=3, unknown=unknown, dtype=dtype)
    guess = np.where(others >= thresholds, 1.0, 0.0)
    expected = reference(guess, other_truth)
    found = tuned_metrics(others, other_truth, thresholds=thresholds)
    both = (expected["positives"] > 0) & (expected["positives"] < expected["evaluated"])
    both &= ~np.isnan(thresholds)
    for name, column in (
        ("macro_f1_tuned", "f1"),
        ("macro_recall_tuned", "recall"),
        ("macro_precision_tuned", "precision"),
        ("balanced_accuracy_tuned", "balanced_accuracy"),
    ):
        values = expected[column][both]
        mean = values.mean() if len(values) else np.nan
        assert found.pop(name) == pytest.approx(mean, abs=1e-12, nan_ok=True)
    assert found == {"classes_tuned": both.sum()}


def test_of_equal_thresholds_the_highest():
    # 0.9 gives F1 2/3; 0.3 gives 2 * 2 / (4 + 2) = 2/3 as well
    probability = np.array([[0.9], [0.5], [0.4], [0.3]])
    assert best_thresholds(probability, np.array([[1], [0], [0], [1]])).tolist() == [0.9]


def test_a_class_of_one_kind_of_label_has_no_threshold_and_is_in_no_tuned_mean():
    probability = np.array([[0.9, 0.9, 0.9, 0.9], [0.5, 0.8, 0.2, 0.1], [0.4, 0.7, 0.6, 0.3]])
    truth = np.array([[1, 0, 1, np.nan], [0, 0, 1, np.nan], [0, np.nan, np.nan, np.nan]])
    thresholds = best_thresholds(probability, truth)
    assert thresholds[0] == 0.9 and np.isnan(thresholds[1:]).all()
    other = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 0]])  # all could be measured here
    found = tuned_metrics(probability, other, thresholds=thresholds)
    assert found["classes_tuned"] == 1
    assert found["macro_f1_tuned"] == pytest.approx(2 / 3)  # class 0: one hit, one missed


def shifted_truth(dataset: ImageDataset) -> ImageDataset:
    """The same images, with a test part whose labels ask for other thresholds."""
    labels = dataset.labels.copy()
    labels[dataset.part == TEST] = 1 - labels[dataset.part == TEST]
    return replace(dataset, labels=labels, verified=labels)


def test_a_run_scores_at_thresholds_of_the_same_model_on_validation(dataset):
    trace = simulate(make_config("fedavg", rounds=3), dataset, make_scenario(dataset))
    simulation, result = trace.simulation, trace.result
    for sent, row in zip(trace.sent[1:], simulation.history, strict=False):
        thresholds = best_by_search(*simulation.evaluator.predict(sent.model, VAL))
        for part, prefix in ((VAL, "val_"), (TEST, "test_")):
            probability, truth = simulation.evaluator.predict(sent.model, part)
            expected = tuned_metrics(probability, truth, thresholds=np.array(thresholds))
            assert {name: row[prefix + name] for name in expected} == expected
    for rule in ("last", "last5", "val_selected", "oracle_selected"):
        assert set(expected) <= set(result[rule])
    chosen = simulation.history[result["val_selected"]["round"]]
    assert all(result["val_selected"][n] == chosen["test_" + n] for n in expected)
    # the labels of the test part choose nothing
    other = shifted_truth(dataset)
    again = simulate(make_config("fedavg", rounds=3), other, make_scenario(other)).simulation
    vector = trace.sent[1].model
    probability, truth = again.evaluator.predict(vector, TEST)
    thresholds = best_thresholds(*simulation.evaluator.predict(vector, VAL))
    expected = tuned_metrics(probability, truth, thresholds=thresholds)
    assert expected.items() <= again.evaluator.score(vector, TEST).overall.items()


def test_each_site_of_local_has_thresholds_of_its_own(dataset):
    trace = simulate(make_config("local", rounds=2), dataset, make_scenario(dataset))
    evaluator, scores = trace.simulation.evaluator, []
    for vector in trace.simulation.scored:
        thresholds = best_thresholds(*evaluator.predict(vector, VAL))
        scores.append(tuned_metrics(*evaluator.predict(vector, TEST), thresholds=thresholds))
    found = trace.simulation.history[-1]
    for name in scores[0]:
        mean = np.mean([score[name] for score in scores])
        assert found["test_" + name] == pytest.approx(mean, abs=1e-12)


def test_without_validation_there_are_no_tuned_metrics(dataset):
    dataset = replace(dataset, part=np.where(dataset.part == VAL, TEST, dataset.part))
    trace = simulate(make_config("fedavg", rounds=2), dataset, make_scenario(dataset))
    assert not [name for row in trace.simulation.history for name in row if "tuned" in name]
    assert not [name for name in trace.result["last5"] if "tuned" in name]


def test_one_half_is_a_finding_and_neighbouring_numbers_are_no_ties() -> None:
    truth = np.array([[1.0, 1], [0, 0], [1, 1]])
    after = np.nextafter(np.float32(0.25), np.float32(1))
    probability = np.array([[0.5, after], [0.4, 0.25], [0.5, after]], np.float32)
    scores = multilabel_metrics(probability, truth)
    assert scores.per_class["recall"].tolist() == [1, 0]
    assert scores.per_class["auroc"].tolist() == [1, 1]
    assert multilabel_metrics(probability.astype(float), truth).per_class["recall"][0] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbouring_numbers_of_positives_are_two_thresholds(dtype: type) -> None:
    """At and above them lie 1 of 2 and 2 of 3; were they one, both would count 2 of 3."""
    first = np.array([0.25], dtype)
    for _ in range(2):  # of either parity
        after = np.nextafter(first, dtype(1))
        probability = np.stack([np.array([0.9], dtype), after, first])
        scores = multilabel_metrics(probability, np.array([[0.0], [1], [1]]))
        assert scores.per_class["ap"].tolist() == pytest.approx([7 / 12])
        first = after
