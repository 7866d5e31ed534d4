"""No number where nothing can be measured, and how few images are marked."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import (
    call_main,
    command,
    make_config,
    make_dataset,
    make_scenario,
    read_table,
    simulate,
    write_table,
)

from src.results import final_table
from utils_.datasets.base import TEST, VAL, ImageDataset
from utils_.metrics import multilabel_metrics
from utils_.one_sided import one_sided, report_parts
from utils_.rng import derive
from utils_.uncertainty import DRAWS, SCORES, bootstrap_intervals, few

NUMBERS = ("ap", "auroc", "precision", "recall", "f1", "balanced_accuracy")
MEANS = ("mAP", "macro_f1", "macro_recall", "macro_precision", "balanced_accuracy", "macro_auroc")
B = np.nan  # blank

# Columns as public label files have them, and whether a score can be had from them.
COLUMNS: dict[str, tuple[list[float], bool]] = {
    "1 and 0": ([1, 0, 1, 0, 0, 1], True),
    # CheXpert: many findings are 1 or blank, since a report seldom says what is absent
    "1 or blank": ([1, B, 1, B, B, 1], False),
    # ChestX-ray14's Hernia in a small subset; scikit-learn#8245 gave 0 or 1 by version
    "0 alone": ([0, 0, 0, 0, 0, 0], False),
    # scikit-learn#24381: precision-recall and ROC answered all-positive columns differently
    "1 alone": ([1, 1, 1, 1, 1, 1], False),
    # MIMIC-CXR's Fracture in a site's own test part: 0 or blank
    "0 or blank": ([0, B, 0, B, B, 0], False),
    # PadChest joined with another set: the other set has no such column
    "blank": ([B, B, B, B, B, B], False),
    # VinBigData's "No finding" by one reader: one 1, one 0, the rest blank
    "one of each": ([1, B, 0, B, B, B], True),
    # RFMiD's ODPM and HR: no positive in training, one in a test of six
    "one positive": ([0, 0, 0, 0, 0, 1], True),
    # an HAM10000 subset of melanomas, with one nevus among them
    "one negative": ([1, 1, 1, 0, 1, 1], True),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_can_be_measured(kind: str) -> None:
    truth, can = COLUMNS[kind]
    beside = [1, 0, 0, 1, 0, 1]
    probability = derive(0, kind).random((6, 2))
    metrics = multilabel_metrics(probability, np.array([truth, beside], float).T)
    for name in NUMBERS:
        assert np.isnan(metrics.per_class[name][0]) == (not can), name
    alone = multilabel_metrics(probability[:, 1:], np.array([beside], float).T).overall
    if not can:  # it is in no mean
        assert {n: metrics.overall[n] for n in MEANS} == {n: alone[n] for n in MEANS}
    counts = [metrics.overall[f"classes_{k}"] for k in ("evaluated", "without_positives")]
    assert counts[0] == 1 + can
    assert sum(counts) + metrics.overall["classes_without_negatives"] == 2
    named = one_sided(np.array([truth, beside], float).T, ("it", "other"))
    assert (named["no_positive"] + named["no_negative"] == ["it"]) == (not can)


def test_noise_images_and_columns_of_1_or_blank_have_no_score() -> None:
    """What gave a mAP of 0.716 and an AP of 1: fourteen classes, four of them never 0."""
    draw = derive(3, "chexpert")
    truth = (draw.random((200, 14)) < 0.3).astype(float)
    truth[:, :4] = np.where(truth[:, :4] == 1, 1, np.nan)
    metrics = multilabel_metrics(draw.random((200, 14)), truth)
    assert np.isnan(metrics.per_class["ap"][:4]).all()
    assert metrics.overall["mAP"] == pytest.approx(0.3, abs=0.06)  # the share of positives
    assert metrics.overall["classes_evaluated"] == 10
    assert metrics.overall["classes_without_negatives"] == 4


# ---- intervals


def test_few_is_below_ten_of_either_kind_and_not_none() -> None:
    positives = np.array([0, 1, 9, 10, 10, 10, 19, 20])
    evaluated = np.array([20, 20, 20, 20, 19, 11, 20, 20])
    expected = [False, True, True, False, True, True, True, False]
    assert few(positives, evaluated).tolist() == expected


def test_an_interval_is_that_of_a_plain_bootstrap() -> None:
    draw = derive(0, "case")
    truth = np.array([1, 0, 0, 1, np.nan, 0, 1, 0, 0, 0, 1, 0.0])
    score = (draw.random(12) * 0.6 + 0.4 * np.nan_to_num(truth)).astype(np.float32)
    known = ~np.isnan(truth)
    p, y = score[known], truth[known]
    values: dict[str, list[float]] = {name: [] for name in SCORES}
    rows = derive(5, "bootstrap").integers(0, len(y), (len(y), DRAWS))
    for chosen in rows.T:
        if 0 < y[chosen].sum() < len(y):
            found = multilabel_metrics(p[chosen, None], y[chosen, None]).per_class
            for name in SCORES:
                values[name].append(found[name][0])
    expected = {name: tuple(np.percentile(values[name], [2.5, 97.5])) for name in SCORES}
    found = bootstrap_intervals([score], truth, seed=5)
    for name in SCORES:
        assert found[name] == pytest.approx(expected[name])
    assert bootstrap_intervals([score], truth, seed=5) == found
    twice = bootstrap_intervals([score, score], truth, seed=5)  # two models that agree
    assert all(twice[name] == pytest.approx(found[name]) for name in SCORES)


def test_of_one_kind_of_label_there_is_no_interval() -> None:
    assert bootstrap_intervals([np.zeros(4)], np.array([1, 1, np.nan, 1]), seed=1) == {}


def test_more_images_make_narrower_intervals() -> None:
    widths = []
    for copies in (1, 20):
        truth = np.tile([1, 0, 0, 1, 0, 0], copies)
        score = np.tile([0.9, 0.2, 0.7, 0.6, 0.1, 0.3], copies)
        low, high = bootstrap_intervals([score], truth, seed=1)["ap"]
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


# ---- what a run says


def one_sided_dataset() -> ImageDataset:
    """class0 has no negative in val and test, class1 no positive in test."""
    dataset = make_dataset()
    labels = dataset.labels.copy()
    held_out = dataset.part != 0
    labels[held_out & (labels[:, 0] == 0), 0] = np.nan
    labels[(dataset.part == TEST), 1] = 0
    return replace(dataset, labels=labels, verified=labels)


def test_the_result_names_what_is_not_measured_and_shows_a_dash() -> None:
    dataset = one_sided_dataset()
    result = simulate(make_config("fedavg"), dataset, make_scenario(dataset)).result
    assert result["not_measured"] == {
        "val": {"no_positive": [], "no_negative": ["class0"]},
        "test": {"no_positive": ["class1"], "no_negative": ["class0"]},
    }
    for name in ("class0", "class1"):
        own = result["per_class"][name]
        assert all(own[number] is None for number in NUMBERS)
        assert own["few"] is False and own["intervals"] is None
    for name in ("class2", "class3"):
        own = result["per_class"][name]
        assert own["few"] is True and own["intervals"].keys() == set(SCORES)
        low, high = own["intervals"]["ap"]
        assert 0 <= low <= high <= 1
    assert result["last"]["classes_evaluated"] == 2
    shown = final_table(json.loads(json.dumps(result)))
    assert "2 of 4 classes could be measured; without a positive: class1; " in shown
    assert "without a negative: class0" in shown
    assert "rough: class2 AP " in shown and "rough: class0" not in shown


def test_a_test_part_that_measures_nothing_shows_dashes_and_no_number() -> None:
    dataset = make_dataset()
    labels = np.where(dataset.labels == 1, 1, np.nan).astype(np.float32)
    dataset = replace(dataset, labels=labels, verified=labels)
    result = simulate(make_config("fedavg"), dataset, make_scenario(dataset)).result
    assert np.isnan(result["last"]["mAP"]) and result["val_selected"] is None
    lines = final_table(result).splitlines()
    assert lines[1].split() == ["last", "round", *"-----"]
    assert "0 of 4 classes could be measured" in "\n".join(lines)
    assert "nan" not in "\n".join(lines)
    from_file = json.loads(json.dumps(result).replace("NaN", "null"))  # as result.json has it
    assert final_table(from_file).splitlines()[1] == lines[1]


def test_the_table_of_older_runs_can_still_be_shown() -> None:
    dataset = make_dataset()
    result = simulate(make_config("fedavg"), dataset, make_scenario(dataset)).result
    old = {name: value for name, value in result.items() if name not in ("not_measured", "truth")}
    old.pop("warmup_only")
    for own in old["per_class"].values():
        own.pop("few"), own.pop("intervals")
    assert len(final_table(old).splitlines()) == 5


def told(caplog: pytest.LogCaptureFixture, dataset: ImageDataset) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fednml"):
        report_parts(dataset, dataset.part)
    return caplog.text


def test_the_start_of_a_run_names_them(caplog) -> None:
    text = told(caplog, one_sided_dataset())
    assert (
        "test: of its images none is known to show class1 and none is known to lack class0: "
        "nothing can be measured there, so 2 of 4 classes are scored; write 0 in the label files"
        in text
    )
    assert "val: of its images none is known to lack class0: " in text
    assert "test: fewer than 10 positives or negatives of class2 (" in text


def test_enough_of_both_is_not_spoken_of(caplog) -> None:
    labels = np.tile(np.float32([[1, 0], [0, 1]]), (30, 1))
    dataset = replace(
        make_dataset(), labels=labels, verified=labels, classes=("a", "b"),
        part=np.repeat(np.uint8([0, VAL, TEST]), 20),
    )  # fmt: skip
    text = told(caplog, dataset)
    assert "fewer than 10" not in text and "none is known" not in text
    assert "test: 20 images tell little" in text  # of which ten are positive: only the size is said


# ---- files as CheXpert's, end to end


@pytest.fixture
def files(csv_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(csv_data, tmp_path / "data"))


def blank_zeros(path: Path, columns: tuple[int, ...]) -> None:
    rows = read_table(path)
    for row in rows[1:]:
        for column in columns:
            row[column] = row[column] if row[column] == "1" else ""
    write_table(path, rows)


def result_of(files: Path, name: str, **settings: Any) -> dict[str, Any]:
    options = {"method": "fedavg", "rounds": 1, "name": name} | settings
    assert call_main(command(files, files.parent / "save", **options)) == 0
    return json.loads((files.parent / "save" / "runs" / name / "result.json").read_text())


def test_a_class_that_no_site_annotates_is_called_not_trained(files, capsys) -> None:
    header, *rows = read_table(files / "train_data.csv")
    blank = [[*row[:2], "", *row[3:]] for row in rows]
    write_table(files / "train_data.csv", [header, *blank])
    result = result_of(files, "silent")
    assert result["not_trained"] == ["class1"]
    assert "not trained, since no site annotates them: class1" in capsys.readouterr().out


def test_columns_of_1_or_blank_are_told_and_the_advice_works(files, capsys, caplog) -> None:
    for part in ("train", "test"):
        blank_zeros(files / f"{part}_data.csv", (1, 2))
    with caplog.at_level(logging.WARNING, logger="fednml"):
        result = result_of(files, "plain")
    assert result["not_measured"]["test"]["no_negative"] == ["class0", "class1"]
    assert result["last"]["classes_evaluated"] == 2
    assert (
        "no site has an annotated negative of class0, class1; --assume-negative takes missing "
        "cells for negatives" in caplog.text
    )
    assert "none is known to lack class0, class1: " in caplog.text
    # Followed: sites then have negatives, and zeros in the test file make it measurable.
    rows = read_table(files / "test_data.csv")
    write_table(files / "test_data.csv", [[cell or "0" for cell in row] for row in rows])
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fednml"):
        settings = {"method": "fedavg", "rounds": 1, "name": "cured"}
        cured = command(files, files.parent / "save", **settings)
        assert call_main([*cured, "--assume-negative"]) == 0
    assert "annotated negative" not in caplog.text
    folder = files.parent / "save" / "runs" / "cured"
    cured_result = json.loads((folder / "result.json").read_text())
    assert cured_result["not_measured"]["test"] == {"no_positive": [], "no_negative": []}
    assert cured_result["last"]["classes_evaluated"] == 4
