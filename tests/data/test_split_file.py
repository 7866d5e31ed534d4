"""A split from a file: a run's own table comes back, mistakes name their line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_scenario import build, equal, from_labels, tiny

from utils_.datasets.base import PART_NAMES, TEST, TRAIN, UNASSIGNED, VAL, ImageDataset
from utils_.errors import UserError
from utils_.scenario import Scenario
from utils_.scenario_tables import assignment_table
from utils_.splits.file import read_split

Rows = list[list[str]]


def written(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def table_of(dataset: ImageDataset, scenario: Scenario) -> Rows:
    """The rows of a run's assignments.csv."""
    text = assignment_table(scenario, dataset).to_csv(index=False)
    return list(csv.reader(text.splitlines()))


def small() -> ImageDataset:
    """Twelve images, of which the first two are of one patient."""
    groups = np.array([0, 0, *range(1, 11)])
    return from_labels(np.eye(12, 3), groups=groups)


def small_rows() -> Rows:
    """Images 0 to 7 in train at clients 0, 0, 1, 1, 0, 0, 1, 1, then two of val and test."""
    rows = [["image", "split", "client"]]
    rows += [[f"{i}.png", "train", str(i // 2 % 2)] for i in range(8)]
    rows += [[f"{i}.png", "val", ""] for i in (8, 9)]
    return rows + [[f"{i}.png", "test", ""] for i in (10, 11)]


def from_file(path: Path, dataset: ImageDataset, **changes: object) -> Scenario:
    keywords = {"split": "file", "split_file": path, "clients": 2, "missing": 0, "noise": 0.0}
    return build(dataset, **(keywords | changes))


@pytest.mark.parametrize("split", ["iid", "dirichlet", "quantity", "phi"])
def test_the_table_of_a_run_gives_its_split_back(split, tmp_path):
    dataset = tiny(300, 5, blank=0.1)
    first = build(dataset, split=split)
    path = written(tmp_path / "assignments.csv", table_of(dataset, first))
    second = build(dataset, split="file", split_file=path)
    for name in ("part", "client", "noisy", "annotated"):
        before, after = getattr(first, name), getattr(second, name)
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)), clients=st.integers(1, 4), seed=st.integers(0, 99))
def test_any_own_split_is_taken_as_written(order, clients, seed, tmp_path):
    rng = np.random.default_rng(seed)
    part = rng.choice([TRAIN, VAL, TEST], 12, p=[0.6, 0.2, 0.2])
    part[:clients] = TRAIN
    client = np.where(part == TRAIN, rng.integers(0, clients, 12), -1)
    client[:clients] = np.arange(clients)
    rows = [["extra", "client", "image", "split"]]
    rows += [["x", client[i] if part[i] == TRAIN else "", f"{i}.png", PART_NAMES[part[i]]]
             for i in order]  # fmt: skip
    dataset = from_labels(np.eye(12, 3))
    scenario = from_file(written(tmp_path / "my.csv", rows), dataset, clients=clients)
    assert (scenario.part == part).all()
    assert (scenario.client == client).all()


def test_the_key_says_what_the_file_says(tmp_path):
    dataset, rows = small(), small_rows()
    first = from_file(written(tmp_path / "a.csv", rows), dataset)
    renamed = from_file(written(tmp_path / "b.csv", [rows[0], *rows[:0:-1]]), dataset)
    assert equal(first, renamed)  # another name and order of lines, the same split
    rows[8][2] = "0"
    assert from_file(written(tmp_path / "a.csv", rows), dataset).key != first.key


def test_saved_and_reloaded(tmp_path):
    path, dataset = written(tmp_path / "a.csv", small_rows()), small()
    first = from_file(path, dataset, folder=tmp_path / "splits")
    assert equal(first, from_file(path, dataset, folder=tmp_path / "splits"))
    assert len(list((tmp_path / "splits").iterdir())) == 1


def test_spreadsheet_numbers_and_minus_one_are_understood(tmp_path):
    rows = [[r[0], r[1], f"{r[2]}.0" if r[2] in "01" and r[2] else r[2]] for r in small_rows()]
    rows[-1][2] = "-1"
    scenario = from_file(written(tmp_path / "a.csv", rows), small())
    assert scenario.client.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, -1, -1, -1, -1]


def test_names_that_a_sheet_spells_as_text_are_understood(tmp_path):
    """Beside names that stand there as they are, one of them with such an apostrophe of its own."""
    dataset = replace(small(), files=("=1.png", "'+2.png", *(f"{i}.png" for i in range(2, 12))))
    rows = small_rows()
    rows[1][0], rows[2][0] = "'=1.png", "'+2.png"
    scenario = from_file(written(tmp_path / "a.csv", rows), dataset)
    assert scenario.client.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, -1, -1, -1, -1]


def changed(line: int, column: int, text: str) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        rows[line - 1][column] = text
        return rows

    return change


MISTAKES = {
    "unknown image": (changed(4, 0, "nowhere.png"), "line 4: the dataset has no image 'nowhere"),
    "misspelt image": (changed(4, 0, "22.png"), r"line 4: .*'22.png'; did you mean"),
    "image twice": (changed(4, 0, "0.png"), "line 4: image '0.png' is already in line 2"),
    "image without line": (lambda rows: rows[:-1], "no line for 1 of 12 images, such as '11.png'"),
    "unknown split": (changed(5, 1, "training"), "line 5: split 'training'; write train, val or"),
    "client of a test image": (changed(13, 2, "1"), "line 13: client '1' of an image that is not"),
    "no client": (changed(6, 2, ""), "line 6: client ''; write the number of a client"),
    "client in words": (changed(6, 2, "north"), "line 6: client 'north'"),
    "half a client": (changed(6, 2, "0.5"), "line 6: client '0.5'"),
    "negative client": (changed(6, 2, "-1"), "line 6: client '-1'"),
    "odd digit": (changed(6, 2, "²"), "line 6: client '²'"),
    "huge client": (changed(6, 2, "9" * 30), "line 6: client '999"),
    "client of ten digits": (changed(6, 2, "1" * 10), "line 6: client '1111111111'"),
    "more clients": (changed(6, 2, "2"), "line 6: the highest client is 2, .* use --clients 3"),
    "fewer clients": (
        lambda rows: [[*r[:2], "0" if r[2] else ""] if i else r for i, r in enumerate(rows)],
        "highest client is 0, which makes 1, not 2; use --clients 1",
    ),
    "a gap": (
        lambda rows: [[*r[:2], "1" if r[2] else ""] if i else r for i, r in enumerate(rows)],
        "the highest client is 1, and client 0 has no image; number",
    ),
    "nothing in train": (
        lambda rows: [rows[0], *([r[0], "test", ""] for r in rows[1:])],
        "no image is in train",
    ),
    "patient at two clients": (changed(3, 2, "1"), "line 3: the same patient .* as in line 2"),
    "patient in two parts": (
        lambda rows: changed(3, 2, "")(changed(3, 1, "test")(rows)),
        "line 3: the same patient or lesion as in line 2",
    ),
    "no column": (changed(1, 2, "site"), "no column 'client'"),
    "only a header": (lambda rows: rows[:1], "only a header"),
    "short line": (lambda rows: [*rows, ["x.png"]], "line 14: 1 cells where the header has 3"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_file_and_line(name, tmp_path):
    change, message = MISTAKES[name]
    path = written(tmp_path / "my_split.csv", change(small_rows()))
    with pytest.raises(UserError, match=message) as caught:
        from_file(path, small())
    assert "my_split.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_file_and_absent_option(tmp_path):
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read"):
        from_file(tmp_path / "gone.csv", small())
    with pytest.raises(UserError, match="--split file: give the file as --split-file FILE"):
        build(small(), split="file")


def split_of(
    path: Path, groups: Sequence[int], part: Sequence[int], fixed: Sequence[int]
) -> np.ndarray:
    """Parts read from a file that puts all of train at client 0."""
    rows = [["image", "split", "client"]]
    rows += [[f"{i}", PART_NAMES[p], "0" if p == TRAIN else ""] for i, p in enumerate(part)]
    return read_split(
        written(path, rows),
        [f"{i}" for i in range(len(part))],
        np.array(groups),
        np.array(fixed, np.uint8),
        clients=1,
    )[0]


def test_patients_that_the_files_spread_may_stay_spread(tmp_path):
    """Such data load without a file, so their own assignments.csv must load too."""
    path, fixed = tmp_path / "a.csv", [TRAIN, TEST, TRAIN, UNASSIGNED]
    assert split_of(path, [0, 0, 1, 2], [TRAIN, TEST, TRAIN, TRAIN], fixed).tolist()[1] == TEST
    for groups, part in (
        ([0, 1, 0, 2], [TRAIN, TEST, VAL, TRAIN]),  # the files have both in train
        ([0, 1, 2, 2], [TRAIN, TEST, TRAIN, TEST]),  # the files leave one open
    ):
        with pytest.raises(UserError, match="the same patient"):
            split_of(path, groups, part, fixed)


def test_the_file_outranks_the_parts_of_the_data(tmp_path):
    part = [TEST, TRAIN, TRAIN, VAL]
    read = split_of(tmp_path / "a.csv", range(4), part, [TRAIN, TEST, TRAIN, TRAIN])
    assert read.tolist() == part
