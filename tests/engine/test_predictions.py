"""What a run keeps of its predictions: the result's table can be made again from it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TESTING, TRAINING, VALIDATION, make_config, make_dataset, make_scenario, simulate

from utils_.datasets.base import TEST
from utils_.metrics import multilabel_metrics
from utils_.predictions import FILE, Predictions, read_predictions, write_predictions
from utils_.thresholds import best_thresholds, tuned_metrics

CLASSES = 4


def trained(method: str, **settings: object) -> tuple:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="classes", noise=0.2)
    trace = simulate(make_config(method, **settings), dataset, scenario)
    return trace, trace.simulation.predictions


@pytest.mark.parametrize("method", ["fednml", "local"])
def test_the_result_is_made_of_them(method: str, tmp_path: Path) -> None:
    trace, kept = trained(method, eval_every=1)
    write_predictions(tmp_path / FILE, kept, classes=["a", "b", "c", "d"])
    kept = read_predictions(tmp_path)
    shape = (TESTING, CLASSES) if method == "fednml" else (3, TESTING, CLASSES)
    assert kept.test_probability.shape == shape
    assert kept.test_truth.shape == (TESTING, CLASSES)
    assert kept.val_row.tolist() == list(range(TRAINING, TRAINING + VALIDATION))
    assert {kept.test_probability.dtype, kept.val_truth.dtype} == {np.dtype(np.float32)}
    for rule, selected in (("last", False), ("val_selected", True)):
        models = kept.models(selected=selected)
        scores = [multilabel_metrics(own, kept.test_truth).overall["mAP"] for own in models]
        assert trace.result[rule]["mAP"] == np.mean(scores)
    validation = kept.val_probability.reshape(-1, VALIDATION, CLASSES)
    tuned = [
        tuned_metrics(own, kept.test_truth, thresholds=best_thresholds(cut, kept.val_truth))
        for own, cut in zip(kept.models(), validation, strict=True)
    ]
    assert trace.result["last"]["macro_f1_tuned"] == np.mean([t["macro_f1_tuned"] for t in tuned])


def test_nothing_is_predicted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part once by the last model, and once by the best, if that is another."""
    from src import results

    trace, _ = trained("fedavg")
    simulation, calls = trace.simulation, []
    original = simulation.evaluator.predict_rows
    simulation.evaluator.predict_rows = lambda v, rows: (
        calls.append(len(rows)),
        original(v, rows),
    )[1]

    class Log:
        def pr_curves(self, *_: object, **__: object) -> None: ...

    for best, times in ((simulation.scored, 1), (simulation.scored + 0.01, 2)):
        simulation.best = best
        calls.clear()
        results.summarise(simulation, Log())
        assert sorted(calls) == sorted([VALIDATION, TESTING] * times)


def test_without_validation_nothing_is_selected(tmp_path: Path) -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset)
    part = np.where(scenario.part == 1, TEST, scenario.part).astype(np.uint8)
    trace = simulate(make_config("fedavg"), dataset, replace(scenario, part=part))
    write_predictions(tmp_path / FILE, trace.simulation.predictions, classes=["a"] * 4)
    kept = read_predictions(tmp_path)
    assert kept.val_probability.shape == (0, CLASSES) and len(kept.val_row) == 0
    assert len(kept.test_row) == VALIDATION + TESTING
    assert kept.test_probability_selected is None
    with pytest.raises(ValueError, match="no round was selected"):
        kept.models(selected=True)


def some(**changes: np.ndarray) -> Predictions:
    truth = np.zeros((3, 2), np.float32)
    values = {"truth": truth, "probability": truth + 0.5, "row": np.arange(3)}
    named = {f"{part}_{name}": own for part in ("val", "test") for name, own in values.items()}
    return Predictions(**named | changes)


def test_there_and_back(tmp_path: Path) -> None:
    given = some(test_truth=np.full((3, 2), np.nan, np.float32))
    write_predictions(tmp_path / FILE, given, classes=["a", "b"])
    found = read_predictions(tmp_path)
    for field in fields(Predictions):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(given, field.name))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_probability": np.full((3, 2), 1.5, np.float32)}, "no probability"),
        ({"test_probability": np.full((3, 2), np.nan, np.float32)}, "no probability"),
        ({"val_probability": np.zeros((3, 5), np.float32)}, "val_probability has shape"),
        ({"test_row": np.arange(2)}, "test_probability has shape"),
        ({"test_truth": np.full((3, 2), 0.5, np.float32)}, "other than 0, 1 and NaN"),
    ],
)
def test_damage_is_named(changes: dict, said: str, tmp_path: Path) -> None:
    write_predictions(tmp_path / FILE, some(**changes), classes=["a", "b"])
    with pytest.raises(ValueError, match=said):
        read_predictions(tmp_path)


def test_a_cut_file_is_damaged_and_an_absent_one_is_none(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) is None
    write_predictions(tmp_path / FILE, some(), classes=["a", "b"])
    whole = (tmp_path / FILE).read_bytes()
    for content in (whole[:-5], b"", b"{}"):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(ValueError, match=r"predictions\.safetensors is damaged"):
            read_predictions(tmp_path)
