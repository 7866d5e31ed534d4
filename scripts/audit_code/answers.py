"""Readers' answers taken back: corrected copies of the label files of a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.config import Config
from src.job import data_options
from utils_.datasets import listed
from utils_.datasets.base import ImageDataset
from utils_.datasets.folder import ImageFolder
from utils_.datasets.label_files.cells import BLANK, NO_LABEL, Column
from utils_.datasets.label_files.image_column import lead_by_images
from utils_.datasets.label_files.tables import CsvTable, read_csv, shown
from utils_.datasets.label_files.text_files import edited
from utils_.errors import UserError, nearest
from utils_.files import atomic_folder, write_text
from utils_.spreadsheet import harmless, sheet

NEEDED = ("image", "class", "answer")
CANNOT_TELL = "?"  # the label becomes blank: nobody knows
SERVED = ("csv", "mured", "odir")  # whose label files have a column of 0 and 1 a class
TRAINING_FILE = "train_data.csv"
LIST_OF_CHANGES = "changes.csv"


@dataclass(frozen=True)
class Answer:
    """What a reader says of one cell.

    Attributes:
        row, column: of the data set.
        label: 1, 0, or NaN where it cannot be told.
        place: file and line of the answer.
    """

    row: int
    column: int
    label: float
    place: str


def read_answers(paths: Sequence[Path], dataset: ImageDataset) -> list[Answer]:
    """Read the answers of all files; a cell whose ``answer`` is blank has none.

    Raises:
        UserError: an image or class is not of the data set, an answer is none, the given label is
            not that of the files, or two answers to one cell differ; the place is named.
    """
    found: dict[tuple[int, int], Answer] = {}
    for path in paths:
        for answer in _of_file(path, dataset):
            before = found.setdefault((answer.row, answer.column), answer)
            if str(before.label) != str(answer.label):
                image, cls = dataset.files[answer.row], dataset.classes[answer.column]
                raise UserError(
                    f"{answer.place}: {shown(image)}, class {shown(cls)} is answered otherwise "
                    f"than in {before.place}; keep one of the two answers"
                )
    if not found:
        raise UserError(
            f"{paths[0]}: holds no answer; write 0, 1 or {CANNOT_TELL} into its column 'answer'"
        )
    return list(found.values())


def _of_file(path: Path, dataset: ImageDataset) -> list[Answer]:
    table = read_csv(path)
    for name in NEEDED:
        table.column(name)
    images, classes = _by_name(dataset.files), _by_name(dataset.classes)
    answers = []
    for place, label in _given_answers(table):
        where = f"{path}, line {table.lines[place]}"
        cells = dict(zip(table.header, table.rows[place], strict=True))
        row = _known(cells["image"], images, f"{where}: image")
        column = _known(cells["class"], classes, f"{where}: class")
        if "given" in cells:
            _check_given(cells["given"], dataset.labels[row, column], where)
        answers.append(Answer(row, column, label, where))
    return answers


def _given_answers(table: CsvTable) -> list[tuple[int, float]]:
    """Row of the table and label of each answer; 0, 1, yes, no and the like are understood."""
    cells = table.column("answer")
    meant = Column("answer", [cell for cell in cells if cell != CANNOT_TELL]).meaning
    answers = []
    for place, cell in enumerate(cells):
        label = meant.get(cell, BLANK)
        if cell != CANNOT_TELL and np.isnan(label):
            continue
        if label == NO_LABEL or label < 0:
            raise UserError(
                f"{table.path}, line {table.lines[place]}, column 'answer': {shown(cell)} is no "
                f"answer; write 0, 1, {CANNOT_TELL} for what cannot be told, or nothing"
            )
        answers.append((place, label))
    return answers


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """The place of each name, as it is and as an exported sheet spells it."""
    as_given = {name: place for place, name in enumerate(names)}
    return as_given | {harmless(name): place for place, name in enumerate(names)}


def _known(name: str, places: Mapping[str, int], what: str) -> int:
    if name not in places:
        raise UserError(f"{what} {shown(name)} is not of this run; {nearest(name, places)}")
    return places[name]


def _check_given(text: str, label: float, where: str) -> None:
    given = Column("given", [text]).meaning[text]
    if str(float(given)) != str(float(label)):
        told = "blank" if np.isnan(label) else f"{label:g}"
        raise UserError(
            f"{where}: the given label is {told} in the label files, not {shown(text)}; the "
            "answers are of another run or of other files"
        )


@dataclass(frozen=True)
class Correction:
    """What changed.

    Attributes:
        cells: how many labels are others than before.
        answers: how many answers there were.
        folder: the new data folder.
    """

    cells: int
    answers: int
    folder: Path


def correct_files(
    config: Config, dataset: ImageDataset, answers: Sequence[Answer], *, folder: Path
) -> Correction:
    """Make a data folder whose label file holds the answers; the old one stays as it is.

    The images are a link, other tables copies. ``changes.csv`` lists what is new.

    Raises:
        UserError: the label files are of another kind, or the folder exists or cannot be written.
    """
    source = Path(str(config.data_dir)) if config.data_dir else None
    if config.dataset not in SERVED or source is None:
        kinds = ", ".join(SERVED)
        raise UserError(
            f"--apply: labels of {config.dataset} lie in no files that could be corrected; this "
            f"serves runs of --dataset {kinds} with --data-dir"
        )
    if folder.exists():
        raise UserError(f"--out {folder}: exists; name a new folder")
    data, changed = _corrected(source / TRAINING_FILE, source / "images", dataset, answers)
    try:
        with atomic_folder(folder) as draft:
            _fill(draft, source, data)
            write_text(draft / LIST_OF_CHANGES, _list_of(changed, dataset))
            _check_reading(config, draft, dataset, answers)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be written ({error.strerror}); name another folder"
        ) from error
    return Correction(len(changed), len(answers), folder)


def _corrected(
    path: Path, images: Path, dataset: ImageDataset, answers: Sequence[Answer]
) -> tuple[bytes, list[Answer]]:
    """The bytes of the label file with the answers, and those that say something new."""
    written, folder = read_csv(path), ImageFolder(images)
    table = lead_by_images(written, folder)
    places = folder.place(table.names)
    file_of = dict(zip(reversed(table.names), reversed(places), strict=True))
    lines: dict[str, list[int]] = {}
    for place, line in zip(places, table.lines, strict=True):
        lines.setdefault(place, []).append(line)
    changes: dict[int, dict[int, str]] = {}
    changed = []
    for answer in answers:
        image, name = dataset.files[answer.row], dataset.classes[answer.column]
        if name not in written.header:
            raise UserError(
                f"{path}: has no column {shown(name)}, since it names the classes in one column; "
                "--apply needs a column of 0 and 1 for each class"
            )
        if image not in file_of:
            raise UserError(f"{answer.place}: {shown(image)} is no image of {path.name}")
        if str(dataset.labels[answer.row, answer.column]) == str(np.float32(answer.label)):
            continue
        changed.append(answer)
        text = _spelt(Column(name, written.column(name)), answer.label)
        for line in lines[file_of[image]]:
            changes.setdefault(line, {})[written.header.index(name)] = text
    return edited(path, changes), changed


def _spelt(column: Column, label: float) -> str:
    """The text by which a column says 1, 0 or nothing: its most frequent one."""
    for text, _ in column.counts.most_common():
        if str(column.meaning[text]) == str(label):
            return text
    if np.isnan(label):
        return ""
    return column.words[label != 1] if column.words else f"{label:.0f}"


def _fill(draft: Path, source: Path, data: bytes) -> None:
    for path in sorted(source.glob("*.csv")):
        if path.name != LIST_OF_CHANGES:
            shutil.copyfile(path, draft / path.name)
    (draft / TRAINING_FILE).write_bytes(data)
    (draft / "images").symlink_to((source / "images").resolve(), target_is_directory=True)


def _list_of(changed: Sequence[Answer], dataset: ImageDataset) -> str:
    def told(label: float) -> str:
        return "" if np.isnan(label) else f"{label:g}"

    header = ("image", "class", "before", "after", "answer from")
    return sheet(
        header,
        [
            (
                dataset.files[answer.row],
                dataset.classes[answer.column],
                told(dataset.labels[answer.row, answer.column]),
                told(answer.label),
                answer.place,
            )
            for answer in changed
        ],
    )


def _check_reading(
    config: Config, folder: Path, dataset: ImageDataset, answers: Sequence[Answer]
) -> None:
    """See that the new files say what they should, and nothing else.

    Raises:
        UserError: they do not, as where several rows of an image are combined by vote.
    """
    wanted = dict(zip(dataset.files, dataset.labels.copy(), strict=True))
    for answer in answers:
        wanted[dataset.files[answer.row]][answer.column] = answer.label
    options = data_options(config, quiet=True, labels_only=True)
    listing = listed(config.dataset, folder, options)
    column = {name: place for place, name in enumerate(listing.classes)}
    order = [column.get(name, -1) for name in dataset.classes]
    for name, labels in zip(listing.names, listing.labels, strict=True):
        if -1 in order or not np.array_equal(
            labels[order], wanted.get(name, labels[order]), equal_nan=True
        ):
            raise UserError(
                f"--apply: with these answers {TRAINING_FILE} would not read as intended, first "
                f"at {shown(name)}; correct that row by hand and leave its answers out"
            )
