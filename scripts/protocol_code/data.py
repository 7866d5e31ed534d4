"""Where data sets lie, and folders of links whose training labels are the observed ones."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.protocol_code.plan import Identity, Run, chosen
from src.config import resolve
from src.job import load_dataset
from utils_.datasets import DATASETS, default_folder
from utils_.datasets.digest import labels_digest
from utils_.errors import UserError
from utils_.files import file_digest
from utils_.rng import derive

PLACE = "FEDNML_DATA"  # environment variable: a folder that holds one folder a data set
VAL_SHARE = 0.15  # as --val-share
Lines = list[list[str]]


def named_folders(pairs: Sequence[str]) -> dict[str, Path]:
    """Read ``--data NAME=DIR``."""
    folders = {}
    for pair in pairs:
        name, _, place = pair.partition("=")
        name = chosen(name, DATASETS, what="--data: data set")
        if not Path(place).is_dir() or not place:
            raise UserError(f"--data {pair}: no such folder; give NAME=DIR")
        folders[name] = Path(place).resolve()
    return folders


def data_folder(name: str, folders: Mapping[str, Path]) -> Path | None:
    """The folder of a data set that has one: --data, $FEDNML_DATA, data/NAME; None if absent."""
    places = [folders[name]] if name in folders else []
    places += [Path(os.environ[PLACE]) / name] if os.environ.get(PLACE) else []
    for place in [*places, default_folder(name)]:
        if place.is_dir() and any(path.name[0] != "." for path in place.iterdir()):
            return place.resolve()
    return None


def place_options(run: Run, folders: Mapping[str, Path], *, save_dir: Path) -> list[str]:
    """Return ``--data-dir`` and its folder, if the run needs one; makes a folder of links."""
    dataset = run.options["dataset"]
    if dataset == "synthetic":
        return []
    folder = data_folder(dataset, folders)
    if folder is None:
        raise UserError(f"{dataset}: its folder is absent; give --data {dataset}=DIR or ${PLACE}")
    if run.observed:
        folder = observed_folder(folder, run, save_dir / "data")
    return ["--data-dir", str(folder)]


def observed_folder(folder: Path, run: Run, inside: Path) -> Path:
    """A folder as ``folder``, but training labels are those of the run's observed file.

    Validation images, cut out by patient and seed, keep their true labels, as in every other
    setting. The folder serves all runs of the setting and seed.
    """
    # The digest is of what is copied; the rest are links, which follow their files.
    copied = ("train_data.csv", str(run.observed), "groups.csv")
    code = hashlib.sha256("".join(_digest(folder / name) for name in copied).encode()).hexdigest()
    made = inside / f"{run.setting}-{Path(str(run.observed)).stem}-s{run.seed}-{code[:10]}"
    if made.exists():
        return made
    draft = made.with_name(f".{made.name}")
    shutil.rmtree(draft, ignore_errors=True)  # of a call that was killed
    draft.mkdir(parents=True)
    for name in ("images", "test_data.csv", "groups.csv"):
        if (folder / name).exists():
            (draft / name).symlink_to(folder / name)
    true, observed = _lines(folder / "train_data.csv"), _lines(folder / str(run.observed))
    held_out = _validation(true, folder, seed=run.seed)
    _write(draft / "val_data.csv", [true[0], *(x for x in true[1:] if x[0] in held_out)])
    kept = [x for x in observed[1:] if x[0] not in held_out]
    _write(draft / "train_data.csv", [observed[0], *kept])
    return draft.rename(made)


def label_digests(runs: Sequence[Run], folders: Mapping[str, Path]) -> dict[Identity, str]:
    """What the label files of each run say, as one short text; empty for ``synthetic``."""
    known: dict[tuple[str, str | None], str] = {}
    found = {}
    for run in runs:
        key = run.options["dataset"], run.observed
        if key not in known:
            known[key] = _label_digest(*key, folders)
        found[run.identity] = known[key]
    return found


def _label_digest(name: str, observed: str | None, folders: Mapping[str, Path]) -> str:
    folder = None if name == "synthetic" else data_folder(name, folders)
    if folder is None:
        return ""
    config = resolve({"dataset": name, "data_dir": str(folder)})
    listed = labels_digest(load_dataset(config, quiet=True, labels_only=True))
    return f"{listed[:16]}{_digest(folder / observed)[:16] if observed else ''}"


def _digest(path: Path) -> str:
    return file_digest(path, "sha256") if path.is_file() else ""


def _validation(lines: Lines, folder: Path, *, seed: int) -> set[str]:
    """Names of the images of a share of the patients."""
    path = folder / "groups.csv"
    patient = {row[0]: row[1] for row in (_lines(path)[1:] if path.exists() else [])}
    group = {row[0]: patient.get(row[0], row[0]) for row in lines[1:]}
    patients = sorted(set(group.values()))
    order = derive(seed, "compare", "val").permutation(len(patients))
    chosen = {patients[place] for place in order[: round(VAL_SHARE * len(patients))]}
    return {image for image, who in group.items() if who in chosen}


def _lines(path: Path) -> Lines:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [line for line in csv.reader(file) if line]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see data/README.md") from error


def _write(path: Path, lines: Lines) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
