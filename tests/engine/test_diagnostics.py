"""What the Oracle says about labels: golden values, a loop as reference, pooling, omissions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from utils_.diagnostics import label_counts, label_diagnostics, pool
from utils_.labels import CORRECTED, PSEUDO, LabelState, Oracle
from utils_.rng import derive

NAN = np.nan


def random_client(seed: int, images: int = 30, classes: int = 5) -> dict:
    """A client with noise, blanks, unknown truth, corrections, pseudo-labels and dropped cells."""
    draw = derive(seed, "client")
    true = (draw.random((images, classes)) < 0.4).astype(np.float32)
    noisy = np.where(draw.random(true.shape) < 0.3, 1 - true, true)
    true[draw.random(true.shape) < 0.1] = NAN
    observed = np.where(draw.random(true.shape) < 0.4, NAN, noisy)
    labels = LabelState(observed)
    weight = draw.choice([0.0, 0.5, 1.0], true.shape)
    labels.correct(draw.random(true.shape) < 0.5, draw.random(true.shape), weight=weight)
    return {
        "labels": labels,
        "true": true,
        "noise": Oracle(true, noisy).noise(np.arange(images)),
        "noise_score": draw.integers(0, 6, images).astype(float),
        "flagged": draw.random(images) < 0.4,
    }


def loop_reference(clients: list[dict]) -> dict[str, float]:
    """The same figures cell by cell, without any count shared with the code under test."""
    flags, wrong_before, wrong_after, corrected, flipped, pseudo = [], [], [], [], [], []
    for client in clients:
        labels, true = client["labels"], client["true"]
        for i in range(len(true)):
            judged = [c for c in range(true.shape[1]) if labels.annotated[i, c] and true[i, c] >= 0]
            if judged:
                flags.append((client["flagged"][i], any(client["noise"][i, c] for c in judged)))
            for c in range(true.shape[1]):
                if not true[i, c] >= 0:
                    continue
                now, used = labels.target[i, c] >= 0.5, labels.weight[i, c] > 0
                if labels.annotated[i, c]:
                    wrong_before.append(labels.observed[i, c] != true[i, c])
                if used and labels.annotated[i, c]:
                    wrong_after.append(now != true[i, c])
                    if now != labels.observed[i, c]:
                        flipped.append(now == true[i, c])
                if used and labels.status[i, c] == CORRECTED:
                    corrected.append(now == true[i, c])
                if used and labels.status[i, c] == PSEUDO:
                    pseudo.append((now, true[i, c] == 1))
    hits = sum(a and b for a, b in flags)
    precision = hits / sum(a for a, _ in flags)
    recall = hits / sum(b for _, b in flags)
    return {
        "noise_precision": precision,
        "noise_recall": recall,
        "noise_f1": 2 * precision * recall / (precision + recall),
        "noise_before": np.mean(wrong_before),
        "noise_remaining": np.mean(wrong_after),
        "correction_precision": np.mean(corrected),
        "flip_precision": np.mean(flipped),
        "pseudo_accuracy": np.mean([a == b for a, b in pseudo]),
        "pseudo_precision": np.mean([b for a, b in pseudo if a]),
        "pseudo_recall": np.mean([a for a, b in pseudo if b]),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
def test_pooled_figures_equal_those_of_all_cells_together(seed, count):
    clients = [random_client(seed + k) for k in range(count)]
    figures = pool(label_counts(**client) for client in clients)
    expected = loop_reference(clients)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_golden_values():
    labels = LabelState(np.array([[1, 0, NAN], [1, 1, NAN], [0, NAN, NAN], [NAN, NAN, NAN]]))
    true = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1], [1, 1, 0]], dtype=np.float32)
    noise = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=bool)
    cells = np.zeros((4, 3), bool)
    cells[1, 0] = cells[0, 1] = cells[0, 2] = cells[1, 2] = True
    labels.correct(cells, np.array([[0, 0.3, 0.9], [0.2, 0, 0.8], [0] * 3, [0] * 3]))
    figures = label_diagnostics(
        labels,
        true=true,
        noise=noise,
        noise_score=np.array([0.1, 0.9, 0.1, 0.99]),
        flagged=np.array([True, True, False, True]),  # the last has no annotated cell: not judged
    )
    assert figures == pytest.approx(
        {
            "noise_precision": 1 / 2,
            "noise_recall": 1 / 2,
            "noise_f1": 1 / 2,
            "noise_auroc": 3 / 4,  # (.9 > .1) won, (.1 = .1) half
            # two noisy images, (1, 1) and (0, -), against (1, 0): 2 > 1 won, 0 < 1 lost
            "noise_auroc_counting": 1 / 2,
            # class 0: wrong .9, right .1; class 1 has no wrong positive
            "noise_auroc_within_class": 1.0,
            "noise_before": 2 / 5,
            "noise_remaining": 1 / 5,
            "correction_precision": 1.0,
            "flip_precision": 1.0,
            "pseudo_accuracy": 1 / 2,
            "pseudo_precision": 1 / 2,
            "pseudo_recall": 1.0,
            "flagged_images": 2,
            "corrected_cells": 2,
            "flipped_cells": 1,
            "pseudo_cells": 2,
        }
    )


def test_auroc_equals_scikit_learn_and_pools_pairs_within_clients():
    won = pairs = 0
    counts = []
    for seed in range(3):
        client = random_client(seed)
        judged = client["labels"].annotated & ~np.isnan(client["true"])
        noisy = (judged & client["noise"]).any(axis=1)[judged.any(axis=1)]
        score = client["noise_score"][judged.any(axis=1)]
        auroc = roc_auc_score(noisy, score)
        counts.append(label_counts(**client))
        assert pool(counts[-1:])["noise_auroc"] == pytest.approx(auroc, abs=1e-12)
        won += auroc * noisy.sum() * (~noisy).sum()
        pairs += noisy.sum() * (~noisy).sum()
    assert pool(counts)["noise_auroc"] == pytest.approx(won / pairs, abs=1e-12)


def counted_reference(clients: list[dict]) -> float:
    """AUROC of the number of annotated positives, pair by pair within each client."""
    won = pairs = 0.0
    for client in clients:
        observed, known = client["labels"].observed, client["true"] >= 0
        judged = np.flatnonzero((client["labels"].annotated & known).any(axis=1))
        score = client["noise_score"]
        judged = [i for i in judged if score is None or score[i] >= 0]
        noisy = [(client["noise"][i] & client["labels"].annotated[i]).any() for i in judged]
        count = [int(np.nansum(observed[i])) for i in judged]
        for i in np.flatnonzero(noisy):
            for j in np.flatnonzero(~np.array(noisy)):
                pairs += 1
                won += (count[i] > count[j]) + 0.5 * (count[i] == count[j])
    return won / pairs


def test_counting_positives_is_judged_on_the_same_images_and_without_a_score_too():
    clients = [random_client(seed) for seed in range(3)]
    for client in clients:
        client["noise_score"][::4] = NAN
    figures = pool([label_counts(**client) for client in clients])
    assert figures["noise_auroc_counting"] == pytest.approx(counted_reference(clients), abs=1e-12)
    silent = [client | {"noise_score": None, "flagged": None} for client in clients]
    alone = pool([label_counts(**client) for client in silent])
    assert alone["noise_auroc_counting"] == pytest.approx(counted_reference(silent), abs=1e-12)
    assert "noise_auroc" not in alone and "noise_auroc_within_class" not in alone
    # a site without a score is not compared where others have one
    mixed = pool([label_counts(**client) for client in (clients[0], silent[1])])
    assert mixed["noise_auroc_counting"] == pytest.approx(counted_reference(clients[:1]), abs=1e-12)


def test_within_a_class_wrong_positives_are_ranked_against_right_ones():
    clients = [random_client(seed) for seed in range(3)]
    clients[0]["noise_score"][::4] = NAN
    figures = []
    for c in range(5):
        won = pairs = 0.0
        for client in clients:
            given = client["labels"].observed[:, c] == 1
            score, noise = client["noise_score"], client["noise"][:, c]
            given = given & (client["true"][:, c] >= 0) & (score >= 0)
            for wrong in score[given & noise]:
                for right in score[given & ~noise]:
                    pairs += 1
                    won += (wrong > right) + 0.5 * (wrong == right)
        figures.append(won / pairs)
    found = pool([label_counts(**client) for client in clients])
    assert found["noise_auroc_within_class"] == pytest.approx(np.mean(figures), abs=1e-12)


def test_an_assumed_negative_that_is_present_is_noise(dataset):
    plain = tiny.make_scenario(dataset, mask="cells")
    assumed = ~plain.annotated & (plain.client >= 0)[:, None]
    noisy = np.where(assumed, 0, plain.noisy).astype(np.float32)
    scenario = replace(plain, noisy=noisy, annotated=plain.annotated | assumed, assumed=assumed)
    config = tiny.make_config("fedavg", missing=0.5, missing_type="cells", assume_negative=True)
    simulation = tiny.make_simulation(config, dataset, scenario)
    figures, each = simulation.evaluator.label_diagnostics(simulation.clients)
    wrong = (assumed & (dataset.labels == 1))[plain.client >= 0]
    assert 0 < wrong.mean() == pytest.approx(figures["noise_before"])
    assert figures["noise_auroc_counting"] < 0.5  # what is omitted leaves fewer positives
    assert figures["pseudo_cells"] == 0 and len(each) == 3
    # the classes that a site annotates are those that somebody looked at
    assert np.array_equal(
        simulation.evaluator.annotated,
        [plain.annotated[plain.rows(k)].any(axis=0) for k in range(3)],
    )


def test_undefined_figures_are_left_out():
    labels = LabelState(np.array([[1, 0], [0, NAN]]))
    true = np.array([[1, 0], [0, 1]], dtype=np.float32)
    figures = label_diagnostics(labels, true=true, noise=np.zeros((2, 2), bool))
    assert figures == {
        "noise_before": 0,
        "noise_remaining": 0,
        "corrected_cells": 0,
        "flipped_cells": 0,
        "pseudo_cells": 0,
    }
    flagged = label_diagnostics(
        labels, true=true, noise=np.zeros((2, 2), bool), flagged=np.zeros(2, bool)
    )
    assert "noise_precision" not in flagged and "noise_f1" not in flagged
    assert pool([]) == {}


def test_a_client_without_flags_does_not_lower_the_recall_of_others():
    client = random_client(1)
    silent = random_client(2) | {"flagged": None, "noise_score": None}
    both = pool([label_counts(**client), label_counts(**silent)])
    alone = label_diagnostics(**client)
    for name in ("noise_precision", "noise_recall", "noise_f1", "noise_auroc"):
        assert both[name] == alone[name]


def test_garbage_in_cells_without_weight_or_truth_changes_nothing():
    client = random_client(5)
    counts = label_counts(**client)
    labels = client["labels"]
    state = labels.state()
    state["target"] = np.where(state["weight"] == 0, 1 - state["target"], state["target"])
    labels.load_state(state)
    assert label_counts(**client) == counts
    client["noise"] = client["noise"] | np.isnan(client["true"]) | ~labels.annotated
    assert label_counts(**client) == counts


def test_a_client_that_reads_the_truth_has_no_noise():
    client = random_client(7)
    client["labels"] = LabelState(client["true"])
    figures = label_diagnostics(**client)
    assert client["noise"].any() and figures["noise_before"] == figures["noise_remaining"] == 0
    assert figures["noise_precision"] == 0 and "noise_recall" not in figures


def test_images_without_a_score_are_left_out():
    client = random_client(6)
    counts = label_counts(**client)
    client["noise_score"][:] = NAN
    assert "noise_auroc" in pool([counts])
    assert "noise_auroc" not in label_diagnostics(**client)


@pytest.mark.parametrize("name", ["true", "noise", "noise_score", "flagged"])
def test_wrong_shape_is_refused(name):
    client = random_client(0)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        label_counts(**(client | {name: client[name][:-1]}))
