"""Name the folder of every run of a grid: scripts/run_folders.py [options of main_fednml.py] < GRID

GRID has a line a run, ``method noise missing seed``, where ``-`` leaves a value to the options.
Prints each line with the run's folder at its end. Runs that come to the same folder (0.4 and .4)
are printed once. Part of sweep.sh, which so knows what is finished before it starts anything. The
folder's name has a digest of label files and weights in it, so that a run of other ones is new.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.command_line import parse_command_line
from src.config import Config, resolve
from src.job import load_dataset, present_inputs
from src.run_folder import IMAGES, changes, file_inputs, run_folder
from utils_.errors import UserError
from utils_.script import end_with

COLUMNS = {"method": "METHODS", "noise": "NOISE", "missing": "MISSING", "seed": "SEEDS"}


def main(options: Sequence[str] | None = None) -> int:
    """Print the grid with its folders; return 0, or 2 with one line on stderr."""
    logging.disable(logging.WARNING)  # what the label files give rise to is said by each run
    try:
        grid = [line.split() for line in sys.stdin.read().splitlines()]
        lines = plan(grid, sys.argv[1:] if options is None else options)
    except UserError as error:
        print(f"sweep: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def plan(grid: Sequence[Sequence[str]], options: Sequence[str]) -> list[str]:
    """Return one line a run: the values of the grid and the folder, without repetitions.

    Raises:
        UserError: a value or an option that the main program would refuse, or that clashes with
            the grid.
    """
    for option in options:
        _check_free(option.split("=")[0])
    configs = [resolve(parse_command_line([*options, *_grid_options(v)])[0]) for v in grid]
    inputs = _inputs(configs)
    folders = {}
    for config, values in zip(reversed(configs), reversed(grid), strict=True):
        folders[run_folder(config, inputs).absolute()] = values
    _check_finished(folders, configs, inputs)
    return [" ".join([*values, str(folder)]) for folder, values in reversed(folders.items())]


def _check_free(option: str) -> None:
    """Refuse an option that the grid sets, or that does not make sense in one."""
    name = option.removeprefix("--")
    if option.startswith("--") and name in COLUMNS:
        raise UserError(f'{option}: part of the grid; give {COLUMNS[name]}="..." before the script')
    if option in ("--name", "--resume", "--dry-run", "--list"):
        raise UserError(f"{option}: has no place in a sweep, which names and resumes runs itself")


def _grid_options(values: Sequence[str]) -> list[str]:
    pairs = zip(COLUMNS, values, strict=True)
    return [part for name, value in pairs if value != "-" for part in (f"--{name}", value)]


def _inputs(configs: Sequence[Config]) -> dict[str, str]:
    """Digests of the files that all runs share: nothing in the grid chooses another file."""
    if not configs:
        return {}
    drawn = configs[0].dataset == "synthetic"
    listed = None if drawn else load_dataset(configs[0], quiet=True, labels_only=True)
    return file_inputs(configs[0], listed)


def _check_finished(
    folders: Iterable[Path], configs: Sequence[Config], inputs: Mapping[str, str]
) -> None:
    """Refuse to take a run for finished whose images have changed: its name does not tell.

    Raises:
        UserError: naming the folder.
    """
    finished = [folder for folder in folders if (folder / "DONE").exists()]
    if not finished or configs[0].dataset == "synthetic":
        return
    present = present_inputs(configs[0], inputs, quiet=True)
    stale = sorted(folder for folder in finished if IMAGES in changes(folder, present))
    if stale:
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise UserError(
            f"{stale[0]}{more}: the images have changed since; move such folders away to run anew"
        )


if __name__ == "__main__":
    end_with(main)
