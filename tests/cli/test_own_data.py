"""docs/own-data.md: every command of the walk-through, in its order, on the files it makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from tiny import ROOT

from scripts import example_data
from utils_.datasets.label_files.tables import read_csv

DOCUMENT = ROOT / "docs" / "own-data.md"
COMMANDS = re.findall(
    r"^```bash\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder from which the program can be called as in the repository."""
    place = tmp_path_factory.mktemp("hospital")
    for name in ("src", "scripts", "utils_"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.fixture(scope="module")
def outputs(place: Path) -> list[subprocess.CompletedProcess[str]]:
    """What each line of the page's commands printed and returned.

    The first line of each program starts Python as the page does, further ones a fork.
    """
    lines = [line for block in COMMANDS for line in block.splitlines()]
    found, started = [], set()
    for line in lines:
        program = line.split()[1]
        python = forked.python() if program in started else sys.executable
        started.add(program)
        path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
        found.append(
            subprocess.run(
                line,
                shell=True,
                cwd=place,
                env=os.environ | {"PATH": path},
                capture_output=True,
                text=True,
                timeout=300,
            )
        )
    return found


@pytest.mark.slow
def test_the_walk_through_does_what_it_says(
    place: Path, outputs: list[subprocess.CompletedProcess[str]]
) -> None:
    made, first, second, mended, checked, dry, trained, *_ = outputs
    assert made.returncode == 0, made.stderr
    assert first.returncode == 1, first.stderr
    assert "add --ignore-columns sex,age,reader" in first.stdout  # what the next command does
    assert second.returncode == 1
    assert "north/0000.png=north/0003.png" in second.stdout
    assert "1 thing is wrong" in second.stdout
    assert mended.returncode == 0
    assert checked.returncode == 0, checked.stdout
    assert "nothing is wrong" in checked.stdout
    for note in (
        "Latin-1",
        "split by semicolons",
        "spelt otherwise",
        "no patient_id",
        "north and south",
    ):
        assert note in checked.stdout
    assert dry.returncode == 0, dry.stderr
    assert "split: site" in dry.stdout
    assert "south" in dry.stdout
    assert trained.returncode == 0, trained.stderr
    assert "judged by the verified ones of true_data.csv alone" in trained.stdout
    predicted, exported = outputs[12:14]
    assert predicted.returncode == 0, predicted.stderr
    named = read_csv(place / "my-data" / "test_data.csv").names
    assert read_csv(place / "predictions.csv").names == named
    assert len(list((place / "pictures").iterdir())) == len(named)
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_the_answers_are_trained_on(
    place: Path, outputs: list[subprocess.CompletedProcess[str]]
) -> None:
    audited, _, _, applied, trained = outputs[7:12]
    for done in (audited, applied, trained):
        assert done.returncode == 0, done.stderr
    for site in example_data.SITES:
        number = example_data.SITES.index(site)
        assert (place / f"save/runs/first/audit/site-{number}-{site}/suspects.html").is_file()
    assert "3 answers, 3 labels changed" in applied.stdout
    old, new = (place / name / "train_data.csv" for name in ("my-data", "my-data-2"))
    before, after = (path.read_bytes().splitlines() for path in (old, new))
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 3


@pytest.mark.slow
def test_the_run_has_read_the_files_as_they_are(
    place: Path, outputs: list[subprocess.CompletedProcess[str]]
) -> None:
    """Checked against the files, read by plain Python."""
    run = place / "save" / "runs" / "first"
    result = json.loads((run / "result.json").read_text())
    assert result["classes"] == list(example_data.CLASSES)
    assert result["sites"] == list(example_data.SITES)
    assert result["truth"]["reference"] == "verified"
    test = (place / "my-data" / "test_data.csv").read_bytes().decode("cp1252").splitlines()[1:]
    labels = np.array([line.split(";")[1:6] for line in test], int)
    positives = [result["per_class"][name]["positives"] for name in example_data.CLASSES]
    assert positives == labels.sum(axis=0).tolist()
    clients = read_csv(run / "clients.csv")
    annotated = dict(zip(clients.column("site"), clients.column("annotated"), strict=True))
    for site, unseen in example_data.UNSEEN.items():
        assert set(annotated[site].split(";")) == set(example_data.CLASSES) - set(unseen)
    split = read_csv(run / "assignments.csv")
    for name, client in zip(split.column("image"), split.column("client"), strict=True):
        if client:
            assert re.split(r"[/\\]", name)[0] == example_data.SITES[int(client)]


@pytest.mark.slow
def test_the_report_is_written_and_names_no_patient(
    place: Path, outputs: list[subprocess.CompletedProcess[str]]
) -> None:
    lines = [line for block in COMMANDS for line in block.splitlines()]
    (done,) = [o for line, o in zip(lines, outputs, strict=True) if "report.py" in line]
    assert done.returncode == 0, done.stderr
    page = (place / "report.html").read_text(encoding="utf-8")
    card = (place / "save" / "runs" / "first" / "model_card.md").read_text(encoding="utf-8")
    for text in (page, card):
        assert all(site in text for site in example_data.SITES)
        assert ".png" not in text and "patient_id" not in text


def test_the_example_is_the_same_every_time_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        assert example_data.main([str(tmp_path / name), "--images", "60"]) == 0
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 64
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    capsys.readouterr()
    for bad, why in (
        ([str(tmp_path / "one")], "exists"),
        ([str(tmp_path / "x"), "--images", "9"], "60"),
    ):
        assert example_data.main(bad) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
