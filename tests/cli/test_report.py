"""Run folders to tables: statistics against numpy, bounds, what is never averaged, the script."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from tiny import ROOT

from utils_.errors import UserError
from utils_.figures import draw_overview
from utils_.finished_runs import SELECTIONS, collect
from utils_.report import overview_table, overview_values, results_table

SCRIPT = ROOT / "scripts" / "table.py"


def write_run(
    folder: Path,
    method: str,
    mAP: float,  # noqa: N803
    *,
    seed: int = 1,
    leaky: bool = False,
    bound: bool = False,
    tuned: dict[str, float] | None = None,
    **settings,
) -> Path:
    """A finished run as the program leaves it."""
    config = {"dataset": "isic", "method": method, "param": {}, "seed": seed, "data_seed": 1}
    config |= {"noise": 0.4, "noise_type": "paper", "missing": 0.5, "missing_type": "classes"}
    config |= {"rounds": 20, "name": folder.name, "device": "cpu"} | settings
    metrics = {"mAP": mAP, "macro_f1": mAP / 2, "macro_recall": 1 - mAP}
    metrics |= {"balanced_accuracy": 0.5 + mAP / 2, "macro_auroc": 0.8} | (tuned or {})
    result = {"status": "done", "method": method, "dataset": config["dataset"], "seed": seed}
    result |= {"leaky": leaky, "bound": bound, "rounds": 20, "classes": ["a", "b"]}
    result |= {"last": metrics | {"mAP": mAP - 0.1}, "last5": metrics, "val_selected": None}
    result |= {"oracle_selected": metrics, "labels": {"noise_recall": 0.5}, "seconds": 9.5}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "env.json").write_text(json.dumps({"hardware": "2 cores"}))
    (folder / "DONE").touch()
    return folder


def cells(table: str, section: int = 0) -> dict[str, list[str]]:
    """Rows of one Markdown table: {method: the other cells}, stars kept."""
    body = table.split("### ")[1 + section].split("\n\n")[1]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in body.splitlines()]
    assert len({len(line) for line in body.splitlines()}) == 1, "not aligned"
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.fixture
def three_seeds(tmp_path):
    """FedAvg, FedNML, a leaky FedNML and the clean bound, three seeds each."""
    values = {
        "fedavg": [0.30, 0.32, 0.31],
        "fednml": [0.40, 0.38, 0.45],
        "leak": [0.60, 0.61, 0.62],
        "clean": [0.50, 0.52, 0.49],
    }
    for name, row in values.items():
        for seed, value in enumerate(row, 1):
            method = "fednml" if name == "leak" else name
            param = {"hidden_label_leak": True} if name == "leak" else {}
            flags = {"leaky": name == "leak", "bound": name == "clean", "param": param}
            write_run(tmp_path / f"{name}-{seed}", method, value, seed=seed, **flags)
    return tmp_path, values


def test_means_deviations_gap_and_order(three_seeds):
    folder, values = three_seeds
    rows = cells(results_table(collect(folder)))
    assert list(rows) == ["fedavg", "fednml", "fednml (leaky)", "clean (bound)"]
    for label, name in zip(rows, ("fedavg", "fednml", "leak", "clean"), strict=True):
        value = np.array(values[name])
        assert rows[label][0].strip("*") == f"{value.mean():.3f} ± {value.std(ddof=1):.3f}"
        assert rows[label][5] == "3"
        low, high = np.array(values["fedavg"]), np.array(values["clean"])
        share = ((value - low) / (high - low)).mean()
        assert rows[label][6] == f"{100 * share:.0f} %"
    assert rows["fedavg"][6] == "0 %" and rows["clean (bound)"][6] == "100 %"


def test_best_is_bold_apart_from_bounds_and_leaky_runs(three_seeds):
    rows = cells(results_table(collect(three_seeds[0])))
    bold = {label: [cell.startswith("**") for cell in row] for label, row in rows.items()}
    # mAP, F1, recall (which the test data let fall with mAP), BACC, AUROC (all alike)
    # those at threshold 0.5 would be bold for what the adjustment of logits shifts
    assert bold["fednml"] == [True, False, False, False, True, False, False]
    assert bold["fedavg"] == [False, False, False, False, True, False, False]
    assert not any(bold["fednml (leaky)"]) and not any(bold["clean (bound)"])


def heads(table: str, section: int = 0) -> list[str]:
    line = table.split("### ")[1 + section].split("\n\n")[1].splitlines()[0]
    return [cell.strip() for cell in line[1:-1].split("|")]


def test_columns_at_validation_thresholds_are_shown_where_a_run_has_them(tmp_path):
    old = ["method", "mAP", "macro-F1", "recall", "BACC", "AUROC", "seeds", "gap closed"]
    write_run(tmp_path / "a", "fedavg", 0.3, tuned={})
    write_run(tmp_path / "b", "fednml", 0.4, dataset="odir")
    assert heads(results_table(collect(tmp_path))) == old
    scores = {"macro_f1_tuned": 0.2, "balanced_accuracy_tuned": 0.7}
    better = {"macro_f1_tuned": 0.3, "balanced_accuracy_tuned": 0.6}
    write_run(tmp_path / "c", "fednml", 0.4, tuned=scores)
    write_run(tmp_path / "d", "fedprox", 0.2, tuned=better)
    table = results_table(collect(tmp_path))
    assert heads(table) == [*old[:6], "F1 (val. thr.)", "BACC (val. thr.)", *old[6:]]
    assert heads(table, 1) == old  # no run of the other setting has them
    rows = cells(table)
    assert rows["fedavg"][5:7] == ["–", "–"]
    assert rows["fednml"][5:7] == ["0.200", "**0.700**"]
    assert rows["fedprox"][5:7] == ["**0.300**", "0.600"]
    caption = table.split("\n\n")[-1]
    assert "macro-F1, recall and BACC, at threshold 0.5, are never bold" in caption


def test_assumed_negatives_part_settings_but_not_their_bound(tmp_path):
    write_run(tmp_path / "a", "fedavg", 0.3, assume_negative=False)
    write_run(tmp_path / "b", "fedavg", 0.4, assume_negative=True)
    write_run(tmp_path / "c", "clean", 0.5, noise=0, missing=0, bound=True, assume_negative=False)
    table = results_table(collect(tmp_path))
    assert re.findall("### (.*)", table)[1:] == [
        "isic, noise 0.4 (paper), missing 0.5 (classes)",
        "isic, noise 0.4 (paper), missing 0.5 (classes, negatives assumed)",
    ]
    assert all("clean (bound)" in cells(table, i) for i in (1, 2))


def test_caption_names_rule_seeds_hardware_and_flags(three_seeds):
    frame = collect(three_seeds[0])
    caption = results_table(frame, selection="oracle_selected").split("\n\n")[-1]
    assert "oracle_selected" in caption and "optimistic" in caption
    assert "Seeds: 1, 2, 3" in caption and "Hardware: 2 cores." in caption
    assert "(leaky)" in caption and "(bound)" in caption


def test_selection_picks_the_numbers(tmp_path):
    write_run(tmp_path / "a", "fednml", 0.45)
    frame = collect(tmp_path)
    assert cells(results_table(frame, selection="last5"))["fednml"][0] == "0.450"
    assert cells(results_table(frame, selection="last"))["fednml"][0] == "0.350"
    assert cells(results_table(frame, selection="val_selected"))["fednml"][0] == "–"
    with pytest.raises(UserError, match="did you mean 'last5'"):
        results_table(frame, selection="last-5")


def test_gap_is_blank_or_partial_where_the_bounds_do_not_carry_it(tmp_path):
    write_run(tmp_path / "avg1", "fedavg", 0.30, seed=1)
    write_run(tmp_path / "avg2", "fedavg", 0.30, seed=2)
    for seed in (1, 2, 3):
        write_run(tmp_path / f"nml{seed}", "fednml", 0.40, seed=seed)
    assert cells(results_table(collect(tmp_path)))["fednml"][6] == ""
    write_run(tmp_path / "clean2", "clean", 0.30, seed=2, bound=True)  # denominator 0
    assert cells(results_table(collect(tmp_path)))["fednml"][6] == ""
    write_run(tmp_path / "clean1", "clean", 0.50, seed=1, bound=True)
    assert cells(results_table(collect(tmp_path)))["fednml"][6] == "50 % (1 of 3 seeds)"


def test_unlike_runs_are_never_averaged(tmp_path):
    write_run(tmp_path / "a", "fednml", 0.4)
    write_run(tmp_path / "b", "fednml", 0.5, seed=2, rounds=100)
    write_run(tmp_path / "c", "fednml", 0.6, seed=3, noise=0.0, missing=4)
    write_run(tmp_path / "d", "fednml", 0.7, seed=4, device="cuda")
    table = results_table(collect(tmp_path))
    assert re.findall("### (.*)", table) == [
        "isic, noise 0, missing 4 (classes), rounds 20",
        "isic, noise 0.4 (paper), missing 0.5 (classes), rounds 100",
        "isic, noise 0.4 (paper), missing 0.5 (classes), rounds 20",
    ]
    assert [cells(table, i)["fednml"][5] for i in range(3)] == ["1", "1", "2"]


def test_parameters_that_differ_make_rows_of_their_own(tmp_path):
    write_run(tmp_path / "a", "fednml", 0.4)
    write_run(tmp_path / "b", "fednml", 0.5, param={"kd": 0.5, "ramp": 2})
    write_run(tmp_path / "c", "fednml", 0.6, param={"kd": 0.9, "ramp": 2})
    rows = cells(results_table(collect(tmp_path)))
    assert list(rows) == ["fednml", "fednml kd=0.5 ramp=2", "fednml kd=0.9 ramp=2"]


def test_a_clean_run_bounds_settings_that_differ_in_flaws_only(tmp_path):
    for noise in (0.2, 0.4):
        write_run(tmp_path / f"avg{noise}", "fedavg", 0.3, noise=noise)
        write_run(tmp_path / f"nml{noise}", "fednml", 0.4, noise=noise)
    write_run(tmp_path / "odir", "fedavg", 0.3, dataset="odir")
    write_run(tmp_path / "clean", "clean", 0.5, noise=0, missing=0, bound=True)
    table = results_table(collect(tmp_path))
    assert [cells(table, i).get("fednml", [""])[-1] for i in range(4)] == ["", "50 %", "50 %", ""]
    assert "clean (bound)" in cells(table, 1) and "clean (bound)" not in cells(table, 3)


def test_the_overview_has_a_column_for_each_setting(tmp_path):
    for noise, fedavg, fednml in ((0.2, 0.30, 0.40), (0.4, 0.28, 0.26)):
        write_run(tmp_path / f"avg{noise}", "fedavg", fedavg, noise=noise)
        write_run(tmp_path / f"nml{noise}", "fednml", fednml, noise=noise)
    write_run(tmp_path / "prox", "fedprox", 0.2, noise=0.2)
    write_run(tmp_path / "clean", "clean", 0.5, noise=0, missing=0, bound=True)
    table = overview_table(collect(tmp_path)).split("\n\n")
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table[0].splitlines()]
    assert rows[0] == ["method", "noise 0.2 (paper)", "noise 0.4 (paper)"]
    found = {row[0]: row[1:] for row in rows[2:]}
    assert list(found) == ["fedavg", "fednml", "fedprox", "clean (bound)"]
    assert found["fedavg"] == ["0.300 (0 %)", "**0.280** (0 %)"]
    assert found["fednml"] == ["**0.400** (50 %)", "0.260 (-9 %)"]
    assert found["fedprox"] == ["0.200 (-50 %)", ""]
    assert found["clean (bound)"] == ["0.500 (100 %)"] * 2
    assert table[1].startswith("All: isic, missing 0.5 (classes).")


def test_the_figure_shows_the_numbers_of_the_overview(tmp_path, monkeypatch):
    for noise in (0.2, 0.6):
        for seed, score in enumerate((0.3, 0.5)):
            setting = {"noise": noise, "seed": seed}
            write_run(tmp_path / f"a{noise}{seed}", "fedavg", score - noise / 10, **setting)
            write_run(tmp_path / f"b{noise}{seed}", "fednml", score, **setting)
    values = overview_values(collect(tmp_path))
    assert list(values) == ["noise 0.2 (paper)", "noise 0.6 (paper)"]
    assert [list(methods) for methods in values.values()] == [["fedavg", "fednml"]] * 2
    np.testing.assert_allclose(values["noise 0.6 (paper)"]["fedavg"], [0.24, 0.44])
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    with pytest.raises(FileNotFoundError):  # nothing was drawn, so nothing is put in place
        draw_overview(values, tmp_path / "figure.png")
    (figure,) = kept
    for panel, methods in zip(figure.axes, values.values(), strict=True):
        dots = [line.get_xdata() for line in panel.lines if line.get_linestyle() == "None"]
        expected = [part for seeds in methods.values() for part in (seeds, [seeds.mean()])]
        for found, numbers in zip(dots, expected, strict=True):
            np.testing.assert_allclose(found, numbers)


def test_the_overview_tells_seeds_and_keeps_odd_settings_whole(tmp_path):
    plain, odd = {"aggregator_param": {}}, {"aggregator_param": {"share": 0.1, "steps": 3}}
    for seed in (1, 2):
        write_run(tmp_path / f"avg{seed}", "fedavg", 0.3, seed=seed, **plain)
        write_run(tmp_path / f"clean{seed}", "clean", 0.5, seed=seed, bound=True, **plain)
    write_run(tmp_path / "prox", "fedprox", 0.4, **plain)
    write_run(tmp_path / "other", "fedavg", 0.2, **odd)
    write_run(tmp_path / "alone", "clean", 0.8, bound=True, rounds=99, **plain)
    lines = overview_table(collect(tmp_path)).splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[:5]]
    assert rows[0][1:] == [
        "aggregator_param {'share': 0.1, 'steps': 3}, rounds 20",
        "aggregator_param {}, rounds 20",
        "aggregator_param {}, rounds 99",
    ]
    found = {row[0]: row[1:] for row in rows[2:]}
    assert found["fedprox"] == ["", "**0.400** (50 %, 1 of 2 seeds)", ""]
    assert found["clean (bound)"] == ["", "0.500 ± 0.000 (100 %)", "0.800"]


def test_a_repeated_run_counts_once_and_the_newest_wins(tmp_path):
    old = write_run(tmp_path / "old", "fednml", 0.4)
    os.utime(old / "result.json", (1, 1))
    write_run(tmp_path / "new", "fednml", 0.5)
    table = results_table(collect(tmp_path))
    assert cells(table)["fednml"][0] == "0.500" and cells(table)["fednml"][5] == "1"
    assert "1 older repetition(s)" in table


def test_collect_reads_every_number(tmp_path):
    run = write_run(tmp_path / "deep" / "a", "fednml", 1 / 3, seed=7)
    frame = collect([tmp_path, run])  # found twice, read once
    assert len(frame) == 1 and frame.attrs["skipped"] == []
    line = frame.iloc[0]
    assert line["last5.mAP"] == 1 / 3 and line["labels.noise_recall"] == 0.5
    assert (line["seed"], line["config.noise"], line["hardware"]) == (7, 0.4, "2 cores")
    assert (line["leaky"], line["bound"], line["run"]) == (False, False, str(run))


def damage_text(text: str):
    return lambda run: (run / "result.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "DONE").unlink(), "not finished"),
        (lambda run: (run / "result.json").unlink(), "result.json"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml is damaged"),
        (lambda run: (run / "config.yaml").write_text("dataset: isic"), "lacks the number 'noise'"),
        (lambda run: (run / "env.json").write_text("{"), "env.json is damaged"),
        (damage_text('{"method": "fed'), "result.json is damaged"),
        (damage_text("[]"), "result.json is not a table"),
        (damage_text('{"method": "a"}'), "lacks dataset, seed, leaky, bound, last"),
        (lambda run: (run / "result.json").write_bytes(b"\xff\xfe\x00"), "result.json is damaged"),
    ],
)
def test_unfinished_and_damaged_runs_are_named(tmp_path, damage, reason):
    write_run(tmp_path / "good", "fednml", 0.4)
    bad = write_run(tmp_path / "bad", "fednml", 0.9)
    damage(bad)
    frame = collect(tmp_path)
    assert frame["run"].tolist() == [str(tmp_path / "good")]
    (skipped,) = frame.attrs["skipped"]
    assert skipped.startswith(f"{bad}: ") and reason in skipped and "\n" not in skipped


@pytest.mark.parametrize("value", ["0.5", [0.5], {"mAP": 1}])
def test_a_metric_that_is_no_number_is_damage(tmp_path, value):
    run = write_run(tmp_path / "a", "fednml", 0.4)
    result = json.loads((run / "result.json").read_text())
    result["last5"]["mAP"] = value
    (run / "result.json").write_text(json.dumps(result))
    assert "'last5.mAP' is not a number" in collect(tmp_path).attrs["skipped"][0]


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return forked.run([SCRIPT, *arguments], cwd=cwd)


def test_script_prints_the_table_and_writes_csv(three_seeds, tmp_path_factory):
    folder, _ = three_seeds
    (folder / "fednml-1" / "DONE").unlink()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run_script(folder, "--csv", "out/runs.csv", "--selection", "last", cwd=elsewhere)
    assert done.returncode == 0
    assert done.stdout == results_table(collect(folder), selection="last") + "\n"
    assert done.stderr == f"left out {folder / 'fednml-1'}: not finished\n"
    assert len(pd.read_csv(elsewhere / "out" / "runs.csv")) == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "no finished run"),
        (["absent"], "absent: no such folder"),
        (["--selection", "best", "run"], "--selection best: unknown rule"),
        (["--selectoin", "last", "run"], "unrecognized arguments: --selectoin"),
        (["run", "--csv", "run/DONE/x.csv"], "--csv run/DONE/x.csv"),
        (["run", "--figure", "x.txt"], "--figure x.txt: give a file that ends in .png"),
        (["run", "--figure", "run/DONE/x.png"], "--figure run/DONE/x.png"),
    ],
)
def test_script_refuses_in_one_line(tmp_path, arguments, message):
    if "run" in arguments:
        write_run(tmp_path / "run", "fednml", 0.4)
    before = sorted(tmp_path.rglob("*"))
    done = run_script(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_every_selection_has_a_caption(tmp_path):
    write_run(tmp_path / "a", "fednml", 0.4)
    frame = collect(tmp_path)
    for selection, meaning in SELECTIONS.items():
        assert meaning in results_table(frame, selection=selection)


def test_the_rows_of_a_table_give_the_same_table(three_seeds, tmp_path):
    """What is committed is enough, and says nothing of the machine."""
    (folder, _), rows = three_seeds, tmp_path / "rows.csv"
    shown = run_script(folder, "--csv", rows, cwd=tmp_path)
    again = run_script(rows, cwd=tmp_path)
    assert shown.returncode == again.returncode == 0, again.stderr
    assert again.stdout == shown.stdout
    assert str(tmp_path.parent) not in rows.read_text()
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    bad = run_script(tmp_path / "bad.csv", cwd=tmp_path)
    assert bad.returncode == 2
    assert "lacks method" in bad.stderr


def test_an_option_younger_than_a_run_does_not_part_settings(tmp_path):
    write_run(tmp_path / "old", "fedavg", 0.3, seed=1)
    write_run(tmp_path / "new", "fednml", 0.4, seed=1)
    path = tmp_path / "new" / "config.yaml"
    path.write_text(path.read_text() + "min_positives: 0\n")
    table = results_table(collect(tmp_path))
    assert table.count("###") == 1
    assert "min_positives" not in table
