"""Print a number under each attack and aggregator: attack_table.py [RUN_DIR ...] [options]

RUN_DIR is a run's folder, one that holds several (default: save/attacks/runs), or a CSV file that
--csv has written. The table is Markdown: a row an aggregator, a column an attack, the mean ±
standard deviation over seeds. --value shows another number:

backdoor        share of test images without the target class in which the patch brings it
held_down       honest sites that stand apart, a round: with +suppress they count for less
found           attackers that stand apart or are rejected, a round
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.aggregation import AGGREGATORS
from src.attacks import ATTACKS
from utils_.errors import UserError, nearest
from utils_.files import atomic_path
from utils_.finished_runs import SELECTIONS, collect
from utils_.script import Parser, end_with

if TYPE_CHECKING:
    import pandas as pd

# Settings that make a cell of the table; all others must be the same in all runs.
CELL = ("attack", "attack_scale", "aggregator", "aggregator_param", "suppress_outliers", "seed")
VALUES = {
    "mAP": "mAP on the test set, {}",
    "backdoor": "share of patched test images with the target class, {}",
    "held_down": "honest sites that stand apart, a round",
    "found": "attackers that stand apart or are rejected, a round",
}
PRACTICAL = ("name", "save_dir", "cache_dir", "device", "workers", "checkpoint_every")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code: 0, or 2 with one line on stderr."""
    try:
        _run(_parse(arguments))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Print mAP under each attack and aggregator.")
    default = [ROOT / "save" / "attacks" / "runs"]
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", default=default)
    parser.add_argument("--selection", default="last5", help=f"one of {', '.join(SELECTIONS)}")
    parser.add_argument("--value", default="mAP", help=f"one of {', '.join(VALUES)}")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write one line a run")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    if options.selection not in SELECTIONS:
        hint = nearest(options.selection, SELECTIONS)
        raise UserError(f"--selection {options.selection}: unknown rule; {hint}")
    if options.value not in VALUES:
        hint = nearest(options.value, VALUES)
        raise UserError(f"--value {options.value}: unknown number; {hint}")
    lines = read_runs(options.runs, options.selection)
    if options.csv:
        try:
            with atomic_path(options.csv) as temporary:
                lines.to_csv(temporary, index=False)
        except OSError as error:
            raise UserError(f"--csv {options.csv}: {error.strerror or error}") from error
    if options.value not in lines or lines[options.value].isna().all():
        raise UserError(f"--value {options.value}: none of these runs has it; make them anew")
    print(attack_table(lines, options.value))
    rules = ", ".join(SELECTIONS.get(name, name) for name in lines["selection"].unique())
    print(f"\n{VALUES[options.value].format(rules)}.")


def read_runs(places: Sequence[Path], selection: str) -> pd.DataFrame:
    """One line a run: aggregator, attack, seed, the ``VALUES``, selection, run.

    Raises:
        UserError: no run, or runs that differ in more than attack, aggregator and seed.
    """
    import pandas as pd

    if len(places) == 1 and places[0].is_file():
        return _read_csv(places[0])
    frame = collect(places)
    if frame.empty or "config.attack" not in frame:
        raise UserError(f"{places[0]}: no finished run; make some with scripts/attacks.sh")
    _check_alike(frame)
    suppressed = frame["config.suppress_outliers"].map({True: "+suppress", False: ""})
    return pd.DataFrame(
        {
            "aggregator": frame["config.aggregator"] + suppressed,
            "attack": frame["config.attack"],
            "seed": frame["seed"],
            "mAP": frame[f"{selection}.mAP"],
            "backdoor": _column(frame, f"{selection}.backdoor"),
            "held_down": _column(frame, "reports.flagged_honest"),
            "found": _found(frame),
            "selection": selection,
            "run": [Path(run).name for run in frame["run"]],
        }
    )


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Blank where no run has it."""
    import pandas as pd

    return frame[name] if name in frame else pd.Series(float("nan"), frame.index)


def _found(frame: pd.DataFrame) -> pd.Series:
    counts = {name: _column(frame, f"reports.{name}") for name in ("flagged", "flagged_honest")}
    return counts["flagged"] - counts["flagged_honest"] + _column(frame, "reports.rejected")


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        # Only a blank is missing: there is an attack called "nan".
        lines = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give what --csv has written") from error
    absent = {"aggregator", "attack", "seed", "mAP", "selection"} - set(lines)
    if absent:
        raise UserError(f"{path}: lacks {', '.join(sorted(absent))}; give what --csv has written")
    return lines


def _check_alike(frame: pd.DataFrame) -> None:
    """Refuse to put runs of different settings into one table, or two runs into one cell."""
    free = {f"config.{name}" for name in (*CELL, *PRACTICAL)}
    settings = [name for name in frame if name.startswith("config.") and name not in free]
    for name in settings:
        values = sorted({str(value) for value in frame[name]})
        if len(values) > 1:
            raise UserError(
                f"{name.removeprefix('config.')} differs between the runs ({', '.join(values)}); "
                "name the folders of those that belong together"
            )
    cell = ["config.attack", "config.aggregator", "config.suppress_outliers", "seed"]
    twice = frame[frame.duplicated(cell)]
    if len(twice):
        raise UserError(f"{twice.iloc[0]['run']}: a second run of the same cell; leave one out")


def attack_table(lines: pd.DataFrame, value: str = "mAP") -> str:
    """Markdown: a row an aggregator, a column an attack."""
    present = {"attack": set(lines["attack"]), "aggregator": set(lines["aggregator"])}
    attacks = [name for name in ATTACKS if name in present["attack"]]
    order = [name + more for name in AGGREGATORS for more in ("", "+suppress")]
    rows = [["aggregator", *attacks], ["---"] + ["---:"] * len(attacks)]
    for aggregator in (name for name in order if name in present["aggregator"]):
        own = lines[lines["aggregator"] == aggregator]
        rows.append([aggregator, *(_cell(own[own["attack"] == a][value]) for a in attacks)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(values: pd.Series) -> str:
    if values.empty or values.isna().any():
        return "–"
    text = f"{values.mean():.3f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.3f}"


if __name__ == "__main__":
    end_with(main)
