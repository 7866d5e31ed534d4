"""The steps of sweep.py: what would be done and how long it takes, or doing it and its table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts import table
from scripts.sweep_code.cost import estimate, finished_paces, kind, measured_paces
from scripts.sweep_code.grid import Grid, add_words, command_words, read_grid
from scripts.sweep_code.plan import (
    ROOT,
    Planned,
    command_line,
    of_other_images,
    plan,
    set_aside,
)
from scripts.sweep_code.work import Sweep, say

DONE, FAILED = 0, 1


def _planned(options: argparse.Namespace) -> list[Planned]:
    grid = read_grid(options.file) if options.file else Grid()
    add_words(grid, options.grid)
    grid.settings = {"save_dir": str(ROOT / "save")} | grid.settings
    return plan(command_words(grid, options.rest))


def show(options: argparse.Namespace) -> int:
    """Print the commands, and how long they take."""
    runs = _planned(options)
    stale = {run.folder for run in of_other_images(runs)}
    for run in runs:
        if run.folder in stale:
            say(f"of other images, would be done anew: {run.folder}")
        elif run.finished:
            say(f"finished already: {run.folder}")
    open_runs = [run for run in runs if run.folder in stale or not run.finished]
    for run in open_runs:
        resume = run.folder if run.folder.exists() and run.folder not in stale else None
        print(shlex.join(command_line(run.words, jobs=options.jobs, resume=resume)))
    _tell_time(open_runs, options)
    return DONE


def _tell_time(runs: Sequence[Planned], options: argparse.Namespace) -> None:
    """Say how long the runs take, and how that is known."""
    paces = finished_paces(runs)
    unknown = [run for run in runs if kind(run.config) not in paces]
    if told := estimate(runs, paces, jobs=options.jobs):
        say(f"{told}, by the seconds of finished runs")
    if unknown and not options.measure:
        kinds = len({kind(run.config) for run in unknown})
        say(
            f"no finished run tells how long {len(unknown)} runs take; --measure trains "
            f"four rounds of each of their {kinds} kinds to tell"
        )
    elif unknown:
        sys.stdout.flush()
        paces |= measured_paces(unknown, options.jobs, say=say)
        told = estimate(runs, paces, jobs=options.jobs)
        say(f"{told}, by four rounds of each kind, measured now" if told else "nothing is known")


def work(options: argparse.Namespace) -> int:
    """Do the runs and print their table; return the exit code."""
    runs = _planned(options)
    for run in of_other_images(runs):
        say(f"of other images, put away to {set_aside(run)}: {run.folder}")
    for run in runs:
        if run.finished:
            say(f"finished already: {run.folder}")
    sweep = Sweep([run for run in runs if not run.finished], options.jobs)
    sweep.work()
    _tabulate([run.folder for run in runs if run.finished])
    for failure in sweep.failed:
        say(f"FAILED: {failure}")
    return FAILED if sweep.failed else DONE


def _tabulate(folders: Sequence[Path]) -> None:
    if not folders:
        return
    table.main([str(folder) for folder in folders])
    print("\nRuns:", *folders, sep="\n    ")
    board = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folders[0].parent)]
    print(f"Curves: {shlex.join(board)}")
