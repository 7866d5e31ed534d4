"""result.json and the table at the end of a run: which numbers they hold, and how they look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny import Trace, make_config, make_dataset, make_scenario, simulate

from src.results import (
    ROUGH_SHOWN,
    _intervals,
    _mean_rows,
    _oracle_selected,
    _per_class,
    digits,
    final_table,
    summarise,
)
from utils_.datasets.base import TEST, VAL
from utils_.metrics import multilabel_metrics
from utils_.uncertainty import bootstrap_intervals

NAN = float("nan")


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Six rounds, all of them tested."""
    dataset = make_dataset()
    config = make_config("fedavg", rounds=6, eval_every=1, noise=0.2)
    return simulate(config, dataset, make_scenario(dataset, noise=0.2))


def test_every_rule_of_selection_takes_its_rows(trace: Trace) -> None:
    result, history = trace.result, trace.simulation.history
    tests = [
        {name.removeprefix("test_"): value for name, value in row.items() if "test_" in name}
        for row in history
    ]
    assert result["last"] == tests[-1] | {"round": 5}
    for name in ("mAP", "ece", "classes_evaluated"):
        assert result["last5"][name] == pytest.approx(np.mean([row[name] for row in tests[-5:]]))
    assert "round" not in result["last5"]
    best = max(range(6), key=lambda i: tests[i]["mAP"])
    assert result["oracle_selected"] == tests[best] | {"round": best}
    number = max(range(6), key=lambda i: history[i]["val_mAP"])
    assert result["val_selected"]["round"] == number == trace.simulation.best_round
    assert result["val_selected"]["mAP"] == pytest.approx(tests[number]["mAP"])
    labels = {name: value for name, value in history[-1].items() if name.startswith("labels_")}
    assert {f"labels_{name}": value for name, value in result["labels"].items()} == labels


def test_costs_are_sums_and_the_usual_round_is_the_median(trace: Trace) -> None:
    result, history = trace.result, trace.simulation.history
    seconds = [row["seconds"] for row in history]
    assert result["seconds"] == sum(seconds)
    assert result["seconds_per_round"] == np.median(seconds)
    for name in ("bytes_up", "bytes_down"):
        assert result[name] == sum(row[name] for row in history) > 0
        assert isinstance(result[name], int)


def test_settings_and_predictions_are_those_of_the_run(trace: Trace) -> None:
    result, simulation = trace.result, trace.simulation
    for name in ("method", "dataset", "noise", "missing", "seed", "data_seed", "rounds"):
        assert result[name] == getattr(simulation.config, name)
    assert result["status"] == "done" and not result["leaky"] and not result["bound"]
    assert result["classes"] == list(simulation.dataset.classes) and result["not_trained"] == []
    assert set(result["not_measured"]) == {"val", "test"} and "sites" not in result
    kept, evaluator = simulation.predictions, simulation.evaluator
    for part, found, truth, rows in (
        (VAL, kept.val_probability, kept.val_truth, kept.val_row),
        (TEST, kept.test_probability, kept.test_truth, kept.test_row),
    ):
        expected = evaluator.predict_each(simulation.scored, part)[0]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(truth, evaluator.truth_of(part))
        np.testing.assert_array_equal(rows, evaluator.rows(part))
    best = evaluator.predict_each(simulation.best, TEST)[0]
    np.testing.assert_array_equal(kept.test_probability_selected, best)
    for which, vector in (("last", simulation.scored), ("best", simulation.best)):
        each = {part: evaluator.predict_each(vector, part) for part in (VAL, TEST)}
        np.testing.assert_array_equal(simulation.thresholds[which], evaluator.thresholds(each))
    assert [own["positives"] for own in result["per_class"].values()] == (
        kept.test_truth.sum(axis=0).tolist()
    )


def test_curves_and_the_selected_model_where_it_is_not_the_last(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation, shown = trace.simulation, []

    class Log:
        def pr_curves(self, *pooled: np.ndarray, **options: object) -> None:
            shown.append((pooled, options))

    monkeypatch.setattr(simulation, "best", simulation.scored * 0)
    monkeypatch.setattr(simulation, "trained", [True, False, True, True])
    result = summarise(simulation, Log())
    selected = result["val_selected"]
    assert result["not_trained"] == [simulation.dataset.classes[1]]
    ((probability, truth), options), evaluator = shown[0], simulation.evaluator
    np.testing.assert_array_equal(probability, evaluator.predict_each(simulation.scored, TEST)[0])
    np.testing.assert_array_equal(truth, evaluator.truth_of(TEST))
    assert options == {"classes": simulation.class_names, "step": 6}
    found = evaluator.predict_each(simulation.best, TEST)[0]
    np.testing.assert_array_equal(simulation.predictions.test_probability_selected, found)
    assert selected["mAP"] == multilabel_metrics(found, truth).overall["mAP"]


def test_without_a_validation_part_there_is_no_such_model() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset)
    scenario = replace(scenario, part=np.where(scenario.part == VAL, TEST, scenario.part))
    trace = simulate(make_config("fedavg", rounds=1, warmup_rounds=0), dataset, scenario)
    assert trace.result["val_selected"] is None
    assert set(trace.result["not_measured"]) == {"test"}
    kept = trace.simulation.predictions
    assert kept.test_probability_selected is None
    assert kept.val_probability.shape == (0, len(dataset.classes))


def test_sites_that_keep_their_models_are_scored_as_the_mean_of_sites() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset)
    trace = simulate(make_config("local", rounds=1), dataset, scenario)
    found = trace.simulation.predictions.test_probability
    assert found.shape == (3, (scenario.part == TEST).sum(), len(dataset.classes))
    assert trace.result["last"]["mAP"] == pytest.approx(trace.result["val_selected"]["mAP"])


def test_means_and_the_oracle_of_rows() -> None:
    rows = [{"mAP": 1.0, "ece": 4.0, "round": 1}, {"mAP": 2.0, "ece": 0.0, "round": 2}]
    assert _mean_rows(rows) == {"mAP": 1.5, "ece": 2.0}
    tested = [{"test_mAP": NAN, "round": 1}, {"test_mAP": 0.0, "round": 2}, {"lr": 1, "round": 3}]
    assert _oracle_selected(tested[:2]) == {"mAP": 0.0, "round": 2}


def test_intervals_are_drawn_where_a_score_rests_on_few_images() -> None:
    """Not of a class without a negative, nor of one with ten of each."""
    truth = np.zeros((40, 3))
    truth[:9, 0], truth[:, 1], truth[:10, 2] = 1, 1, 1
    probability = np.random.default_rng(1).random((40, 3))
    found = _intervals([probability], truth, 3)
    assert found == {0: bootstrap_intervals([probability[:, 0]], truth[:, 0], seed=3)}
    table = {"ap": np.array([0.5, NAN, 0.25])}
    assert _per_class(table, ("a", "b", "c"), found) == {
        "a": {"ap": 0.5, "few": True, "intervals": found[0]},
        "b": {"ap": None, "few": False, "intervals": None},
        "c": {"ap": 0.25, "few": False, "intervals": None},
    }


# ---- the table


def scores(first: float) -> dict[str, float]:
    names = ("mAP", "macro_f1", "macro_recall", "balanced_accuracy", "macro_auroc")
    return {name: first + place / 10 for place, name in enumerate(names)}


def result_of(**changes: Any) -> dict[str, Any]:
    rules = {"last": scores(0.1), "last5": scores(0.2), "val_selected": None}
    classes = {"classes": list("abcd"), "not_trained": [], "not_measured": {}, "per_class": {}}
    rest = {"oracle_selected": scores(0.25), "leaky": False, "warmup_only": False}
    return rules | classes | rest | changes


def judged(reference: str, cells: int) -> dict[str, Any]:
    return {"reference": reference, "train_cells": cells, "val_cells": 2, "test_cells": 3}


def test_the_table_has_a_line_for_each_rule_that_chose() -> None:
    assert final_table(result_of()).splitlines() == [
        "test set                     mAP  macro-F1    recall      BACC     AUROC",
        "last round                0.1000    0.2000    0.3000    0.4000    0.5000",
        "mean of last 5            0.2000    0.3000    0.4000    0.5000    0.6000",
        "best on test (oracle)     0.2500    0.3500    0.4500    0.5500    0.6500",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"not_trained": ["a", "b"]}, "not trained, since no site annotates them: a, b"),
        (
            {"not_measured": {"test": {"no_positive": ["a"], "no_negative": ["c", "d"]}}},
            "1 of 4 classes could be measured; without a positive: a; without a negative: c, d",
        ),
        (
            {"not_measured": {"test": {"no_positive": [], "no_negative": ["c"]}}},
            "3 of 4 classes could be measured; without a negative: c",
        ),
        ({"warmup_only": True}, "WARM-UP ONLY: the method's own part never started; see --warm"),
        ({"leaky": True}, "LEAKY: this run used what is hidden from sites; never compare it"),
        (
            {"truth": judged("files", 1)},
            "training labels are judged by those of the files, which nobody has verified: the",
        ),
        (
            {"truth": judged("verified", 1234)},
            "verified ones of true_data.csv alone (1,234 cells; 2 in val, 3 in test)",
        ),
    ],
)
def test_what_is_to_be_known_stands_below(changes: dict[str, Any], said: str) -> None:
    (line,) = final_table(result_of(**changes)).splitlines()[4:]
    assert said in line


@pytest.mark.parametrize("more", [0, 1, 3])
def test_scores_of_few_images_have_their_interval(more: int) -> None:
    own = {"ap": 0.5, "few": True, "intervals": {"ap": (0.25, None)}} | {
        "positives": 4.0,
        "evaluated": 30.0,
    }
    table = {f"class {number}": own for number in range(ROUGH_SHOWN + more)}
    table |= {"many": own | {"few": False}}
    lines = final_table(result_of(per_class=table)).splitlines()[4:]
    line = "rough: class 0 AP 0.5000 (0.2500 to -), 4 positives in 30 images"
    assert lines[0] == line and "many" not in "".join(lines)
    rest = [f"rough: {more} more classes, see per_class in result.json"] if more else []
    assert lines[8:] == rest


def test_digits_of_what_could_not_be_measured_are_a_dash() -> None:
    assert [digits(value) for value in (None, NAN, 0.0, 0.12345)] == ["-", "-", "0.0000", "0.1235"]
