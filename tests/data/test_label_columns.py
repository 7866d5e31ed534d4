"""Which columns are classes: what is refused, in one message whose advice works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import hospital
import numpy as np
import pytest
import tiny
from tiny import SHARED, needs_shared

from utils_.datasets.label_files.label_columns import join_names, split_names
from utils_.errors import UserError

ROWS = 20
A = [1, 0, 0, 1, 0, 0, 0, 1, 0, 0] * 2
B = [0, 1, 0, 1, 0, 0, 1, 0, 0, 0] * 2
EITHER = [max(a, b) for a, b in zip(A, B, strict=True)]
Cell = Callable[[int], object]

# Column, its cells, and what the message says of it.
NO_CLASS: dict[str, tuple[str, Cell, str]] = {
    # the text of the issue
    "sex": ("sex", lambda i: i % 2, "a property"),
    "is_ext": ("is_ext", lambda i: i % 2, "a property"),
    "fold": ("fold", lambda i: i % 2, "a property"),
    "folds": ("fold", lambda i: i % 5, "grades or codes"),
    "index": ("Unnamed: 0", lambda i: i, "counts the rows"),
    "Disease_Risk": ("Disease_Risk", lambda i: EITHER[i], "1 where any other is"),
    "spelling": ("a", lambda i: (i + 1) % 2, "another spelling of 'A'"),
    "dates": ("seen", lambda i: f"2019-03-{i + 1:02d}", "dates such as '2019-03-01'"),
    "comments": ("remark", lambda i: f"see {i}" if i % 2 else "", "text such as 'see 1'"),
    "ages": ("Patient Age", lambda i: 40 + i, "numbers such as '40'"),
    # CheXpert: train.csv; its ages and views stand between path and findings
    "view": ("Frontal/Lateral", lambda i: "Frontal" if i % 2 else "Lateral", "text"),
    "follow-up": ("Follow-up #", lambda i: i % 3, "grades or codes"),  # NIH: mostly 0 and 1
    "study": ("StudyID", lambda i: 5000 + i, "numbers"),  # MIMIC-CXR
    "study uid": ("SOPInstanceUID", lambda i: f"1.2.840.{i}", "text"),  # RSNA, EMBED
    "offset": ("offset", lambda i: i * 0.5, "numbers such as '0.5'"),  # covid-chestxray
    "laterality": ("Eye", lambda i: i % 2, "a property"),  # EyePACS, ODIR
    "two codes": ("optic_disc", lambda i: 1 + i % 2, "coded 1 and 2"),  # BRSET
    "grades": ("DR_ICDR", lambda i: i % 5, "grades or codes"),  # BRSET
    "likert": ("birads", lambda i: i % 7, "grades or codes"),  # VinDr-Mammo
    "soft labels": ("prob", lambda i: i / 20, "numbers such as '0.05'"),
    "day.month.year": ("taken", lambda i: f"{i + 1}.3.19", "dates"),
    "DICOM date": ("taken", lambda i: f"201903{i + 1:02d}", "dates"),
    "any": ("any", lambda i: EITHER[i], "1 where any other is"),  # RSNA haemorrhage
    "lung opacity": ("Opacity", lambda i: EITHER[i], "1 where any other is"),  # a parent class
    "same cells": ("B copy", lambda i: B[i], "the same cells as 'B'"),
    "number": ("0", lambda i: i % 2, "a number for a name"),
    "split flag": ("is_test", lambda i: i % 2, "a property"),
    "date flag": ("scan_date", lambda i: i % 2, "a property"),
    "reader": ("reader_2", lambda i: i % 2, "a property"),  # one column a reader
    "spaces": ("B ", lambda i: (i + 1) % 2, "appears more than once"),
}
WITHOUT_OPTION = {"spaces"}


def folder_with(path: Path, **columns: Cell) -> Path:
    names = [f"i{row}" for row in range(ROWS)]
    cells = [
        [name, A[i], B[i], *(cell(i) for cell in columns.values())] for i, name in enumerate(names)
    ]
    header = ",".join(["image", "A", "B", *columns])
    return hospital.make_folder(path, images=names, train_data=hospital.table(header, cells))


@pytest.mark.parametrize("case", NO_CLASS)
def test_what_is_no_class_is_refused_and_the_advice_works(tmp_path: Path, case: str) -> None:
    name, cell, reason = NO_CLASS[case]
    folder = folder_with(tmp_path, **{name: cell})
    with pytest.raises(UserError) as caught:
        hospital.read(folder)
    message = str(caught.value)
    assert reason in message and "train_data.csv" in message and "\n" not in message
    if case in WITHOUT_OPTION:
        return
    advised = hospital.advised(message)
    for option in ("ignore_columns", "classes"):
        data = hospital.read(folder, **{option: advised[option]})
        assert data.classes == ("A", "B")
        assert data.labels.T.tolist() == [A, B]


def test_all_are_named_in_one_message(tmp_path: Path) -> None:
    every = [
        "sex",
        "folds",
        "index",
        "spelling",
        "dates",
        "comments",
        "ages",
        "grades",
        "lung opacity",
    ]
    columns = {NO_CLASS[case][0]: NO_CLASS[case][1] for case in every}
    folder = folder_with(tmp_path, **columns)
    with pytest.raises(UserError) as caught:
        hospital.read(folder)
    for case in every:
        assert f"'{NO_CLASS[case][0]}'" in str(caught.value)
    advised = hospital.advised(str(caught.value))
    assert set(split_names(advised["ignore_columns"], "")) == set(columns)
    assert hospital.read(folder, ignore_columns=advised["ignore_columns"]).classes == ("A", "B")


def test_the_whole_file_is_judged(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, seen=lambda i: f"2019-03-{i}" if i > 3 else "")
    late = folder_with(tmp_path / "late", X=lambda i: i % 2 if i < ROWS - 1 else "yes")
    with pytest.raises(UserError, match="'seen' holds dates such as '2019-03-4'"):
        hospital.read(folder)
    with pytest.raises(UserError, match=f"line {ROWS + 1}, column 'X': 'yes' is not a label"):
        hospital.read(late)


def test_mistakes_in_classes_are_told_beside(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, sex=lambda i: i % 2, X=lambda i: 2 if i == 7 else 0)
    with pytest.raises(UserError) as caught:
        hospital.read(folder)
    assert "'sex'" in str(caught.value) and "line 9, column 'X': '2'" in str(caught.value)


@pytest.mark.parametrize("case", ["sex", "lung opacity", "spelling", "number", "same cells", "any"])
def test_who_names_a_class_gets_it(tmp_path: Path, case: str) -> None:
    name, cell, _ = NO_CLASS[case]
    data = hospital.read(
        folder_with(tmp_path, **{name: cell}), classes=join_names(["A", name]).strip("'")
    )
    assert data.classes == ("A", name)
    assert data.labels[:, 1].tolist() == [cell(i) for i in range(ROWS)]


NEITHER = [1 - either for either in EITHER]
FINE: dict[str, dict[str, Cell]] = {
    "NORMAL is the NOT-OR of the others": {"NORMAL": lambda i: NEITHER[i]},
    "one column": {},
    "a class nobody annotates": {"X": lambda i: None},
    "a class nobody has": {"X": lambda i: 0},
    "a class all have": {"X": lambda i: 1},
    "nearly the OR": {"X": lambda i: EITHER[i] if i % 5 else 1 - EITHER[i]},
    "names with marks": {
        "Pleural Thickening": lambda i: (i // 3) % 2,
        "COVID": lambda i: (i // 4) % 2,
    },
    "the names of RFMiD": {
        name: (lambda i, k=k: int(i % (k + 3) == 0))
        for k, name in enumerate(("ODPM", "AH", "ST", "RT"))
    },
    "support devices": {
        "Support Devices": lambda i: (i // 4) % 2,
        "No Finding": lambda i: NEITHER[i],
    },
}


@pytest.mark.parametrize("case", FINE)
def test_no_false_alarm(tmp_path: Path, case: str) -> None:
    columns = FINE[case]
    assert hospital.read(folder_with(tmp_path, **columns)).classes == ("A", "B", *columns)


def test_an_or_with_blanks_is_seen(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, Risk=lambda i: None if i == 2 else EITHER[i], C=lambda i: None)
    with pytest.raises(UserError, match="'Risk' is 1 where any other is"):
        hospital.read(folder)


def test_two_sums_of_the_same_columns_are_both_seen(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, Any=lambda i: EITHER[i], Sick=lambda i: EITHER[i])
    with pytest.raises(UserError) as caught:
        hospital.read(folder)
    assert hospital.advised(str(caught.value))["ignore_columns"].count(",") == 1
    assert hospital.read(folder, ignore_columns="Any,Sick").classes == ("A", "B")


# ---- the first line

HEADERLESS = {
    "names with suffix": "a.png,1,0\nb.png,0,1\nc.png,1,1\n",
    "names without suffix": "a,1,0\nb,0,1\nc,1,1\n",
    "repeated cells": "a,1,1,0\nb,0,1,1\n",
    "blank cells": "a,1,,0,\nb,0,1,1,1\n",
    "pandas floats": "a,0.0,1.0\nb,1.0,0.0\n",  # became a class "0.0"
    "words": "a,TRUE,FALSE\nb,FALSE,TRUE\n",
    "names of classes": "a,melanoma\nb,nevus\nc,melanoma\n",
    "JPEG in capitals": "a.JPG,1\nb.JPG,0\n",
    "a path": "images/a.png,1\nimages/b.png,0\n",
}


@pytest.mark.parametrize("case", HEADERLESS)
def test_a_file_without_header_is_refused_and_a_header_helps(tmp_path: Path, case: str) -> None:
    text = HEADERLESS[case]
    folder = hospital.make_folder(tmp_path, train_data=text)
    with pytest.raises(UserError, match=r"line 1: .* looks like data.*add a line of names"):
        hospital.read(folder)
    width = text.split("\n")[0].count(",")
    header = ",".join(["image", *(f"class{n}" for n in range(width))])
    form = {"label_format": "single"} if case == "names of classes" else {}
    hospital.make_folder(folder, train_data=f"{header}\n{text}")
    assert len(hospital.read(folder, **form).files) == text.count("\n")


# ---- choosing


def test_classes_are_told_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        hospital.read(folder_with(tmp_path))
    assert "csv: 2 classes: A, B" in caplog.text


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"classes": "B"}, ("B",)),
        ({"classes": "C,A"}, ("A", "C")),  # in the order of the file
        ({"classes": ' A , "B" '}, ("A", "B")),
        ({"ignore_columns": "A"}, ("B", "C")),
        ({"ignore_columns": "A", "classes": "B"}, ("B",)),
    ],
)
def test_choosing_classes(tmp_path: Path, options: dict, classes: tuple[str, ...]) -> None:
    folder = folder_with(tmp_path, C=lambda i: (i // 3) % 2)
    assert hospital.read(folder, **options).classes == classes


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"classes": "D"}, "--classes: there is no 'D'; known: A, B"),
        ({"classes": "A,A"}, "give each name once"),
        ({"classes": "A,,B"}, "give each name once"),
        ({"ignore_columns": "glaucom"}, "--ignore-columns: there is no 'glaucom'"),
        ({"ignore_columns": "A,B"}, "no column is left"),
        ({"ignore_columns": "A", "classes": "A"}, "--classes: there is no 'A'"),
    ],
)
def test_wrong_choices(tmp_path: Path, options: dict, fragment: str) -> None:
    with pytest.raises(UserError, match=fragment):
        hospital.read(folder_with(tmp_path), **options)


def test_names_with_commas_and_quotes_survive_the_shell(tmp_path: Path) -> None:
    import shlex

    names = ["a, b", "it's", 'say "x"', "plain"]
    assert split_names(shlex.split(join_names(names))[0], "--classes") == names
    folder = folder_with(tmp_path, **{'"sex, age"': lambda i: "m", "C": lambda i: (i // 3) % 2})
    with pytest.raises(UserError) as caught:
        hospital.read(folder)
    advised = hospital.advised(str(caught.value))
    assert hospital.read(folder, ignore_columns=advised["ignore_columns"]).classes == (
        "A",
        "B",
        "C",
    )


def test_classes_of_any_data_set_can_be_chosen() -> None:
    few = {"train_images": 40, "test_images": 20, "labels_only": True}
    every = tiny.load("synthetic", **few)
    chosen = tiny.load("synthetic", classes="MH,DR", **few)
    assert chosen.classes == ("DR", "MH")
    columns = [every.classes.index(name) for name in chosen.classes]
    np.testing.assert_array_equal(chosen.labels, every.labels[:, columns])
    rest = tiny.load("synthetic", ignore_columns="DR", **few)
    assert rest.classes == tuple(name for name in every.classes if name != "DR")
    with pytest.raises(UserError, match="--label-format: synthetic has a form of its own"):
        tiny.load("synthetic", label_format="single", **few)
    with pytest.raises(UserError, match="--uncertain: synthetic has no such labels"):
        tiny.load("synthetic", uncertain="soft", **few)


@needs_shared
@pytest.mark.parametrize("name", ["isic", "odir", "rfmid"])
def test_real_label_files_raise_no_false_alarm(tmp_path: Path, name: str) -> None:
    """As somebody's own data; of RFMiD, Disease_Risk alone is refused."""
    source = {
        "isic": "ISIC_2019_Training_GroundTruth.csv",
        "odir": "train_data.csv",
        "rfmid": "RFMiD_Training_Labels.csv",
    }[name]
    text = (SHARED / "data" / name / source).read_bytes()
    hospital.make_folder(tmp_path, images="", train_data=text)
    if name != "rfmid":
        columns = text.decode("utf-8-sig").splitlines()[0].split(",")[1:]
        assert hospital.read(tmp_path).classes == tuple(columns)
        return
    with pytest.raises(UserError) as caught:
        hospital.read(tmp_path)
    assert hospital.advised(str(caught.value))["ignore_columns"] == "Disease_Risk"
    assert len(hospital.read(tmp_path, ignore_columns="Disease_Risk").classes) == 45
