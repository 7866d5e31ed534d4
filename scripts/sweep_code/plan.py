"""The runs of a sweep: their settings and folders, and which folders are of other images."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.command_line import parse_command_line
from src.config import Config
from src.job import data_options, load_dataset, present_inputs, settle
from src.run_folder import IMAGES, changes, file_inputs, run_folder
from utils_.environment import processor_count
from utils_.errors import UserError
from utils_.script import silenced

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "src" / "main_fednml.py"
STALE = "stale"  # where folders of other images are put, beside "runs"


@dataclass(frozen=True)
class Planned:
    """A run of the sweep.

    Attributes:
        words: its options of main_fednml.py.
        config: what they resolve to.
        folder: where it lies, absolute.
    """

    words: tuple[str, ...]
    config: Config
    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / "DONE").exists()

    @property
    def log(self) -> Path:
        return self.folder.parents[1] / "logs" / f"{self.folder.name}.log"


def command_line(words: Sequence[str], *, jobs: int, resume: Path | None = None) -> list[str]:
    """The command of a new run, or of the rest of an unfinished one."""
    own = ["--quiet"]  # the sweep has a display of its own
    if jobs > 1:  # the runs share the processors
        own += ["--workers", str(max(processor_count() // jobs, 1))]
    rest = ["--resume", str(resume), *own] if resume else [*own, *words]
    return [sys.executable, str(MAIN), *rest]


def plan(commands: Sequence[Sequence[str]]) -> list[Planned]:
    """Resolve every run; of those that come to one folder (0.4 and .4) the first stays.

    Args:
        commands: the options of each.

    Raises:
        UserError: what the main program would refuse for its settings or label files.
    """
    inputs = _once(_inputs)
    found: dict[Path, Planned] = {}
    with silenced(logging.WARNING):  # what the label files give rise to is said by each run
        for words in commands:
            config = settle(parse_command_line(words)[0])
            folder = run_folder(config, inputs(config)).absolute()
            found.setdefault(folder, Planned(tuple(words), config, folder))
    return list(found.values())


def of_other_images(runs: Sequence[Planned]) -> list[Planned]:
    """Those whose folder was made from other images than are there now: its name does not tell."""
    images = _once(_images)
    there = [run for run in runs if run.folder.exists() and run.config.dataset != "synthetic"]
    with silenced(logging.WARNING):
        return [run for run in there if _differs(run.folder, images(run.config))]


def set_aside(run: Planned) -> Path:
    """Move the run's folder away, so that it is done anew; return where it lies now."""
    place = run.folder.parents[1] / STALE
    place.mkdir(exist_ok=True)
    names = (f"{run.folder.name}{end}" for end in ("", *(f"-{n}" for n in range(2, 10_000))))
    return run.folder.rename(next(place / n for n in names if not (place / n).exists()))


def _differs(folder: Path, present: dict[str, str]) -> bool:
    try:
        return IMAGES in changes(folder, present)
    except UserError:  # nobody knows from what it was made; the run itself will say so
        return False


def _inputs(config: Config) -> dict[str, str]:
    drawn = config.dataset == "synthetic"
    listed = None if drawn else load_dataset(config, quiet=True, labels_only=True)
    return file_inputs(config, listed)


def _images(config: Config) -> dict[str, str]:
    present = present_inputs(config, {}, quiet=True)
    return {IMAGES: present[IMAGES]}


def _once(read: Callable[[Config], dict[str, str]]) -> Callable[[Config], dict[str, str]]:
    """Read once for all runs that read the same files in the same way."""
    known: dict[str, dict[str, str]] = {}

    def reader(config: Config) -> dict[str, str]:
        files = (config.dataset, config.split_file, config.weights_file)
        key = repr((files, data_options(config, quiet=True)))
        if key not in known:
            known[key] = read(config)
        return known[key]

    return reader
