"""Do the tests notice mistakes? python scripts/mutate.py [--modules utils_/labels.py ...]

Puts small mistakes into modules, one at a time, and runs the tests that reach their lines, in forks
of a process that has imported everything. scripts/mutate_code/modules.yaml names the modules and
their tests. Each verdict is written as it comes (--out), and those that are there are not sought
again as long as the module is the same; --again tries what survived once more, after new tests.
Survivors that no test can or need notice are explained in scripts/mutate_code/explained.csv.
Exit codes: 0, 1 where fewer mutants than --least were killed, 2 bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.mutate_code.trial import try_module
from scripts.mutate_code.verdicts import (
    NOTICED,
    Row,
    Verdicts,
    explanations,
    modules_and_tests,
    root_of,
)
from utils_.errors import UserError, nearest
from utils_.script import Parser, end_with, exit_code

PLAN = ROOT / "scripts" / "mutate_code" / "modules.yaml"
COLUMNS = ("mutants", "killed", "explained", "left", "share")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants; return the exit code."""
    return exit_code(lambda: _main(arguments), name="mutate", interrupted="start it again")


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", metavar="PATH", help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "save" / "mutants.csv", help="verdicts")
    parser.add_argument("--again", action="store_true", help="try what survived once more")
    parser.add_argument("--least", type=float, default=0.9, help="share to be killed (0.9)")
    parser.add_argument("--plan", type=Path, default=PLAN, help="other modules, in other folders")
    options = parser.parse_args(arguments)
    if not 0 <= options.least <= 1:
        raise UserError(f"--least {options.least}: give a share from 0 to 1")
    if find_spec("pytest") is None:
        raise UserError("pytest is not installed; run bash scripts/setup.sh test")
    chosen = _chosen(modules_and_tests(options.plan), options.modules)
    return mutate(chosen, options)


def _chosen(every: dict[str, list[str]], names: Sequence[str] | None) -> dict[str, list[str]]:
    for name in names or ():
        if name not in every:
            raise UserError(f"--modules {name}: is not in the plan; {nearest(name, every)}")
    return {name: tests for name, tests in every.items() if not names or name in names}


def mutate(plan: dict[str, list[str]], options: argparse.Namespace) -> int:
    """Try the mutants of the modules that ``plan`` names with their tests; the exit code."""
    root, verdicts = root_of(options.plan), Verdicts(options.out)
    explained = explanations(options.plan.parent / "explained.csv")
    _import_much()
    total: Counter[str] = Counter()
    print(f"{'module':<36}" + "".join(f"{name:>10}" for name in COLUMNS))
    for module, tests in plan.items():
        path = root / module
        done = verdicts.keep(module, path, again=options.again)
        for verdict in try_module(path, root=root, tests=tests, done=done):
            verdicts.add(module, path, verdict)
        counts = _counts(verdicts.of(module), explained)
        total += counts
        _show(module, counts)
    _show("all", total)
    return int(total["killed"] < options.least * total["mutants"])


def _import_much() -> None:
    """What the tests import, so that forked processes have it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import pytest  # noqa: F401
    import torch

    import src.simulation  # noqa: F401

    torch.set_num_threads(1)


def _counts(rows: Sequence[Row], explained: Mapping[tuple[str, str, str], str]) -> Counter[str]:
    left = [row for row in rows if row["outcome"] not in NOTICED]
    known = sum((row["module"], row["place"], row["change"]) in explained for row in left)
    killed = len(rows) - len(left)
    return Counter(mutants=len(rows), killed=killed, explained=known, left=len(left) - known)


def _show(name: str, counts: Counter[str]) -> None:
    share = counts["killed"] / counts["mutants"] if counts["mutants"] else 1.0
    cells = "".join(f"{counts[column]:>10}" for column in COLUMNS[:-1])
    print(f"{name:<36}{cells}{share:>10.1%}", flush=True)


if __name__ == "__main__":
    end_with(main)
