"""The parts of scripts/audit.py by themselves: who is judged, what comes first, the way back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from scripts.audit_code.answers import Answer, _spelt, correct_files, read_answers
from scripts.audit_code.worklist import (
    ClassFacts,
    Federation,
    Suspect,
    blanks,
    doubts,
    judge_classes,
    suspects,
)
from src.config import Config
from utils_.datasets.base import ImageDataset
from utils_.datasets.label_files.cells import Column
from utils_.errors import UserError
from utils_.rng import derive
from utils_.suspects import Doubt, doubt_labels, second_look

NAN = np.nan


# ---- what is judged, and in which order


def federation(images: int = 40) -> Federation:
    """Two sites, of which number 1 holds nothing, and images of nobody."""
    draw = derive(1, "audit lists")
    client = draw.choice([-1, 0, 2], images)
    given = draw.choice([0, 1, NAN], (images, 3), p=[0.5, 0.3, 0.2])
    given[client < 0] = NAN
    return Federation(client, given, draw.random((images, 3)), "cross-fitted")


def facts(*statuses: str) -> list[ClassFacts]:
    return [ClassFacts("", 0, 0, status) for status in statuses]


def test_classes_are_judged_where_there_are_positives_enough() -> None:
    given = np.array([[1, 1, 0, NAN], [1, 0, 0, NAN], [NAN, NAN, 0, NAN]])
    assert judge_classes(given, ("a", "b", "c", "d"), least=2) == [
        ClassFacts("a", 2, 2, "judged"),
        ClassFacts("b", 1, 2, "not judged"),
        ClassFacts("c", 0, 3, "not judged"),
        ClassFacts("d", 0, 0, "not trained"),
    ]


def test_each_site_is_judged_by_its_own_images_and_judged_classes() -> None:
    every, found = federation(), doubts(federation(), facts("judged", "not judged", "judged"))
    for site in (0, 2):
        cells = np.ix_(every.client == site, [0, 2])
        own = doubt_labels(every.probability[cells], every.given[cells])
        for name in ("wrong", "suspicion", "present"):
            np.testing.assert_array_equal(getattr(found, name)[cells], getattr(own, name))
        np.testing.assert_array_equal(found.image[every.client == site], own.image)
    assert np.isnan(found.present[:, 1]).all()
    assert np.isnan(found.present[every.client < 0]).all()
    assert np.isnan(found.image[every.client < 0]).all()
    assert np.isnan(doubts(every, facts(*["not judged"] * 3)).image).all()


def made_up() -> tuple[Federation, Doubt]:
    """Rows 1, 3 and 4 of a site: three given labels with doubts, and three blanks."""
    client = np.array([1, 0, 1, 0, 0])
    given = np.array([[1, 1], [1, NAN], [0, 0], [0, NAN], [NAN, 1]])
    probability = np.arange(10.0).reshape(5, 2) / 10
    wrong = np.array([[0.9, 0.9], [0.6, NAN], [0.9, 0.9], [0.5, NAN], [NAN, 0.4]])
    suspicion = np.array([[1, 1], [0.7, NAN], [1, 1], [0.8, NAN], [NAN, 0.7]])
    present = np.array([[1, 1], [0.2, 0.5], [1, 1], [0.3, 0.9], [0.6, 0.1]])
    return (
        Federation(client, given, probability, "in-sample"),
        Doubt(wrong, suspicion, present, np.zeros(5)),
    )


def test_given_labels_in_the_order_of_suspicion() -> None:
    """Equal ones in that of rows; a suggestion is the other label where this is more likely."""
    every, doubt = made_up()
    rows = every.rows(0)
    assert rows.tolist() == [1, 3, 4]
    found = suspects(every, doubt, rows, top=5)
    value = {share: float(second_look(np.array(share))) for share in (0.7, 0.8)}
    assert found == [
        Suspect(3, 0, 0.0, 0.6, 0.5, 0, value[0.8]),
        Suspect(1, 0, 1.0, 0.2, 0.6, 0, value[0.7]),
        Suspect(4, 1, 1.0, 0.9, 0.4, 1, value[0.7]),
    ]
    assert suspects(every, doubt, rows, top=2) == found[:2]


def test_equally_suspect_labels_are_in_the_order_of_their_rows() -> None:
    n = 400
    every = Federation(np.zeros(n), np.ones((n, 1)), np.ones((n, 1)), "")
    suspicion = np.tile([0.5, 0.7], n // 2)[:, None]
    found = suspects(
        every, Doubt(suspicion, suspicion, suspicion, np.zeros(n)), np.arange(n), top=n
    )
    assert [one.row for one in found] == [*range(1, n, 2), *range(0, n, 2)]


def test_blanks_in_the_order_of_their_probability() -> None:
    every, doubt = made_up()
    found = blanks(every, doubt, every.rows(0), top=5)
    kept = [(one.row, one.column, one.probability, one.suggestion, one.value) for one in found]
    assert kept == [(3, 1, 0.7, 1, 0.9), (4, 0, 0.8, 1, 0.6), (1, 1, 0.3, 0, 0.5)]
    assert all(np.isnan(one.given) and np.isnan(one.wrong) for one in found)
    assert len(blanks(every, doubt, every.rows(0), top=1)) == 1


# ---- answers


def small() -> ImageDataset:
    labels = np.array([[1, 0], [NAN, 1]], np.float32)
    names = ("=a.png", "b.png")
    nothing = np.zeros((2, 1, 1, 3), np.uint8)
    part = np.zeros(2, np.uint8)
    return ImageDataset("csv", nothing, labels, ("one", "+two"), names, part, None, None, "")


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("image,class,given,answer", *lines)) + "\n")
    return path


def test_answers_as_they_stand_and_as_a_sheet_spells_names(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.csv",
        "'=a.png,one,1,no",
        "b.png,+two,1,",
        "=a.png,'+two,0,yes",
        "b.png,one,,?",
    )
    found = read_answers([path], small())
    assert [(one.row, one.column, str(one.label)) for one in found] == [
        *((0, 0, "0.0"), (0, 1, "1.0"), (1, 0, "nan"))
    ]
    assert found[2].place == f"{path}, line 5"


def test_tables_without_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv: holds no answer; write 0, 1 or \? into"):
        read_answers([written(tmp_path / "a.csv", "b.png,one,,")], small())
    for header in ("image,class", "image,answer", "class,answer"):
        (tmp_path / "a.csv").write_text(f"{header}\nb.png,one\n")
        with pytest.raises(UserError, match="no column"):
            read_answers([tmp_path / "a.csv"], small())


def test_one_answer_may_be_given_twice_but_not_two(tmp_path: Path) -> None:
    """In files of two readers; that both cannot tell is one answer too."""
    first = written(tmp_path / "a.csv", "b.png,one,,?", "=a.png,one,1,0")
    second = written(tmp_path / "b.csv", "b.png,one,,?")
    assert len(read_answers([first, second], small())) == 2
    third = written(tmp_path / "c.csv", "b.png,one,,1")
    with pytest.raises(UserError, match=r"c\.csv, line 2: .* than in .*a\.csv, line 2; keep one"):
        read_answers([first, third], small())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c.png,one,,1", "line 2: image 'c.png' is not of this run"),
        ("b.png,three,,1", "line 2: class 'three' is not of this run"),
        ("b.png,one,0,1", "the given label is blank in the label files, not '0'"),
        ("b.png,+two,0,1", "the given label is 1 in the label files, not '0'"),
        ("b.png,one,,-1", "'-1' is no answer"),
        ("b.png,one,,maybe", "'maybe' is no answer"),
    ],
)
def test_what_is_no_answer_is_refused(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_answers([written(tmp_path / "a.csv", line)], small())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "0", "0", ""], {1: "1", 0: "0", NAN: ""}),
        (["yes", "no", "NA"], {1: "yes", 0: "no", NAN: "NA"}),
        (["1.0", "0.0", "0.0"], {1: "1.0", 0: "0.0", NAN: ""}),
        (["no", "no"], {1: "yes", 0: "no"}),
        (["0", "0"], {1: "1", 0: "0"}),
        ([""], {1: "1", 0: "0"}),
        (["TRUE", "true", "TRUE", "FALSE"], {1: "TRUE", 0: "FALSE"}),
    ],
)
def test_labels_are_spelt_as_their_column_does(cells: list[str], expected: dict) -> None:
    """By its most frequent word; of a pair of words by the other where only one stands there."""
    column = Column("one", cells)
    assert {label: _spelt(column, float(label)) for label in expected} == expected


# ---- corrected files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_csv_dataset(tmp_path / "data")


def settings_of(data: Path) -> tuple[Config, ImageDataset]:
    config = replace(Config(), dataset="csv", data_dir=str(data), image_size=16)
    return config, tiny.load("csv", data_dir=data, image_size=16, quiet=True, labels_only=True)


def flipped(dataset: ImageDataset, row: int, column: int) -> Answer:
    return Answer(row, column, float(1 - dataset.labels[row, column]), "answers.csv, line 2")


def test_copies_hold_the_answers_and_all_else_as_it_was(data: Path, tmp_path: Path) -> None:
    config, dataset = settings_of(data)
    (data / "changes.csv").write_text("of the last time\n")
    (data / "notes.csv").write_text("mine\n")
    (data / "notes.txt").write_text("no table\n")
    same = Answer(5, 0, float(dataset.labels[5, 0]), "")
    answers = [flipped(dataset, 2, 1), same, Answer(3, 0, NAN, "answers.csv, line 9")]
    made = correct_files(config, dataset, answers, folder=tmp_path / "new")
    assert (made.cells, made.answers, made.folder) == (2, 3, tmp_path / "new")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"train_data.csv", "test_data.csv", "changes.csv", "notes.csv", "images"}
    assert (tmp_path / "new/images").readlink() == (data / "images").resolve()
    before, after = (
        tiny.read_table(folder / "train_data.csv") for folder in (data, tmp_path / "new")
    )
    before[3][2], before[4][1] = str(1 - int(before[3][2])), ""
    assert after == before
    rows = tiny.read_table(tmp_path / "new/changes.csv")
    old = [f"{dataset.labels[cell]:g}" for cell in ((2, 1), (3, 0))]
    assert rows[1:] == [
        [dataset.files[2], dataset.classes[1], old[0], after[3][2], "answers.csv, line 2"],
        [dataset.files[3], dataset.classes[0], old[1], "", "answers.csv, line 9"],
    ]


def test_the_words_and_the_names_of_the_table_are_kept(data: Path, tmp_path: Path) -> None:
    """Yes and no, and images without their extension."""
    words, tables = {"1": "yes", "0": "no"}, {}
    for name in ("train_data.csv", "test_data.csv"):
        header, *rows = tiny.read_table(data / name)
        rows = [[row[0].removesuffix(".png"), row[1], words[row[2]], *row[3:]] for row in rows]
        tables[name] = [header, *rows]
        tiny.write_table(data / name, tables[name])
    config, dataset = settings_of(data)
    answer = flipped(dataset, 2, 1)
    correct_files(config, dataset, [answer], folder=tmp_path / "new")
    expected = tables["train_data.csv"]
    expected[3][2] = words[f"{answer.label:.0f}"]
    assert tiny.read_table(tmp_path / "new/train_data.csv") == expected


def test_rows_that_repeat_an_image_all_change(data: Path, tmp_path: Path) -> None:
    config, dataset = settings_of(data)
    config = replace(config, combine="any")
    table = tiny.read_table(data / "train_data.csv")
    tiny.write_table(data / "train_data.csv", [*table, table[3]])
    correct_files(config, dataset, [flipped(dataset, 2, 1)], folder=tmp_path / "new")
    after = tiny.read_table(tmp_path / "new/train_data.csv")
    assert after[3] == after[-1] != table[3]


def test_files_that_would_read_otherwise_are_not_made(data: Path, tmp_path: Path) -> None:
    """Another label of the file is not what the run had, and this does not go unseen."""
    config, dataset = settings_of(data)
    dataset.labels[7, 0] = 1 - dataset.labels[7, 0]
    with pytest.raises(UserError, match=f"would not read as intended, .* '{dataset.files[7]}'"):
        correct_files(config, dataset, [flipped(dataset, 2, 1)], folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "folder", "said"),
    [
        ({"dataset": "synthetic"}, "new", "labels of synthetic lie in no files"),
        ({"data_dir": None}, "new", "labels of csv lie in no files"),
        ({}, "data", "data: exists; name a new folder"),
        ({}, "data/train_data.csv/new", "cannot be written (Not a directory)"),
    ],
)
def test_folders_that_cannot_be_made(
    changes: dict, folder: str, said: str, data: Path, tmp_path: Path
) -> None:
    config, dataset = settings_of(data)
    with pytest.raises(UserError) as caught:
        correct_files(
            replace(config, **changes),
            dataset,
            [flipped(dataset, 2, 1)],
            folder=tmp_path / folder,
        )
    assert said in str(caught.value)


def test_images_and_columns_that_are_not_there(data: Path, tmp_path: Path) -> None:
    config, dataset = settings_of(data)
    with pytest.raises(UserError, match=r"answers.csv, line 2: .* is no image of train_data.csv"):
        correct_files(config, dataset, [flipped(dataset, 50, 0)], folder=tmp_path / "new")
    other = replace(dataset, classes=("another", *dataset.classes[1:]))
    with pytest.raises(UserError, match="has no column 'another', since it names the classes"):
        correct_files(config, other, [flipped(dataset, 2, 0)], folder=tmp_path / "new")
