"""Ways to spoil options, settings, label files, images, folders and runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import tiny
import torch

ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0


@dataclass
class Place:
    """A folder in which one row of the table is tried; it is the current folder, too.

    Attributes:
        folder: holds all that a row needs and all that it could leave behind.
        pristine: the tiny data as files.
        finished: the folder of a finished run on them.
        mounts: what to unmount afterwards.
    """

    folder: Path
    pristine: Path
    finished: Path
    mounts: list[Path] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """A copy of the tiny data, made when it is first asked for."""
        path = self.folder / "data"
        if not path.exists():
            shutil.copytree(self.pristine, path)
        return path

    @property
    def save(self) -> Path:
        return self.folder / "save"

    @property
    def run(self) -> Path:
        """A copy of the finished run, made when it is first asked for."""
        path = self.folder / "run"
        if not path.exists():
            shutil.copytree(self.finished, path)
        return path

    def mount(self, name: str, options: str) -> Path:
        """Mount an empty file system in memory, or skip the row."""
        path = self.folder / name
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if not ROOT_USER or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here; that needs root")
        self.mounts.append(path)
        return path

    def contents(self) -> dict[str, str]:
        """Every path below the folder with its kind and content."""
        return {str(path.relative_to(self.folder)): _state(path) for path in _walk(self.folder)}


def _walk(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def _state(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


Prepare = Callable[[Place], Sequence[Any]]
Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        name: what is wrong.
        prepare: makes the files and returns the command line.
        words: what the message must contain.
        separate: run in a process of its own, in which root is bound by permission bits.
    """

    name: str
    prepare: Prepare
    words: tuple[str, ...]
    separate: bool = False


def row(name: str, prepare: Prepare, *words: str, separate: bool = False) -> Row:
    return Row(name, prepare, words, separate)


# ---- ways to prepare


def options(*given: Any, **changes: Any) -> Prepare:
    """A command line that needs no file, with the given options at its end."""

    def prepare(place: Place) -> list[Any]:
        settings = {"dataset": "synthetic", "train_images": 40, "test_images": 20} | changes
        return [*tiny.command(place.folder / "drawn", place.save, **settings), *given]

    return prepare


def data(change: Change, *given: Any, **changes: Any) -> Prepare:
    """A command line on a copy of the tiny data to which ``change`` was done."""

    def prepare(place: Place) -> list[Any]:
        change(place.data)
        return [*tiny.command(place.data, place.save, **changes), *given]

    return prepare


def config(text: str | bytes, *given: Any) -> Prepare:
    """A command line with a YAML file."""

    def prepare(place: Place) -> list[Any]:
        path = place.folder / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["--config", path, "--quiet", *given]

    return prepare


def weights(content: bytes | dict[str, torch.Tensor], name: str = "my.pt") -> Prepare:
    """A command line with a file of weights."""

    def prepare(place: Place) -> list[Any]:
        path = place.folder / name
        if isinstance(content, dict):
            torch.save(content, path)
        else:
            path.write_bytes(content)
        return options("--weights", path)(place)

    return prepare


def resume(change: Change, *given: Any) -> Prepare:
    """Resume a copy of the finished run to which ``change`` was done."""

    def prepare(place: Place) -> list[Any]:
        change(place.run)
        return ["--resume", place.run, "--quiet", *given]

    return prepare


def unfinished(change: Change) -> Prepare:
    """Like :func:`resume`, as if the run had been stopped after its last checkpoint."""

    def both(run: Path) -> None:
        (run / "DONE").unlink()
        change(run)

    return resume(both)


def unchanged(folder: Path) -> None:
    """Leave the files as they are."""


def cell(text: str, *, part: str = "train", row: int = 5, column: int = 2) -> Change:
    """Write ``text`` into one cell of a label file; row 0 is the header."""

    def change(folder: Path) -> None:
        rows = tiny.read_table(folder / f"{part}_data.csv")
        rows[row][column] = text
        tiny.write_table(folder / f"{part}_data.csv", rows)

    return change


def rows(change: Callable[[list[list[str]]], Any], *, part: str = "train") -> Change:
    """Change the list of rows of a label file."""

    def changed(folder: Path) -> None:
        table = tiny.read_table(folder / f"{part}_data.csv")
        tiny.write_table(folder / f"{part}_data.csv", change(table))

    return changed


def written(name: str, content: bytes) -> Change:
    """Replace a file by other bytes."""
    return lambda folder: (folder / name).write_bytes(content)


def replaced(name: str, old: str, new: str) -> Change:
    """Replace a text inside a file."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def removed(name: str) -> Change:
    """Remove a file or a folder."""

    def change(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return change


def folder_instead(name: str) -> Change:
    """Put a folder where a file should be."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def forbidden(name: str, mode: int = 0) -> Change:
    """Take permissions from a file or folder."""
    return lambda folder: (folder / name).chmod(mode)


def truncated(folder: Path) -> None:
    path = folder / "images" / "image7.png"
    path.write_bytes(path.read_bytes()[:-200])


def three_bad_images(folder: Path) -> None:
    truncated(folder)
    (folder / "images" / "image3.png").write_text("this is no image\n")
    (folder / "images" / "image50.png").unlink()


def bad_beside_warnings(folder: Path) -> None:
    """A class that nobody shows and patients without name are logged where all else is well."""
    rows(lambda table: [table[0], *([*line[:-1], "0"] for line in table[1:])])(folder)
    rows(lambda table: [table[0], *([*line[:-1], "0"] for line in table[1:])], part="test")(folder)
    names = [line[0] for line in tiny.read_table(folder / "train_data.csv")[1:]]
    patients = [["ID", "patient_id"], *([name, ""] for name in names)]
    tiny.write_table(folder / "groups.csv", patients)
    three_bad_images(folder)


def no_image_at_all(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.write_text("this is no image\n")


def sites(folder: Path) -> None:
    names = [
        line[0]
        for part in ("train", "test")
        for line in tiny.read_table(folder / f"{part}_data.csv")[1:]
    ]
    lines = [[name, str(i), "north" if i % 2 else "south"] for i, name in enumerate(names)]
    tiny.write_table(folder / "groups.csv", [["ID", "patient_id", "site"], *lines])


def isic(folder: Path) -> None:
    """An ISIC folder whose ground truth has a column that ISIC lacks."""
    (folder / "ISIC_2019_Training_Input").mkdir()
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCD,UNK\n"
    truth = folder / "ISIC_2019_Training_GroundTruth.csv"
    truth.write_text(header + "ISIC_1" + ",0" * 9 + "\n")
    (folder / "ISIC_2019_Training_Metadata.csv").write_text("image,lesion_id\nISIC_1,a\n")


def folder_without_run(place: Place) -> list[Any]:
    (place.save / "runs" / "mine").mkdir(parents=True)
    return options("--name", "mine")(place)


def existing_run(place: Place, *, rounds: int, done: bool = True) -> list[Any]:
    """A command for the folder of a run of one round; a copy of it is there."""
    folder = place.save / "runs" / "run"
    shutil.copytree(place.finished, folder)
    if not done:
        (folder / "DONE").unlink()
    return tiny.command(place.pristine, place.save, method="fedavg", rounds=rounds, name="run")


def below_a_file(place: Place, option: str) -> list[Any]:
    (place.folder / "file").write_text("in the way\n")
    return data(unchanged, option, place.folder / "file" / "sub")(place)


def runs_is_a_file(place: Place) -> list[Any]:
    place.save.mkdir()
    (place.save / "runs").write_text("in the way\n")
    return data(unchanged)(place)


def mounted(place: Place, option: str, mount: str, prepare: Prepare) -> list[Any]:
    folder = place.mount("disk", mount)
    return [*prepare(place), option, folder]


def other_data(place: Place) -> list[Any]:
    """A run whose label file was changed after it had been stopped."""
    assert tiny.call_main(tiny.command(place.data, place.save, method="fedavg", name="mine")) == 0
    run = place.save / "runs" / "mine"
    (run / "DONE").unlink()
    cell("", part="train")(place.data)
    return ["--resume", run, "--quiet"]


def damaged_checkpoint(run: Path) -> None:
    path = next((run / "checkpoint").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def strange_checkpoint(run: Path) -> None:
    path = next((run / "checkpoint").glob("*.safetensors"))
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, path)  # without what else a run needs
