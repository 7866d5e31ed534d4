"""Where data sets lie, and folders of links whose training labels are the observed ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.protocol_code.plan import Identity, Run, chosen
from src.config import resolve
from src.job import load_dataset
from utils_.datasets import DATASETS, default_folder
from utils_.datasets.digest import labels_digest
from utils_.datasets.label_files.verified import VERIFIED_FILE
from utils_.errors import UserError
from utils_.files import file_digest

PLACE = "FEDNML_DATA"  # environment variable: a folder that holds one folder a data set


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
    """A folder of links as ``folder``, but training labels are those of the run's observed file.

    The true ones are its ``true_data.csv``: by them the program judges labels and the validation
    images, and on them the clean bound trains. The folder serves all runs of the setting.

    Raises:
        UserError: the folder lacks one of the two files.
    """
    made = inside / f"{run.setting}-{Path(str(run.observed)).stem}"
    if made.exists():
        return made
    links = {"train_data.csv": str(run.observed), VERIFIED_FILE: "train_data.csv"}
    for source in links.values():
        if not (folder / source).exists():
            raise UserError(f"{folder / source}: is absent; see data/README.md")
    links |= {n: n for n in ("images", "test_data.csv", "groups.csv") if (folder / n).exists()}
    draft = made.with_name(f".{made.name}")
    shutil.rmtree(draft, ignore_errors=True)  # of a call that was killed
    draft.mkdir(parents=True)
    for name, source in links.items():
        (draft / name).symlink_to(folder / source)
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
