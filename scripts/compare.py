"""The comparison of all methods: python scripts/compare.py tune|choose|run|show [options]

tune    every candidate of every method, on the tuning seeds
choose  for each method the candidate with the best validation mAP
run     the chosen candidates, on the test seeds; the code must be committed
show    the tables

Finished runs have a row in a CSV file and are skipped. docs/protocol.md says what this is for,
scripts/compare.sh does it all, scripts/protocol/ says what is compared. Exit code 1: a run failed
and is tried again next time; 2: bad input; 130: interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts.protocol_code.choice import choose, read_choice, write_choice
from scripts.protocol_code.data import data_folder, label_digests, named_folders
from scripts.protocol_code.plan import (
    Protocol,
    Run,
    chosen,
    read_protocol,
    restricted,
    restricted_seeds,
)
from scripts.protocol_code.pool import Pool
from scripts.protocol_code.rows import (
    code_commit,
    locked,
    missing_runs,
    read_rows,
    refuse_thawed,
    unverified,
)
from scripts.protocol_code.tables import SCORES, show
from utils_.errors import UserError
from utils_.markdown import aligned
from utils_.script import Parser, end_with

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
ROWS = {"tune": "tuning", "choose": "tuning", "run": "test", "show": "test"}


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    try:
        options = _parse(sys.argv[1:] if words is None else words)
        protocol = read_protocol(options.protocol, options.budget)
        return STEPS[options.step](protocol, options)
    except UserError as error:
        _say(" ".join(str(error).split()))
        return BAD_INPUT
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        return INTERRUPTED


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="compare.py"
    )
    add = parser.add_argument
    add("step", metavar="tune|choose|run|show")
    add("--methods", nargs="+", metavar="NAME", help="some rows of methods.yaml (default all)")
    add("--settings", nargs="+", metavar="NAME", help="some of settings.yaml (default all)")
    add("--seeds", nargs="+", type=int, metavar="N", help="some seeds of the step (default all)")
    add("--jobs", type=int, default=2, metavar="N", help="runs side by side (default 2)")
    add("--dry-run", action="store_true", help="print the commands, train nothing")
    add("--rows", type=Path, metavar="FILE", help="default save/tables/compare_<tuning|test>.csv")
    add("--save-dir", type=Path, default=ROOT / "save" / "compare", metavar="DIR")
    add("--keep", action="store_true", help="keep the folders of finished runs")
    add("--data", action="append", default=[], metavar="NAME=DIR", help="folder of a data set")
    add("--allow-dirty", action="store_true", help="run: take code that is not committed")
    add("--selection", default="val_selected", help=f"show: {', '.join(SCORES)}")
    add("--protocol", type=Path, default=ROOT / "scripts" / "protocol", metavar="DIR")
    add("--budget", type=Path, metavar="FILE", help="default budget.yaml of --protocol")
    add("--chosen", type=Path, metavar="FILE", help="default chosen.yaml of --protocol")
    options = parser.parse_args(words)
    options.step = chosen(options.step, STEPS, what="step")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: give 1 or more")
    options.budget = options.budget or options.protocol / "budget.yaml"
    options.chosen = options.chosen or options.protocol / "chosen.yaml"
    table = f"compare_{ROWS[options.step]}.csv"
    options.rows = options.rows or ROOT / "save" / "tables" / table
    options.save_dir = options.save_dir.resolve()
    return options


def _tune(protocol: Protocol, options: argparse.Namespace) -> int:
    methods, settings = _names(protocol, options, settings=protocol.tuning_settings)
    seeds = restricted_seeds(options.seeds, protocol.tuning_seeds, phase="tuning")
    plan = [
        protocol.run(method, number, setting=setting, seed=seed)
        for seed in seeds
        for setting in settings
        for method in methods
        for number in range(protocol.candidates)
    ]
    return _work(plan, options)


def _choose(protocol: Protocol, options: argparse.Namespace) -> int:
    methods, settings = _names(protocol, options, settings=protocol.tuning_settings)
    restricted_seeds(options.seeds, protocol.tuning_seeds, phase="tuning")
    if options.seeds or options.settings:
        raise UserError("--seeds, --settings: a choice rests on all tuning seeds and settings")
    chosen = choose(protocol, options.rows, methods=methods, settings=settings)
    write_choice(options.chosen, chosen)
    if len(chosen["commits"]) > 1:
        _say(f"the tuning rows are of several commits: {', '.join(chosen['commits'])}")
    head = ["method", "chosen", *(f"candidate {n}" for n in range(protocol.candidates))]
    lines = [
        [method, str(own["candidate"]), *(f"{mean:.4f}" for mean in own["val_mAP"])]
        for method, own in chosen["methods"].items()
    ]
    print(aligned([head, *lines]))
    print(f"\nMean of the best validation mAP of each run; written to {options.chosen}")
    return DONE


def _run(protocol: Protocol, options: argparse.Namespace) -> int:
    methods, settings = _names(protocol, options, settings=protocol.settings)
    seeds = restricted_seeds(options.seeds, protocol.test_seeds, phase="test")
    candidate = read_choice(options.chosen, protocol, methods)
    if not (options.allow_dirty or options.dry_run):
        refuse_thawed(code_commit(ROOT), options.rows)
    plan = [
        protocol.run(method, candidate[method], setting=setting, seed=seed)
        for seed in seeds
        for setting in settings
        for method in methods
    ]
    return _work(plan, options)


def _show(protocol: Protocol, options: argparse.Namespace) -> int:
    methods, settings = _names(protocol, options, settings=protocol.settings)
    options.selection = chosen(options.selection, SCORES, what="--selection:")
    tuning = bool(options.seeds) and set(options.seeds) <= set(protocol.tuning_seeds)
    allowed = protocol.tuning_seeds if tuning else protocol.test_seeds
    seeds = restricted_seeds(options.seeds, allowed, phase="tuning" if tuning else "test")
    rows = [row for row in read_rows(options.rows) if int(row["seed"]) in seeds]
    if not rows:
        raise UserError(f"{options.rows}: no row of these seeds; run compare.py run")
    print(show(rows, methods=methods, settings=settings, selection=options.selection))
    if tuning:
        print("These are seeds of the tuning: what they show is a lead and no result.")
        return DONE
    print(
        f"Each method had {protocol.candidates} candidates on the seeds "
        f"{', '.join(map(str, protocol.tuning_seeds))} and the settings "
        f"{', '.join(protocol.tuning_settings)}, chosen by validation mAP."
    )
    return DONE


def _names(
    protocol: Protocol, options: argparse.Namespace, *, settings: Sequence[str]
) -> tuple[list[str], list[str]]:
    methods = restricted(options.methods, protocol.methods, option="--methods")
    return methods, restricted(options.settings, settings, option="--settings")


def _work(plan: Sequence[Run], options: argparse.Namespace) -> int:
    """Do what has no row yet."""
    folders = named_folders(options.data)
    present = [run for run in plan if _present(run, folders)]
    for setting in dict.fromkeys(run.setting for run in plan if run not in present):
        _say(f"left out: {setting}, whose data folder is absent; see --data")
    labels = label_digests(present, folders)
    runs = missing_runs(present, options.rows, labels)
    _say(f"{len(present) - len(runs)} of {len(present)} runs are in {options.rows} already")
    if count := unverified(present, options.rows, labels):
        _say(f"{count} rows are of a version that did not note the labels; taken as they are")
    for run in runs:
        run.config()  # refuses what main_fednml.py would refuse, before anything is trained
    commit = code_commit(ROOT)
    pool = Pool(options.save_dir, options.rows, commit, folders, labels, keep=options.keep)
    if options.dry_run:
        pool.show(runs)
        return DONE
    try:
        with locked(options.save_dir, wait=False):
            pool.work(runs, jobs=options.jobs)
    except BlockingIOError as error:
        raise UserError(f"--save-dir {options.save_dir}: in use by another compare.py") from error
    for failure in pool.failed:
        _say(f"FAILED: {failure}")
    return FAILED if pool.failed else DONE


def _present(run: Run, folders: dict[str, Path]) -> bool:
    name = run.options["dataset"]
    return name == "synthetic" or data_folder(name, folders) is not None


def _say(text: str) -> None:
    print(f"compare: {text}", file=sys.stderr)


STEPS: dict[str, Callable[[Protocol, argparse.Namespace], int]] = {
    "tune": _tune,
    "choose": _choose,
    "run": _run,
    "show": _show,
}


if __name__ == "__main__":
    end_with(main)
