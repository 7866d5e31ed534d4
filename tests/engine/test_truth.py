"""Truth that is none: what is said of labels that nobody has verified; what verified ones do."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    TRAINING,
    call_main,
    command,
    make_config,
    make_dataset,
    make_scenario,
    make_simulation,
    read_table,
    simulate,
    write_table,
)

from src.simulation import Simulation
from utils_.datasets.base import TEST, TRAIN, VAL, ImageDataset
from utils_.rng import derive
from utils_.runlog import read_metrics
from utils_.scenario import Scenario
from utils_.scenario_tables import client_table
from utils_.truth import DRAWN, FILES, UNKNOWN, VERIFIED, WORDS, reference

JUDGED = ("noise_", "correction_precision", "flip_precision", "pseudo_accuracy", "pseudo_recall")
JUDGED += ("pseudo_precision",)
METHODS = ("fednml", "fedmlp", "fedcorr", "fedelc")  # those that change labels


def real(*, verified: np.ndarray | None = None) -> ImageDataset:
    """The tiny data as if they were somebody's files."""
    return replace(make_dataset(), verified=verified)


def some_verified(share: float = 0.3, *, seed: int = 0) -> np.ndarray:
    """(60, 4) verified labels of some cells, a quarter of which contradict the files."""
    labels, draw = make_dataset().labels, derive(seed, "verified")
    verdict = np.where(draw.random(labels.shape) < 0.25, 1 - labels, labels)
    return np.where(draw.random(labels.shape) < share, verdict, np.nan).astype(np.float32)


def figures(simulation: Simulation) -> dict[str, float]:
    return simulation.evaluator.label_diagnostics(simulation.clients)[0]


# ---- by what labels are judged


@pytest.mark.parametrize(
    ("name", "verified", "mask", "noise", "kind", "share"),
    [
        ("synthetic", "all", "none", False, DRAWN, 1.0),
        ("csv", None, "none", False, UNKNOWN, 0.0),
        ("csv", None, "none", True, FILES, 1.0),
        ("csv", None, "classes", False, FILES, 0.5),  # the hidden cells alone
        ("csv", None, "classes", True, FILES, 1.0),
        ("csv", "some", "none", False, VERIFIED, None),
        ("csv", "some", "classes", True, VERIFIED, None),
    ],
)
def test_what_training_labels_are_judged_by(name, verified, mask, noise, kind, share) -> None:
    labels = {"all": make_dataset().labels, "some": some_verified(), None: None}[verified]
    dataset = replace(real(verified=labels), name=name)
    scenario = make_scenario(dataset, mask=mask, noise=0.3 * noise)
    found = reference(dataset, scenario, noise=noise)
    train = dataset.part == TRAIN
    assert found.kind == kind
    known = ~np.isnan(found.labels[train])
    if share is None:
        np.testing.assert_array_equal(found.labels, labels)
    else:
        assert known.mean() == share
    if kind == FILES and not noise:
        assert not (known & scenario.annotated[train]).any()


def test_without_truth_no_figure_needs_it() -> None:
    dataset = real()
    trace = simulate(make_config("fednml"), dataset, make_scenario(dataset))
    row = trace.simulation.history[-1]
    assert not [name for name in row if name.removeprefix("labels_").startswith(JUDGED)]
    assert {"corrected_cells", "flagged_images"} <= trace.result["labels"].keys()
    assert trace.result["truth"] == {
        "reference": "unknown",
        "train_cells": 0,
        "val_cells": 0,
        "test_cells": 0,
    }


def test_with_hidden_cells_alone_only_pseudo_labels_are_judged_and_by_the_files() -> None:
    dataset = real()
    scenario = make_scenario(dataset, mask="cells")
    trace = simulate(make_config("fednml"), dataset, scenario)
    found = trace.result["labels"]
    assert not [name for name in found if name.startswith(("noise_", "correction_p", "flip_p"))]
    right = total = 0
    for client in trace.simulation.clients:
        labels, files = client.labels, dataset.labels[scenario.rows(client.index)]
        guessed = ~labels.annotated & (labels.weight > 0)
        right += ((labels.target >= 0.5) == files)[guessed].sum()
        total += guessed.sum()
    assert found["pseudo_accuracy"] == pytest.approx(right / total)
    assert trace.result["truth"]["reference"] == "files"


def test_flagged_images_are_counted_whether_or_not_they_can_be_judged() -> None:
    with_truth, without = make_dataset(), real()
    counts = [
        simulate(make_config("fednml"), data, make_scenario(data)).result["labels"]
        for data in (with_truth, without)
    ]
    names = ("flagged_images", "corrected_cells", "flipped_cells", "pseudo_cells")
    assert [counts[0][n] for n in names] == [counts[1][n] for n in names]
    assert counts[0]["flagged_images"] > 0


# ---- verified labels


def test_figures_are_those_of_the_verified_cells_alone() -> None:
    verified = some_verified()
    dataset = real(verified=verified)
    scenario = make_scenario(dataset, mask="cells", noise=0.2)
    found = figures(make_simulation(make_config("fedavg", noise=0.2), dataset, scenario))
    judged = scenario.annotated & ~np.isnan(verified) & (scenario.client >= 0)[:, None]
    wrong = judged & (scenario.observed != verified)
    assert found["noise_before"] == wrong.sum() / judged.sum() > 0
    # what is not verified plays no role
    other = np.where(judged, scenario.noisy, 1 - scenario.noisy)
    other = np.where(scenario.annotated, other, scenario.noisy)
    again = replace(scenario, noisy=other)
    simulation = make_simulation(make_config("fedavg", noise=0.2), dataset, again)
    assert figures(simulation)["noise_before"] == found["noise_before"]


def test_predictions_are_judged_by_verified_labels_and_else_by_the_files() -> None:
    verified = some_verified()
    dataset = real(verified=verified)
    simulation = make_simulation(make_config("fedavg"), dataset, make_scenario(dataset))
    for part, name in ((VAL, "val_cells"), (TEST, "test_cells")):
        truth = simulation.evaluator.predict(simulation.scored, part)[1]
        rows = dataset.part == part
        expected = np.where(np.isnan(verified), dataset.labels, verified)[rows]
        np.testing.assert_array_equal(truth, expected)
        assert (truth != dataset.labels[rows]).any()
        assert simulation.evaluator.truth[name] == (~np.isnan(verified[rows])).sum()


def test_the_clean_bound_trains_on_verified_labels() -> None:
    dataset = real(verified=some_verified())
    scenario = make_scenario(dataset, mask="classes")
    simulation = make_simulation(make_config("clean"), dataset, scenario)
    for client in simulation.clients:
        rows = scenario.rows(client.index)
        np.testing.assert_array_equal(client.labels.observed, dataset.best_known[rows])
    assert figures(simulation)["noise_before"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_permuted_verified_labels_change_no_weight(method: str) -> None:
    verified = some_verified(0.8)
    runs = []
    for order in (np.arange(60), derive(1, "order").permutation(60)):
        dataset = real(verified=verified[order])
        trace = simulate(make_config(method), dataset, make_scenario(dataset, mask="cells"))
        runs.append(trace)
    assert runs[0].crossed() == runs[1].crossed()
    assert runs[0].labels() == runs[1].labels()
    assert torch.equal(runs[0].vector, runs[1].vector)
    assert runs[0].result["labels"] != runs[1].result["labels"]  # but the figures are others


# ---- what is shown


def table(scenario: Scenario, dataset: ImageDataset, *, noise: bool = False) -> Any:
    return client_table(scenario, dataset, truth=reference(dataset, scenario, noise=noise))


def test_the_table_of_clients_says_unknown() -> None:
    dataset = real()
    columns = ["noise_samples", "noise_cells", "omission", "commission"]
    assert (table(make_scenario(dataset), dataset)[columns] == "unknown").all(axis=None)
    hidden = table(make_scenario(dataset, mask="cells"), dataset)
    assert (hidden[columns] == "unknown").all(axis=None)
    noisy = table(make_scenario(dataset, noise=0.3), dataset, noise=True)
    assert (noisy["noise_cells"] > 0).all()


def test_the_table_of_clients_counts_images_of_which_something_is_verified() -> None:
    verified = np.full((60, 4), np.nan, np.float32)
    dataset = real()
    verified[:2] = dataset.labels[:2]  # image 0 at client 0, image 1 at client 1
    verified[0, 0] = 1 - verified[0, 0]
    found = table(make_scenario(dataset), replace(dataset, verified=verified))
    assert found["noise_samples"].tolist() == [1.0, 0.0, "unknown"]
    assert found["noise_cells"].tolist() == [0.25, 0.0, "unknown"]


@pytest.mark.parametrize(
    ("changes", "title", "marks"),
    [
        ({"verified": None}, "no truth: it is unknown", set()),
        ({}, "verified labels, where there are any", {"✓"}),
        ({"name": "synthetic"}, "and the truth", {"✓"}),
    ],
)
def test_pictures_mark_nothing_right_that_nobody_has_verified(changes, title, marks) -> None:
    dataset = replace(make_dataset(), **changes)
    simulation = make_simulation(make_config("fedavg"), dataset, make_scenario(dataset))
    figure = simulation.evaluator.label_picture(simulation.clients[0])
    texts = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert title in figure.get_suptitle()
    assert texts & {"✓", "✗"} == marks
    assert ("?" in texts) == (not marks)


# ---- the command line


@pytest.fixture
def files(csv_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(csv_data, tmp_path / "data"))


def options(files: Path, **settings: Any) -> list[str]:
    return command(files, files.parent / "save", rounds=2, **settings)


def test_a_run_on_real_labels_claims_nothing_about_them(files, capsys) -> None:
    assert call_main(options(files, method="fednml", name="run")) == 0
    assert WORDS[UNKNOWN] in capsys.readouterr().out
    folder = files.parent / "save" / "runs" / "run"
    with (folder / "clients.csv").open(encoding="utf-8") as file:
        assert {row["noise_cells"] for row in csv.DictReader(file)} == {"unknown"}
    columns = {name for row in read_metrics(folder) for name in row}
    assert not [name for name in columns if name.removeprefix("labels_").startswith(JUDGED)]
    assert json.loads((folder / "result.json").read_text())["truth"]["reference"] == "unknown"


def add_truth(files: Path) -> dict[str, Any]:
    write_table(files / "true_data.csv", read_table(files / "train_data.csv")[:9])
    return {}


CURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "verified labels": add_truth,
    "noise": lambda files: {"noise": 0.4},
    "missing": lambda files: {"missing": 0.5},
    "another method": lambda files: {"method": "fedavg"},
}


@pytest.mark.parametrize("cure", CURES)
def test_the_bound_is_refused_where_there_is_no_truth(files, capsys, cure: str) -> None:
    settings = {"method": "clean"}
    assert call_main([*options(files, **settings), "--dry-run"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "--method clean: trains on true labels, but nobody" in told[0]
    assert not (files.parent / "save").exists()
    settings |= CURES[cure](files)
    assert call_main([*options(files, **settings), "--dry-run"]) == 0


def test_resume_notices_other_verified_labels(files, capsys) -> None:
    add_truth(files)
    assert call_main(options(files, method="fedavg", name="run")) == 0
    folder = files.parent / "save" / "runs" / "run"
    (folder / "DONE").unlink()
    assert call_main(["--resume", folder, "--quiet"]) == 0  # the same data: goes on
    (folder / "DONE").unlink()
    rows = read_table(files / "true_data.csv")
    rows[1][1] = str(1 - int(rows[1][1]))
    write_table(files / "true_data.csv", rows)
    assert call_main(["--resume", folder, "--quiet"]) == 2
    assert "the labels are not those" in capsys.readouterr().err


def test_verified_labels_leave_the_scenario_as_it_is(files) -> None:
    for name in ("without", "with"):
        assert call_main(options(files, method="fedavg", name=name)) == 0
        add_truth(files)
    runs = files.parent / "save" / "runs"
    one, other = (runs / name for name in ("without", "with"))
    assert len(list((files.parent / "save" / "splits").iterdir())) == 1
    for file in ("assignments.csv", "model.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_training_rows_come_first() -> None:
    """What the cases above rest on."""
    assert (make_dataset().part[:TRAINING] == TRAIN).all()
