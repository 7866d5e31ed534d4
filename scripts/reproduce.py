"""The published table of a data set beside ours: scripts/reproduce.py mured|rfmid|brset [-- ...]

Trains every method in the three published settings with the published budget (preset "published"),
and prints the published numbers beside ours. "fednml-leaky" is FedNML with the leak of its released
code, which hands hidden labels to training; "fednml" is the same without it. Meant for a GPU. What
follows "--" goes to every run. Finished runs are skipped, as by scripts/sweep.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from utils_.errors import UserError, nearest
from utils_.script import Parser, end_with, exit_code

if TYPE_CHECKING:
    from scripts.sweep_code.plan import Planned

GOES_ON = "the same command goes on from here"
PUBLISHED = ROOT / "scripts" / "published.yaml"
COLUMNS = {
    "mAP": "mAP",
    "F1": "macro_f1",
    "recall": "macro_recall",
    "BACC": "balanced_accuracy",
}
METHODS = ("fedavg", "fednoro", "fedmlp", "fedlsm", "fednml", "fednml-leaky")
LEAKY = "-leaky"
SMOKE = {"dataset": "synthetic", "train_images": 120, "test_images": 60, "image_size": 16}
SMOKE |= {"model": "small", "weights": "none", "rounds": 3, "warmup_rounds": 1, "local_epochs": 1}
SMOKE_METHODS = ("fedavg", "fednml")


def main(words: Sequence[str] | None = None) -> int:
    """Train and print the table; return the exit code."""
    given = sys.argv[1:] if words is None else words
    return exit_code(lambda: _run(_parse(given)), name="reproduce", interrupted=GOES_ON)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dataset", metavar="mured|rfmid|brset")
    add("--methods", nargs="+", metavar="NAME", help=f"default {' '.join(METHODS)}")
    add("--seeds", nargs="+", type=int, default=[1], metavar="N", help="default 1, as published")
    add("--jobs", type=int, default=1, metavar="N", help="runs side by side (default 1)")
    add("--smoke", action="store_true", help="a minute on synthetic: shows that all steps work")
    add("--dry-run", action="store_true", help="print the commands and the time; train nothing")
    add("--measure", action="store_true", help="with --dry-run: time four rounds of each kind")
    options = parser.parse_args(words[:cut])
    options.rest = words[cut + 1 :]
    options.published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    options.methods = options.methods or (SMOKE_METHODS if options.smoke else METHODS)
    named = [(options.dataset, options.published), *((name, METHODS) for name in options.methods)]
    for name, known in named:
        if name not in known:
            raise UserError(f"{name}: nothing is published; {nearest(name, known)}")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: give a number of runs, 1 or more")
    return options


def _run(options: argparse.Namespace) -> int:
    from scripts.sweep_code.plan import plan
    from scripts.sweep_code.steps import show_runs, tell_failures, train

    own = options.published[options.dataset]
    runs = {name: plan(_commands(name, own, options)) for name in options.methods}
    every = [run for each in runs.values() for run in each]
    if options.dry_run:
        show_runs(every, jobs=options.jobs, measure=options.measure)
        return 0
    failed = train(every, jobs=options.jobs)
    print(_table(runs, own["settings"], options))
    return tell_failures(failed)


def _commands(name: str, own: Mapping[str, Any], options: argparse.Namespace) -> list[list[str]]:
    """The options of every run of a method: the preset, without what belongs to FedNML alone."""
    from scripts.sweep_code.grid import Grid, command_words
    from src.command_line import read_preset

    settings = read_preset("published") | {"method": name.removesuffix(LEAKY)}
    settings |= {"dataset": options.dataset, "clients": own["clients"]}
    settings |= {"save_dir": str(ROOT / "save")} | (SMOKE if options.smoke else {})
    if settings["method"] != "fednml":
        del settings["param"]
    if name.endswith(LEAKY):
        settings["param"] = settings["param"] | {"hidden_label_leak": True}
    flaws = [(one["noise"], one["missing"]) for one in own["settings"]]
    grid = Grid({n: v for n, v in settings.items() if n not in ("noise", "missing")})
    grid.add(("noise", "missing"), flaws, where=str(PUBLISHED))
    grid.add(("seed",), [(seed,) for seed in options.seeds], where="--seeds")
    return command_words(grid, options.rest)


def _table(
    runs: Mapping[str, Sequence[Planned]],
    settings: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
) -> str:
    from utils_.report import written

    head = ["method", *(f"{n}, {who}" for n in COLUMNS for who in ("published", "ours"))]
    tables = {}
    for one in settings:
        title = f"{options.dataset}, noise {one['noise']:g}, missing {one['missing']}"
        tables[title] = [[*head, "mAP, last five, ours"]]
        for name, each in runs.items():
            folders = [r.folder for r in each if r.config.noise == one["noise"] and r.finished]
            tables[title].append(_row(name, one.get(name.removesuffix(LEAKY), []), folders))
    seeds = ", ".join(map(str, options.seeds))
    caption = [
        "published: one seed, in the round that is best on the TEST set, as the README of the "
        "released code has it, whose FedNML has the leak. ours: the same optimistic round "
        f"(oracle_selected), seeds {seeds}; last five: the mean of the last five tested rounds, "
        "which no test score chose.",
    ]
    if any(name.endswith(LEAKY) for name in runs):
        caption.append("fednml-leaky: labels hidden from its sites trained it; never its equal.")
    if options.smoke:
        caption.append("SMOKE: synthetic images and three rounds; the numbers mean nothing.")
    return written(tables, "\n".join(caption))


def _row(name: str, published: Sequence[float], folders: Sequence[Path]) -> list[str]:
    from utils_.finished_runs import collect
    from utils_.report import mean_and_deviation

    frame = collect(folders)

    def ours(column: str) -> str:
        return mean_and_deviation(frame[column].to_numpy(float)) if column in frame else "–"

    cells = [name]
    for place, metric in enumerate(COLUMNS.values()):
        cells.append(f"{published[place]:.3f}" if published else "–")
        cells.append(ours(f"oracle_selected.{metric}"))
    return [*cells, ours("last5.mAP")]


if __name__ == "__main__":
    end_with(main)
