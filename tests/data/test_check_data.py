"""The doctor: healthy data pass, each fault is found, and the exit code says so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import tiny
from PIL import Image
from test_datasets import SHARED, needs_shared
from tiny import ROOT

from scripts import check_data
from utils_.datasets import doctor
from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, ImageDataset
from utils_.datasets.doctor import examine, find_duplicates


@pytest.fixture
def folder(csv_data, tmp_path) -> Path:
    """A copy of the healthy data of 60 images."""
    return Path(shutil.copytree(csv_data, tmp_path / "data"))


@pytest.fixture(autouse=True)
def without_sheet(request, monkeypatch) -> None:
    """Drawing takes a second, and few tests look at the sheet."""
    if "with_sheet" not in request.fixturenames:
        monkeypatch.setattr(check_data, "draw_sheet", lambda dataset, config, path: None)


@pytest.fixture
def with_sheet() -> None:
    """Asks for the contact sheet."""


def check(folder: Path, *arguments: object, sheet: Path | None = None) -> int:
    sheet = sheet or folder.parent / "sheet.png"
    options = ["csv", "--data-dir", folder, "--image-size", 16, "--sheet", sheet, "--quiet"]
    return check_data.main([str(option) for option in (*options, *arguments)])


def edit(path: Path, row: int, column: int, text: str) -> None:
    table = tiny.read_table(path)
    table[row][column] = text
    tiny.write_table(path, table)


def patients(folder: Path, *pairs: tuple[str, str]) -> None:
    text = "image,patient_id\n" + "".join(f"{image},{patient}\n" for image, patient in pairs)
    (folder / "groups.csv").write_text(text)


# ---- the script


def test_healthy_data_pass(folder, with_sheet, capsys):
    assert check(folder) == 0
    out = capsys.readouterr().out
    assert "csv: 60 images (train 48, test 12), 4 classes" in out
    assert out.rstrip().endswith("nothing is wrong") and "WRONG" not in out
    with Image.open(folder.parent / "sheet.png") as sheet:
        assert sheet.width > 500 and len(sheet.convert("RGB").getcolors(1 << 20)) > 50


def test_prevalence_is_counted_from_the_files(folder, capsys):
    check(folder)
    out = capsys.readouterr().out
    labels = tiny.make_dataset().labels
    for column in range(4):
        row = next(line for line in out.splitlines() if line.split()[:1] == [f"class{column}"])
        _, positive, negative, blank, share, train, lacking, test, others = row.split()
        assert int(positive) == labels[:, column].sum() == int(train) + int(test)
        assert int(negative) == int(lacking) + int(others)
        assert int(negative) == 60 - int(positive) and blank == "0"
        assert float(share) == pytest.approx(int(positive) / 60, abs=6e-4)


@pytest.mark.parametrize("option", [["--clients", 3], ["--split", "dirichlet"]])
def test_prevalence_per_client(folder, capsys, option):
    assert check(folder, *option) == 0
    out = capsys.readouterr().out
    clients = 3 if "--clients" in option else 4
    assert f"prevalence at {clients} clients" in out and f"client {clients - 1}" in out
    check(folder)
    assert "prevalence at" not in capsys.readouterr().out


FAULTS = {
    "no label": (lambda f: edit(f / "train_data.csv", 3, 2, "maybe"), "line 4, column 'class1'"),
    "listed twice": (lambda f: edit(f / "train_data.csv", 3, 0, "image0.png"), "already listed"),
    "broken image": (
        lambda f: (f / "images/image3.png").write_bytes(b"no image"),
        "1 images are absent or broken: image3.png",
    ),
    "missing images": (
        lambda f: [(f / f"images/image{i}.png").unlink() for i in range(10, 17)],
        "7 images are absent or broken: image10.png, image11.png, image12.png, image13.png, "
        "image14.png, ...",
    ),
    "duplicate over parts": (
        lambda f: shutil.copy(f / "images/image0.png", f / "images/image55.png"),
        "1 sets of images with the same pixels are in several parts: image0.png=image55.png",
    ),
    "straddling patient": (
        lambda f: patients(f, ("image0", "p"), ("image55", "p"), ("image1", "q")),
        "1 patients (or lesions) have images in several parts, e.g. image55.png",
    ),
    "one colour": (
        lambda f: Image.new("RGB", (16, 16), (9, 9, 9)).save(f / "images/image7.png"),
        "1 images are of a single colour: image7.png",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_found(folder, capsys, case):
    damage, fragment = FAULTS[case]
    damage(folder)
    assert check(folder) == 1
    out = capsys.readouterr().out
    wrong = [line for line in out.splitlines() if line.startswith("WRONG: ")]
    assert len(wrong) == 1 and fragment in wrong[0]
    assert out.rstrip().endswith("1 thing is wrong")


def test_copies_are_judged_by_their_labels(folder, capsys):
    table = tiny.read_table(folder / "train_data.csv")
    other = next(i for i, row in enumerate(table[2:], 2) if row[1:] != table[1][1:])
    shutil.copy(folder / "images/image0.png", folder / "images" / table[other][0])
    assert check(folder) == 1
    assert "are labelled differently" in capsys.readouterr().out
    tiny.write_table(
        folder / "train_data.csv",
        [[*row[:1], *(table[1][1:] if i == other else row[1:])] for i, row in enumerate(table)],
    )
    assert check(folder) == 0
    assert "note: 1 sets of images with the same pixels agree" in capsys.readouterr().out


def test_options_of_the_main_job(folder, capsys):
    assert check(folder, "--min-positives", 1, "--class-order", "alphabetical") == 0
    assert check(folder, "--min-positives", 1000) == 2
    assert "--min-positives 1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["csv"], "--data-dir"),
        (["csvv"], "did you mean 'csv'?"),
        (["mured", "--data-dir", "nowhere"], "nowhere is absent"),
        (["synthetic", "--clientss", "3"], "--clientss"),
        (["synthetic", "--resume", "x"], "--resume"),
        (["synthetic", "--clients", "0"], "--clients 0"),
    ],
)
def test_bad_input(tmp_path, capsys, monkeypatch, arguments, fragment):
    monkeypatch.chdir(tmp_path)
    assert check_data.main(arguments) == 2
    message = capsys.readouterr().err
    assert fragment in message and message.count("\n") == 1 and not list(tmp_path.iterdir())


def test_runs_as_a_script_on_synthetic(tmp_path):
    size = ["--train-images", "60", "--test-images", "40", "--image-size", "32"]
    places = ["--cache-dir", str(tmp_path / "cache"), "--save-dir", str(tmp_path / "save")]
    command = [ROOT / "scripts/check_data.py", "synthetic", *size, *places]
    done = forked.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "save/checks/synthetic.png").exists()


# ---- what is found


def altered(**changes: object) -> ImageDataset:
    return replace(tiny.make_dataset(), **{"verified": None} | changes)


def texts(dataset: ImageDataset, *, wrong: bool) -> list[str]:
    return [finding.text for finding in examine(dataset) if finding.wrong is wrong]


def test_duplicates_that_a_split_may_part():
    data = tiny.make_dataset()
    images = data.images.copy()
    images[5] = images[2]
    labels = data.labels.copy()
    labels[5] = labels[2]
    loose = replace(data, images=images, labels=labels, part=np.full(60, UNASSIGNED, np.uint8))
    assert "so the split may part them" in find_duplicates(loose)[0].text
    groups = np.arange(60)
    groups[5] = 2
    (together,) = find_duplicates(replace(loose, groups=groups))
    assert not together.wrong
    blank = labels.copy()
    blank[5, 1] = np.nan  # a blank cell contradicts nothing
    assert not find_duplicates(replace(loose, groups=groups, labels=blank))[0].wrong


def test_classes_that_cannot_be_learnt_or_tested():
    labels = tiny.make_dataset().labels.copy()
    part = tiny.make_dataset().part
    labels[part == TRAIN, 1] = 0
    labels[part == TEST, 2] = np.nan
    labels[0] = np.nan
    notes = texts(altered(labels=labels), wrong=False)
    assert "no positive image to learn from: class1" in notes
    assert "no positive image to test on: class2" in notes
    assert "1 images have no label at all" in notes
    assert texts(altered(labels=labels), wrong=True) == []


def test_a_class_without_negatives_is_wrong_unless_blanks_count_as_negative():
    labels, part = tiny.make_dataset().labels.copy(), tiny.make_dataset().part
    labels[(part != TEST) & (labels[:, 1] == 0), 1] = np.nan  # 1 or blank, as CheXpert's columns
    labels[(part == TEST) & (labels[:, 3] == 0), 3] = np.nan
    text = "no negative image to learn from: class1; --assume-negative takes blank cells for 0"
    assert texts(altered(labels=labels), wrong=True) == [text]
    # followed, the advice works; the test part stays as it is
    assert [f for f in examine(altered(labels=labels), assume_negative=True) if f.wrong] == []
    assert "no negative image to test on: class3; write 0 where so" in texts(
        altered(labels=labels), wrong=False
    )


def test_parts_and_clients_that_lack_a_kind_of_label(folder, capsys):
    rows = tiny.read_table(folder / "train_data.csv")
    for row in rows[1:]:
        row[2] = "1" if row[2] == "1" else ""
    tiny.write_table(folder / "train_data.csv", rows)
    assert check(folder, "--clients", 3) == 1
    out = capsys.readouterr().out
    assert "WRONG: no negative image to learn from: class1; --assume-negative" in out
    line = next(x for x in out.splitlines() if x.startswith("note: no annotated negative in "))
    places = ("train", "val", "client 0", "client 1", "client 2")
    assert line.removeprefix("note: no annotated negative in ").split("; ") == [
        f"{place}: class1" for place in places
    ]
    assert "note: fewer than 10 annotated positives or negatives in val: class" in out
    assert check(folder, "--clients", 3, "--assume-negative") == 0  # the advice
    out = capsys.readouterr().out
    assert "no annotated negative in val: class1\n" in out  # it fills training cells alone


def test_verified_labels_are_counted():
    dataset = tiny.make_dataset()
    verified = np.full_like(dataset.labels, np.nan)
    verified[:10, :2] = dataset.labels[:10, :2]
    verified[0, 0] = 1 - verified[0, 0]
    assert (
        "20 cells of 10 images are verified; of those, 20 are annotated, 1 of them otherwise"
        in texts(altered(verified=verified), wrong=False)
    )


def test_rules_of_the_data_set():
    labels = np.float32([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
    labels = np.tile(labels, (15, 1))
    names = ("N", "D", "G", "C")
    notes = texts(altered(name="odir", classes=names, labels=labels), wrong=False)
    assert "15 images are N and something else" in notes
    assert "15 images are neither N nor anything else" in notes
    notes = texts(altered(name="ham10000", labels=labels), wrong=False)
    assert "45 images do not show exactly one class" in notes
    official = "the official release has unassigned 10,015; here: train 40, val 8, test 12"
    assert official in notes


def test_what_is_wrong_comes_first():
    images = tiny.make_dataset().images.copy()
    images[3] = 0
    found = examine(altered(images=images, name="mured"))
    assert found[0].wrong and not found[-1].wrong


def test_client_prevalence_ignores_blank_cells():
    labels = tiny.make_dataset().labels.copy()
    labels[:4, 0] = [1, 0, np.nan, np.nan]
    client = np.full(60, -1)
    client[:4] = 0
    client[4:8] = 1
    table = doctor.client_prevalence(altered(labels=labels), client)
    assert table["client 0"][0] == 0.5
    assert table["client 1"].tolist() == labels[4:8].mean(axis=0).tolist()


@needs_shared
def test_real_data_dry(tmp_path):
    """The first forty images of ODIR: nothing is wrong with them."""
    source = SHARED / "data/odir"
    rows = (source / "train_data.csv").read_text().splitlines()[:41]
    (tmp_path / "data/images").mkdir(parents=True)
    for row in rows[1:]:
        name = row.split(",")[0]
        shutil.copy(source / "images" / name, tmp_path / "data/images" / name)
    (tmp_path / "data/train_data.csv").write_text("\n".join(rows))
    shutil.copy(source / "groups.csv", tmp_path / "data")
    assert check(tmp_path / "data", "--clients", 2) == 0
