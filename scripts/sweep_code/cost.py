"""How long a sweep takes: by finished runs of its kinds, or by a few rounds measured now."""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from scripts.sweep_code.plan import Planned, command_line
from src.config import Config, resolve
from src.methods import method_class
from utils_.errors import UserError
from utils_.side_by_side import SideBySide, last_line, open_log

ROUNDS, WARMUP = 4, 2  # what is measured of each kind; the first of a phase is slow
# Runs that differ in these alone take alike: the kind of a run is the rest.
ALIKE = {"seed": 1, "data_seed": 1, "noise": 0.0, "missing": 0, "lr": 1e-3, "weight_decay": 0.0}
HOUR = 3600


@dataclass(frozen=True)
class Pace:
    """Seconds of a run: its start, a round of the warm-up and one after it."""

    start: float
    warmup: float
    after: float

    def seconds(self, config: Config) -> float:
        """Of a whole run."""
        first = method_class(config.method).first_phase
        warmup = min(config.warmup_rounds, config.rounds) if first else 0
        return self.start + self.warmup * warmup + self.after * (config.rounds - warmup)


def kind(config: Config) -> str:
    """A digest that runs of the same pace share."""
    rounds = {"rounds": 2, "warmup_rounds": 1}
    return replace(config, **ALIKE, **rounds).canonical_hash()


def finished_paces(runs: Iterable[Planned]) -> dict[str, Pace]:
    """The pace of every kind that has a finished run beside those of the sweep, the newest."""
    found = {}
    for place in dict.fromkeys(run.folder.parent for run in runs):
        marks = sorted(place.glob("*/DONE"), key=lambda path: path.stat().st_mtime)
        for folder in (path.parent for path in marks):
            try:
                config = resolve(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))
                result = json.loads((folder / "result.json").read_text("utf-8"))
                mean = result["seconds"] / result["rounds"]
            except (UserError, OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
                continue  # of another version, or damaged: it tells nothing
            found[kind(config)] = Pace(0, mean, mean)
    return found


def measured_paces(
    runs: Sequence[Planned], jobs: int, *, say: Callable[[str], None]
) -> dict[str, Pace]:
    """Train a few rounds of one run of every kind, one at a time, and leave nothing.

    Args:
        runs: of the kinds.
        jobs: how many would run side by side.
        say: takes what is being done, and which kind failed.
    """
    kinds = {kind(run.config): run for run in reversed(runs)}
    found = {}
    for number, (name, run) in enumerate(reversed(kinds.items()), 1):
        say(f"measuring {number} of {len(kinds)}: {run.folder.name}")
        with tempfile.TemporaryDirectory(prefix="fednml-sweep-") as place:
            try:
                found[name] = _measure(run, jobs, Path(place))
            except (OSError, LookupError, ValueError) as error:
                say(f"cannot be measured: {run.folder.name}: {error}")
    return found


def _measure(run: Planned, jobs: int, place: Path) -> Pace:
    rounds, warmup = min(run.config.rounds, ROUNDS), min(run.config.warmup_rounds, WARMUP)
    own = ["--rounds", str(rounds), "--warmup-rounds", str(warmup)]
    own += ["--save-dir", str(place), "--name", "measured"]
    processes: SideBySide[Planned] = SideBySide(1)
    log, begun = place / "log", time.monotonic()
    try:
        processes.start(run, command_line([*run.words, *own], jobs=jobs), log=open_log(log))
        ((_, code),) = processes.collect(below=1)
    finally:
        processes.stop(at_once=True)
    if code != 0:
        raise ValueError(last_line(log))
    passed = time.monotonic() - begun
    with (place / "runs" / "measured" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return _pace(seconds, warmup=warmup, start=passed - sum(seconds))


def _pace(seconds: Sequence[float], *, warmup: int, start: float) -> Pace:
    """The last round of the warm-up, which is not slowed by the start, and the mean after it."""
    early, late = seconds[:warmup] or seconds, seconds[warmup:] or seconds
    return Pace(start, early[-1], sum(late) / len(late))


def estimate(runs: Sequence[Planned], paces: Mapping[str, Pace], *, jobs: int) -> str:
    """A sentence on the time that the runs take; blank if nothing is known of any."""
    told = [p.seconds(run.config) for run in runs if (p := paces.get(kind(run.config)))]
    if not told:
        return ""
    whole = max(sum(told) / jobs, max(told))  # no run is shared out
    beside = f", {jobs} side by side" if jobs > 1 else ""
    which = "" if len(told) == len(runs) else f"{len(told)} of "
    return f"{which}{len(runs)} runs take about {spoken(whole)}{beside}"


def spoken(seconds: float) -> str:
    """``50 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def rounds_done(run: Planned) -> int:
    """Rounds that an unfinished run has done."""
    try:
        with (run.folder / "metrics.csv").open("rb") as file:
            return max(sum(1 for _ in file) - 1, 0)
    except OSError:  # not begun
        return 0
