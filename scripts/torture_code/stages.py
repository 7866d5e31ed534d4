"""What is disturbed: programs in a folder of their own, and what they must have left in the end."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import audit, example_data, report
from src import main_fednml

RUN, CLASSES = "tortured", ("DR", "NORMAL", "MH", "ODC", "TSLN")
SHARED = {"rounds": 3, "warmup_rounds": 1, "image_size": 16, "local_epochs": 1, "batch_size": 20}
SHARED |= {"device": "cpu", "workers": 1, "name": RUN}
DRAWN = {"clients": 3, "train_images": 40, "test_images": 20, "noise": 0.3, "missing": 0.5}
FILES = {"dataset": "csv", "ignore_columns": "sex,age,reader", "val_share": 0.2}
PARAMS = ("judge_from=1", "min_noise=0", "doubted_weight=1", "mixup_epochs=0")
FEW = ("--folds", "2", "--repeats", "1", "--rounds", "1", "--least", "2", "--quiet")
IMAGES = 60
MEASURED = ("seconds", "seconds_per_round", "peak_rss_mb")  # differ from run to run
UNLIKE = ("events.", "env.json", "model_card.md", "error.txt", "round-")  # hold times or a pid


@dataclass(frozen=True)
class Place:
    """A folder in which programs work: ``data``, ``cache``, ``save`` and what they write."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "save" / "runs" / RUN

    @property
    def answers(self) -> Path:
        return self.folder / "answers.csv"


@dataclass(frozen=True)
class Stage:
    """A program and its result.

    Attributes:
        name: for the table.
        template: the folder with which it begins.
        program: its ``main``.
        command: the options, which may depend on what an earlier try has left.
        result: digests of what it leaves, by name; empty where that is not there.
    """

    name: str
    template: Path
    program: Callable[[Sequence[str]], int]
    command: Callable[[Place], list[str]]
    result: Callable[[Place], dict[str, str]]

    def begin(self, place: Place) -> None:
        """Put the folder back to how the stage begins."""
        shutil.rmtree(place.folder, ignore_errors=True)
        shutil.copytree(self.template, place.folder, symlinks=True)


def trained(place: Place) -> dict[str, str]:
    """Digests of a finished run, of its scenario and of the caches; its clocks left out."""
    if not (place.run / "DONE").exists():
        return {}
    found = _digests(place.run)
    for other in ("save/splits", "cache"):  # where half a file may lie for a day
        kept = _digests(place.folder / other).items()
        found |= {name: digest for name, digest in kept if name.endswith((".npz", ".npy"))}
    found["result.json"] = _digest(json.dumps(_result(place.run / "result.json")).encode())
    found["metrics.csv"] = _digest(json.dumps(_metrics(place.run / "metrics.csv")).encode())
    return found


def reported(place: Place) -> dict[str, str]:
    """The digest of the page, which names the day at most."""
    path = place.folder / "page" / "report.html"
    return {"report.html": _digest(path.read_bytes())} if path.exists() else {}


def audited(place: Place) -> dict[str, str]:
    return _digests(place.run / "audit")


def applied(place: Place) -> dict[str, str]:
    return _digests(place.run / "reviewed")


def make_stages(templates: Path, work: Place, run: Callable[[Stage], None]) -> list[Stage]:
    """All stages, and the folders with which they begin, below ``templates``.

    Args:
        work: where stages are done.
        run: does one there, undisturbed.
    """
    main = main_fednml.main
    empty, files, stopped, done = (templates / n for n in ("empty", "files", "stopped", "done"))
    drawn = Stage("drawn", empty, main, _drawn_command, trained)
    read = Stage("files", files, main, _files_command, trained)
    empty.mkdir(parents=True)
    example_data.write(files / "data", count=IMAGES)
    run(read)
    _as_stopped(work, stopped)
    _write_answers(work)
    shutil.copytree(work.folder, done, symlinks=True)
    return [
        drawn,
        read,
        Stage("resume", stopped, main, _files_command, trained),
        Stage("report", done, report.main, _report_command, reported),
        Stage("audit", done, audit.main, _audit_command, audited),
        Stage("apply", done, audit.main, _apply_command, applied),
    ]


def _as_stopped(finished: Place, folder: Path) -> None:
    """As the run would lie there had it been killed before its first checkpoint, without caches."""
    shutil.copytree(finished.folder, folder)
    run = Place(folder).run
    for name in ("DONE", "result.json", "model.safetensors", "best.safetensors"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoint")
    shutil.rmtree(folder / "cache")


def _write_answers(place: Place) -> None:
    """A reader who finds the first ten labels of the first finding to be wrong."""
    with (place.folder / "data" / "train_data.csv").open(encoding="cp1252") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    known = [row for row in rows if row[CLASSES[0]] in ("0", "1")][:10]
    lines = [f"{row['image']},{CLASSES[0]},{1 - int(row[CLASSES[0]])}" for row in known]
    place.answers.write_text("\n".join(["image,class,answer", *lines, ""]), encoding="utf-8")


def _drawn_command(place: Place) -> list[str]:
    return _train_command(place, DRAWN)


def _files_command(place: Place) -> list[str]:
    return _train_command(place, FILES | {"data_dir": place.folder / "data"})


def _train_command(place: Place, settings: dict[str, Any]) -> list[str]:
    """The command line of a new run, or of its resume where its folder is there."""
    if place.run.exists():
        return ["--resume", str(place.run), "--quiet"]
    places = {"save_dir": place.folder / "save", "cache_dir": place.folder / "cache"}
    table = (SHARED | settings | places).items()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in table]
    return [*options, *(f"--param={param}" for param in PARAMS), "--quiet", "--allow-duplicates"]


def _audit_command(place: Place) -> list[str]:
    return [str(place.run), *FEW]


def _report_command(place: Place) -> list[str]:
    return [str(place.run.parent), "--out", str(place.folder / "page" / "report.html")]


def _apply_command(place: Place) -> list[str]:
    return [str(place.run), "--apply", str(place.answers)]


def _digests(folder: Path) -> dict[str, str]:
    """Of every file but those that hold times; a temporary file left over is found here, too."""
    return {
        path.relative_to(folder).as_posix(): _digest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(UNLIKE)
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _result(path: Path) -> dict[str, Any]:
    table = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in table.items() if name not in MEASURED}


def _metrics(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
