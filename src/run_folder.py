"""A run's folder: its name, what the run in it was made from, and what follows if it exists."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.command_line import read_yaml
from src.config import OPTIONS, Config
from src.option import flag
from src.results import final_table
from utils_.datasets.base import ImageDataset
from utils_.datasets.digest import labels_digest
from utils_.errors import UserError
from utils_.files import file_digest
from utils_.folder_lock import held

SETTINGS, IMAGES, SCENARIO = "settings", "images", "scenario"
SPOKEN = {SETTINGS: "settings (config.yaml)", SCENARIO: "data, split, noise or masks"}


def file_inputs(config: Config, listed: ImageDataset | None) -> dict[str, str]:
    """Digests of the files, images aside, that a result depends on; part of the folder's name.

    Args:
        listed: the data set, loaded with ``labels_only``; ``synthetic`` needs none, since its
            settings say all.
    """
    found = {}
    if listed is not None and config.dataset != "synthetic":
        found["labels"] = labels_digest(listed)
    places = {"split file": config.split_file, "weights": config.weights_file}
    for what, place in places.items():
        if place and Path(place).is_file():  # what is absent is refused by its reader
            found[what] = file_digest(Path(place), "sha256")[:32]
    return found


def run_folder(config: Config, inputs: Mapping[str, str]) -> Path:
    """Where a run of these settings and files lies."""
    return Path(config.save_dir) / "runs" / config.run_name(inputs)


def made_from(
    config: Config, inputs: Mapping[str, str], *, images: str, scenario: str
) -> dict[str, str]:
    """All that a result depends on, as digests by name; it is noted in ``env.json``.

    Args:
        images: the key of the decoded images.
        scenario: the key of the scenario, which differs for another format of it, too.
    """
    return {SETTINGS: config.canonical_hash(), **inputs, IMAGES: images, SCENARIO: scenario}


def changes(folder: Path, present: Mapping[str, str]) -> list[str]:
    """Names of what the run in ``folder`` was made from otherwise than ``present`` says.

    What the run has not noted counts as changed, unless the scenario, which covers labels and
    images, is compared: runs of earlier versions have noted no more.

    Raises:
        UserError: the run does not say from what it was made.
    """
    recorded = _recorded(folder / "env.json")
    judged = recorded if SCENARIO in present else present
    return [name for name in present if name in judged and recorded.get(name) != present[name]]


def _recorded(path: Path) -> dict[str, str]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if "made_from" in table:
            return dict(table["made_from"])
        settings, _, scenario = table["identity"].partition("-")  # of an earlier version
        return {SETTINGS: settings, SCENARIO: scenario}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: absent or damaged, so that nobody knows from what the run was made; start "
            "anew under another --name"
        ) from error


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings with which the run in ``folder`` began.

    Raises:
        UserError: they cannot be read, or are those of another version.
    """
    try:
        return read_yaml(folder / "config.yaml")
    except UserError as error:
        problem = str(error).rpartition("; ")[0]
        raise UserError(f"{problem}; start anew under another --name") from error


def finished_table(folder: Path) -> str:
    """The final table of a finished run.

    Raises:
        UserError: its result cannot be read.
    """
    path = folder / "result.json"
    try:
        table = final_table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: absent or damaged; choose another --name to run anew") from error
    return f"{table}\n\nalready finished: {folder}"


def answer(folder: Path, config: Config, present: Mapping[str, str]) -> str:
    """The table of a finished run of the same settings and files.

    Raises:
        UserError: the folder holds no run, one that is not finished, or one of something else.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: exists and holds no run; choose another --name or remove it")
    changed = changes(folder, present)
    if SETTINGS in changed:
        raise UserError(
            f"{folder}: is a run with {_first_other(folder, config)}; choose another --name"
        )
    if changed:
        raise UserError(
            f"{folder}: the {' and '.join(changed)} are not those of this run; choose "
            "another --name to run with what is there now"
        )
    if not (folder / "DONE").exists():
        raise UserError(f"{folder}: exists; go on with --resume {folder} or choose another --name")
    return finished_table(folder)


def _first_other(folder: Path, config: Config) -> str:
    """The first setting in which the run there differs."""
    there = asdict(Config()) | settings_of(folder)  # an earlier version lacks the newer settings
    for name, value in asdict(config).items():
        if OPTIONS[name].metadata["result"] and there[name] != value:
            return f"{flag(name)} {there[name]} instead of {value}"
    return "other settings"


def refuse_changed(folder: Path, present: Mapping[str, str]) -> None:
    """Stop a resume whose result would be of neither the old nor the new files.

    Raises:
        UserError: naming what has changed.
    """
    changed = changes(folder, present)
    if changed:
        causes = [name for name in changed if name != SCENARIO] or changed
        names = [SPOKEN.get(name, name) for name in causes]
        raise UserError(
            f"--resume {folder}: the {' and '.join(names)} are not those the run began with; "
            "restore them, or start anew under another --name"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from the run: two would write its files in turn.

    Raises:
        UserError: another process is at work on it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder))
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another process is at work on this run; wait until it has ended, or "
                f"end it and go on with --resume {folder}"
            ) from error
        yield


def existing_parent(path: Path) -> Path:
    """The nearest folder above that is there."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def check_writable(folder: Path) -> None:
    """Raises UserError where nothing can be written."""
    parent = existing_parent(folder)
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(
            f"--save-dir: cannot write {folder} ({error.strerror}); choose another folder"
        ) from error
