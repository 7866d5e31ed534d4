"""The forms of scripts/table.py: metrics, classes, ranks, LaTeX, and every committed file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_report import cells, write_run
from tiny import ROOT

from scripts import table
from utils_.finished_runs import collect
from utils_.rank_table import rank_rows
from utils_.result_rows import is_notes

COMMITTED = sorted((ROOT / "save" / "tables").glob("*.csv"))
SYNTHETIC = ROOT / "save" / "tables" / "comparison_synthetic.csv"


def show(capsys: pytest.CaptureFixture, *words: object) -> str:
    assert table.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    assert table.main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [found[0], *found[2:]]


# ---- every committed file


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_file_is_shown_or_says_by_what(
    path: Path, capsys: pytest.CaptureFixture
) -> None:
    if path.name.startswith("attacks"):
        assert f"python scripts/attack_table.py {path} shows them" in refused(capsys, path)
        return
    found = rows_of(show(capsys, path))
    assert len(found) > 1
    if is_notes(path):
        with path.open(newline="") as file:
            assert found == list(csv.reader(file))


def test_notes_are_shown_alone_and_as_they_stand(capsys: pytest.CaptureFixture) -> None:
    path = ROOT / "save" / "tables" / "tuning_seed7.csv"
    assert "leave out --metric" in refused(capsys, path, "--metric", "val_mAP")
    assert "leave out other places beside it" in refused(capsys, path, SYNTHETIC)
    assert "as they stand" in show(capsys, path, "--latex")


def test_rows_of_the_comparison_have_the_numbers_of_its_show(
    capsys: pytest.CaptureFixture,
) -> None:
    path = ROOT / "save" / "tables" / "rivals.csv"
    text = show(capsys, path, "--selection", "val_selected")
    page = (ROOT / "docs" / "results.md").read_text()
    assert cells(text, 1)["fednml"][0].strip("*") == "0.256 ± 0.052"
    assert "| fednml                 | 0.256 ± 0.052 |" in page
    assert cells(text, 0)["clean (bound)"][-1] == "100 %"  # and not that of the other bound
    assert "says which seeds tuned" in text


# ---- metrics


def test_any_number_of_the_results_is_a_metric(capsys: pytest.CaptureFixture) -> None:
    text = show(capsys, SYNTHETIC, "--metric", "macro_auroc", "--metric", "seconds")
    frame = table.read_rows([SYNTHETIC])
    own = frame[(frame["method"] == "fednml") & (frame["config.noise"] == 0.2)]
    found = cells(text)["fednml"]
    auroc, seconds = own["last5.macro_auroc"], own["seconds"]
    assert found[0].strip("*") == f"{auroc.mean():.3f} ± {auroc.std(ddof=1):.3f}"
    assert found[1] == f"{seconds.mean():.1f} ± {seconds.std(ddof=1):.1f}"
    assert "in macro_auroc" in text
    alone = show(capsys, SYNTHETIC, "--metric", "seconds", "--wide")
    assert "by no rule of selection" in alone and "**" not in alone and "%" not in alone


def test_half_a_threshold_is_never_bold(capsys: pytest.CaptureFixture) -> None:
    assert "**" not in show(capsys, SYNTHETIC, "--metric", "macro_f1")
    assert "**" in show(capsys, SYNTHETIC, "--metric", "mAP")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metric", "macro_auroq"], "did you mean 'macro_auroc'?"),
        (["--wide", "--metric", "secnds"], "did you mean 'seconds"),
        (["--ranks", "--metric", "mapp"], "did you mean 'mAP'?"),
        (["--ranks", "--wide"], "--wide --ranks: forms of the table; give one of them"),
        (["--wide", "--metric", "mAP", "--metric", "ece"], "--wide shows one"),
        (["--per-class"], "give run folders"),
        (["--per-class", "--selection", "last5"], "are of the last round"),
    ],
)
def test_what_there_is_not_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert said in refused(capsys, SYNTHETIC, *words)


# ---- ranks


def test_ranks_are_those_of_scipy(capsys: pytest.CaptureFixture) -> None:
    text = show(capsys, SYNTHETIC, "--ranks")
    found = {name: float(rank) for name, rank in rows_of(text)[1:]}
    frame = table.read_rows([SYNTHETIC])
    fair = frame[~frame["bound"]]
    wide = fair.pivot_table(index=["config.noise", "seed"], columns="method", values="last5.mAP")
    expected = stats.rankdata(-wide.to_numpy(), axis=1).mean(axis=0)
    assert found == {n: float(f"{r:.2f}") for n, r in zip(wide.columns, expected, strict=True)}
    assert "Over 9 pairs" in text and "clean" not in found


def test_less_is_better_where_it_is() -> None:
    blocks = {1: {"a": 1.0, "b": 2.0, "c": 3.0}, 2: {"a": 1.0, "b": 2.0}}
    assert rank_rows(blocks, ["a", "b", "c"])[0][1:] == [["b", "1.00"], ["a", "2.00"]]
    rows, note = rank_rows(blocks, ["a", "b", "c"], less=True)
    assert rows[1:] == [["a", "1.00"], ["b", "2.00"]]
    assert "less is better" in note and "runs are absent: c." in note
    assert rank_rows({}, ["a"]) == ([["method", "average rank"]], rank_rows({}, [])[1])


# ---- classes


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two seeds of FedAvg and the bound; nobody annotates c, and b has no positive in seed 2."""
    for method, seed in (("fedavg", 1), ("fedavg", 2), ("clean", 1)):
        run = write_run(
            tmp_path / f"{method}{seed}", method, 0.3, seed=seed, bound=method == "clean"
        )
        result = json.loads((run / "result.json").read_text())
        result["per_class"] = {
            name: {"ap": ap, "positives": count, "few": True, "intervals": {"ap": [0, 1]}}
            for name, ap, count in (
                ("a", 0.25 * seed, 3.0),
                ("b", None if seed == 2 else 0.1, 2.0 - seed),
                ("c", 0.5, 9.0),
            )
        }
        (run / "result.json").write_text(json.dumps(result))
        (run / "clients.csv").write_text("client,annotated\n0,a\n1,a;b\n")
    return tmp_path


def test_a_class_has_its_mean_and_what_no_site_annotates_is_not_trained(
    classes: Path, capsys: pytest.CaptureFixture
) -> None:
    text = show(capsys, classes, "--per-class")
    assert rows_of(text) == [
        ["class", "positives", "fedavg", "clean (bound)"],
        ["c", "9", "not trained", "0.500"],
        ["a", "3", f"0.375 ± {np.std([0.25, 0.5], ddof=1):.3f}", "0.250"],
        ["b", "0 to 1", "–", "0.100"],
    ]
    assert "the last round" in text
    again = classes.parent / "rows.csv"
    assert show(capsys, classes, "--per-class", "--csv", again) == text
    assert show(capsys, again, "--per-class") == text
    assert "did you mean 'ap'?" in refused(capsys, classes, "--per-class", "--metric", "app")


def test_names_with_semicolons_are_found(classes: Path) -> None:
    run = classes / "fedavg1"
    (run / "clients.csv").write_text('client,annotated\n0,"a;b;c"\n')
    result = json.loads((run / "result.json").read_text())
    result["per_class"] = {"b;c": {"ap": 0.1, "positives": 1.0}, "d": {"ap": 0.1}}
    (run / "result.json").write_text(json.dumps(result))
    found = collect(run)["per_class"][0]
    assert (found["b;c"]["trained"], found["d"]["trained"]) == (True, False)


# ---- LaTeX


@pytest.mark.parametrize("form", [[], ["--wide"], ["--ranks"], ["--metric", "macro_f1"]])
def test_latex_has_the_cells_of_markdown(form: list[str], capsys: pytest.CaptureFixture) -> None:
    marked = [row for row in rows_of(show(capsys, SYNTHETIC, *form)) if row[0] != "method"]
    marked = [row for row in marked if not set("".join(row)) <= set("-:")]
    text = show(capsys, SYNTHETIC, *form, "--latex")
    lines = [line[:-3].split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    lines = [line for line in lines if line[0] != "method"]
    assert [line[0] for line in lines] == [row[0] for row in marked]
    assert all(len(line) == len(row) for line, row in zip(lines, marked, strict=True))
    assert "%" not in text.replace(r"\%", "").replace("% needs", "")
    assert "_" not in text.replace(r"\_", "")
