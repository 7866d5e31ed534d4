"""true_data.csv: which forms are read, and what a mistake is answered with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from utils_.errors import UserError

Rows = list[list[str]]


@pytest.fixture
def csv_copy(csv_data: Path, tmp_path: Path) -> Path:
    """The tiny data as files, to be changed."""
    return Path(shutil.copytree(csv_data, tmp_path / "data"))


def train_rows(folder: Path) -> Rows:
    return tiny.read_table(folder / "train_data.csv")


def verified_of(folder: Path, rows: Rows, **settings: object) -> np.ndarray:
    """What is read of a true_data.csv with these rows."""
    tiny.write_table(folder / "true_data.csv", rows)
    dataset = tiny.load("csv", data_dir=folder, labels_only=True, image_size=16, **settings)
    assert dataset.verified is not None
    return dataset.verified


def keep(rows: Rows, columns: list[int], images: slice = slice(None)) -> Rows:
    return [[row[c] for c in (0, *columns)] for row in (rows[0], *rows[1:][images])]


def blanked(rows: Rows) -> Rows:
    """Every second cell blank: nobody has adjudicated it."""
    return [
        [cell if r == 0 or c == 0 or (r + c) % 2 else "" for c, cell in enumerate(row)]
        for r, row in enumerate(rows)
    ]


# Form, what is kept of the file's own labels: (rows of the data set, classes).
FORMS: dict[str, tuple[Callable[[Rows], Rows], slice, list[int]]] = {
    "all of train": (lambda rows: rows, slice(0, 48), [0, 1, 2, 3]),
    # the experts of ChestX-ray14 (Majkowska et al., 2020) judged four findings of some images
    "a few classes": (lambda rows: keep(rows, [2, 4]), slice(0, 48), [1, 3]),
    # CheXpert's board-certified readers saw another part than the labeller's training images
    "a few images": (
        lambda rows: keep(rows, [1, 2, 3, 4], slice(5, 12)),
        slice(5, 12),
        [0, 1, 2, 3],
    ),
    # APTOS and Messidor-2: the adjudicated table of another team has columns in another order
    "another order": (lambda rows: keep(rows, [4, 1, 3, 2]), slice(0, 48), [0, 1, 2, 3]),
    # RFMiD and ODIR: names without extension
    "no extension": (
        lambda rows: [[r[0].removesuffix(".png"), *r[1:]] for r in rows],
        slice(0, 48),
        [0, 1, 2, 3],
    ),
    # HAM10000: only what was biopsied is verified, in the order of the pathologist's list
    "rows turned round": (lambda rows: [rows[0], *rows[:0:-1]], slice(0, 48), [0, 1, 2, 3]),
    # pandas writes 1.0 where a column has blanks
    "floats": (
        lambda rows: [rows[0], *([r[0], *(f"{c}.0" for c in r[1:])] for r in rows[1:])],
        slice(0, 48),
        [0, 1, 2, 3],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(csv_copy: Path, form: str) -> None:
    change, images, classes = FORMS[form]
    found = verified_of(csv_copy, change(train_rows(csv_copy)))
    labels = tiny.load("csv", data_dir=csv_copy, labels_only=True, image_size=16).labels
    expected = np.full_like(labels, np.nan)
    expected[images, classes] = labels[images, classes]
    np.testing.assert_array_equal(found, expected)


def test_blank_is_not_verified(csv_copy: Path) -> None:
    rows = blanked(train_rows(csv_copy))
    found = verified_of(csv_copy, rows)
    assert (~np.isnan(found)).sum() == sum(cell != "" for row in rows[1:] for cell in row[1:]) == 96


def test_test_images_may_be_verified_too(csv_copy: Path) -> None:
    found = verified_of(csv_copy, tiny.read_table(csv_copy / "test_data.csv"))
    assert np.isnan(found[:48]).all() and not np.isnan(found[48:]).any()


def test_classes_keep_their_verified_labels_when_columns_are_chosen(csv_copy: Path) -> None:
    rows = keep(train_rows(csv_copy), [2])
    plain = verified_of(csv_copy, rows)
    turned = verified_of(csv_copy, rows, class_order="alphabetical", min_positives=20)
    dataset = tiny.load("csv", data_dir=csv_copy, labels_only=True, image_size=16, min_positives=20)
    assert 1 < len(dataset.classes) < 4 and "class1" in dataset.classes
    column = dataset.classes.index("class1")
    np.testing.assert_array_equal(turned[:, column], plain[:, 1])


def test_labels_and_images_that_training_sees_are_the_same_with_and_without(csv_copy: Path) -> None:
    plain = tiny.load("csv", data_dir=csv_copy, labels_only=True, image_size=16)
    rows = train_rows(csv_copy)
    rows[1][1] = str(1 - int(rows[1][1]))
    tiny.write_table(csv_copy / "true_data.csv", rows)
    other = tiny.load("csv", data_dir=csv_copy, labels_only=True, image_size=16)
    assert plain.verified is None and other.files == plain.files
    np.testing.assert_array_equal(other.labels, plain.labels)
    assert (other.best_known != plain.best_known).sum() == 1


# ---- mistakes: what is wrong, what the answer says, and the advice as a change of the rows


def _drop_column(rows: Rows) -> Rows:
    return [row[:-1] for row in rows]


MISTAKES: dict[str, tuple[Callable[[Rows], Rows], str, Callable[[Rows], Rows]]] = {
    "an unknown class": (
        lambda rows: [[*row, "adjudicator" if n == 0 else "1"] for n, row in enumerate(rows)],
        "column 'adjudicator' is no class of the label files; .*, or remove the column",
        _drop_column,
    ),
    "a class misspelt": (
        lambda rows: [[*rows[0][:-1], "clas3"], *rows[1:]],
        "column 'clas3' is no class of the label files; did you mean 'class3'",
        lambda rows: [[*rows[0][:-1], "class3"], *rows[1:]],
    ),
    "names of another study": (
        lambda rows: [rows[0], *([f"other{n}.png", *r[1:]] for n, r in enumerate(rows[1:]))],
        "names none of the images of the label files, such as 'other0.png' in line 2; use the same",
        lambda rows: [rows[0], *([f"image{n}.png", *r[1:]] for n, r in enumerate(rows[1:]))],
    ),
    "only names": (
        lambda rows: [row[:1] for row in rows],
        "only one column; add one for each class",
        lambda rows: [[*row, "class0" if n == 0 else "1"] for n, row in enumerate(rows)],
    ),
    "two verdicts": (
        lambda rows: [*rows, rows[3]],
        r"line 50: image 'image2.png' is already listed in true_data.csv, line 4",
        lambda rows: rows[:-1],
    ),
    "a word": (
        lambda rows: [*rows[:2], [*rows[2][:-1], "maybe"], *rows[3:]],
        "line 3, column 'class3': 'maybe' is not a label",
        lambda rows: [*rows[:2], [*rows[2][:-1], ""], *rows[3:]],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_whose_advice_works(csv_copy: Path, mistake: str) -> None:
    spoil, message, advice = MISTAKES[mistake]
    spoilt = spoil(train_rows(csv_copy))
    with pytest.raises(UserError, match=message) as caught:
        verified_of(csv_copy, spoilt)
    assert "true_data.csv" in str(caught.value) and "\n" not in str(caught.value)
    assert not np.isnan(verified_of(csv_copy, advice(spoilt))).all()


def test_rows_of_unlisted_images_are_counted(csv_copy: Path, caplog) -> None:
    rows = train_rows(csv_copy)
    found = verified_of(csv_copy, [*rows, ["elsewhere.png", "1", "1", "1", "1"]])
    assert (~np.isnan(found)).sum() == 48 * 4
    assert "1 of 49 rows name no image of the label files, such as 'elsewhere.png'" in caplog.text


@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        ({"ignore_columns": "sex"}, [0, 1, 2, 3]),
        ({"classes": "class1,class3"}, [1, 3]),
    ],
)
def test_an_export_of_the_same_columns_follows_the_choice_of_classes(
    csv_copy: Path, settings: dict[str, str], classes: list[int]
) -> None:
    """Experts who correct a copy of the label file leave its other columns there."""
    rows = train_rows(csv_copy)
    for name in ("train_data.csv", "test_data.csv"):
        table = tiny.read_table(csv_copy / name)
        tiny.write_table(
            csv_copy / name, [[*r, "sex" if n == 0 else "1"] for n, r in enumerate(table)]
        )
    verified = verified_of(
        csv_copy, [[*row, "sex" if n == 0 else "1"] for n, row in enumerate(rows)], **settings
    )
    given = np.array([row[1:] for row in rows[1:]], float)
    np.testing.assert_array_equal(verified[: len(given)], given[:, classes])
