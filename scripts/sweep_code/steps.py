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
    show_runs(_planned(options), jobs=options.jobs, measure=options.measure)
    return DONE


def show_runs(runs: Sequence[Planned], *, jobs: int, measure: bool) -> None:
    """Print the commands of the runs that are not finished, and on stderr how long they take."""
    stale = {run.folder for run in of_other_images(runs)}
    for run in runs:
        if run.folder in stale:
            say(f"of other images or of none that it notes, would be done anew: {run.folder}")
        elif run.finished:
            say(f"finished already: {run.folder}")
    open_runs = [run for run in runs if run.folder in stale or not run.finished]
    for run in open_runs:
        resume = run.folder if run.folder.exists() and run.folder not in stale else None
        print(shlex.join(command_line(run.words, jobs=jobs, resume=resume)))
    _tell_time(open_runs, jobs=jobs, measure=measure)


def _tell_time(runs: Sequence[Planned], *, jobs: int, measure: bool) -> None:
    """Say how long the runs take, and how that is known."""
    paces = finished_paces(runs)
    unknown = [run for run in runs if kind(run.config) not in paces]
    if told := estimate(runs, paces, jobs=jobs):
        say(f"{told}, by the seconds of finished runs")
    if unknown and not measure:
        kinds = len({kind(run.config) for run in unknown})
        say(
            f"no finished run tells how long {len(unknown)} runs take; --measure trains "
            f"four rounds of each of their {kinds} kinds to tell"
        )
    elif unknown:
        sys.stdout.flush()
        paces = measured_paces(unknown, jobs, say=say)
        told = estimate(unknown, paces, jobs=jobs)
        say(f"{told}, by four rounds of each kind, measured now" if told else "none was measured")


def work(options: argparse.Namespace) -> int:
    """Do the runs and print their table; return the exit code."""
    runs = _planned(options)
    failed = train(runs, jobs=options.jobs)
    _tabulate([run.folder for run in runs if run.finished])
    return tell_failures(failed)


def train(runs: Sequence[Planned], *, jobs: int) -> list[str]:
    """Do those that are not finished; return what failed, with the reason."""
    for run in of_other_images(runs):
        say(f"of other images or of none that it notes, put away to {set_aside(run)}: {run.folder}")
    for run in runs:
        if run.finished:
            say(f"finished already: {run.folder}")
            run.log.unlink(missing_ok=True)  # of one that outlived a killed sweep
    sweep = Sweep([run for run in runs if not run.finished], jobs)
    sweep.work()
    return sweep.failed


def tell_failures(failed: Sequence[str]) -> int:
    """Name what failed; return the exit code."""
    for failure in failed:
        say(f"FAILED: {failure}")
    return FAILED if failed else DONE


def _tabulate(folders: Sequence[Path]) -> None:
    if not folders:
        return
    table.main([str(folder) for folder in folders])
    print("\nRuns:", *folders, sep="\n    ")
    board = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folders[0].parent)]
    print(f"Curves: {shlex.join(board)}")
