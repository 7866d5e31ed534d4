"""What a round costs: round_cost.py [--engines NAME ...] [--sites N ...] [--rounds N] [--bytes]

Trains the same small federation (synthetic images of 16 pixels, 25 a site) in process, in Flower's
simulation and on a SuperLink with SuperNodes on this machine, and prints Markdown: the median of
the seconds a round, and the processor time of all processes, which other work on the machine hardly
changes. The first round is left out. With --bytes instead, what every method sends in a round.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.bench.loopback import Loopback
from src.flower import require_flower
from src.methods import method_class, method_names
from utils_.errors import UserError
from utils_.script import Parser, end_with, exit_code
from utils_.side_by_side import signals_interrupt

ENGINES = ("process", "simulation", "deployment")
IMAGES = 25  # a site
LONGEST = 1800.0  # seconds for one federation
SMALL: dict[str, Any] = {
    "dataset": "synthetic",
    "test-images": 50,
    "image-size": 16,
    "warmup-rounds": 1,
    "local-epochs": 1,
    "eval-every": 100,
    "device": "cpu",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code: 0, or 2 with one line on stderr."""
    signals_interrupt()  # whatever ends this ends the processes that it has started
    ended = "nothing is left behind"
    return exit_code(lambda: _print(_parse(arguments)), name="round_cost", interrupted=ended)


def _print(options: argparse.Namespace) -> int:
    for line in byte_table(options) if options.bytes else cost_table(options):
        print(line, flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["process"])
    parser.add_argument("--sites", nargs="+", type=int, default=[4], metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="from 3")
    parser.add_argument("--method", default="fedavg", choices=method_names(), metavar="NAME")
    parser.add_argument("--worker-idle", type=int, default=900, help="0: the sites keep no worker")
    parser.add_argument("--bytes", action="store_true", help="bytes a round of every method")
    options = parser.parse_args(arguments)
    if options.rounds < 3 or min(options.sites) < 2:
        raise UserError("--rounds and --sites: give at least 3 rounds and 2 sites")
    if not options.bytes and options.engines != ["process"]:
        require_flower()
    return options


def cost_table(options: argparse.Namespace) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| engine | sites | seconds a round | processor seconds a round |"
    yield "|---|---|---|---|"
    for sites in options.sites:
        for engine in options.engines:
            wall, processor, _ = measure_run(
                engine,
                sites=sites,
                rounds=options.rounds,
                method=options.method,
                worker_idle=options.worker_idle,
            )
            yield f"| {engine} | {sites} | {wall:.1f} | {processor:.1f} |"


def byte_table(options: argparse.Namespace) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| method | kB down | kB up | beyond FedAvg's up |"
    yield "|---|---|---|---|"
    names = [name for name in method_names() if method_class(name).exchange]
    names = [name for name in names if not method_class(name).true_labels]
    plain = 0.0
    for name in ["fedavg", *(name for name in names if name != "fedavg")]:
        sites, rounds = options.sites[0], options.rounds
        row = measure_run("process", sites=sites, rounds=rounds, method=name)[2]
        down, up = (float(row[f"bytes_{way}"]) / sites / 1000 for way in ("down", "up"))
        plain = plain or up
        yield f"| `{name}` | {down:.1f} | {up:.1f} | {up / plain - 1:+.1%} |"


def measure_run(
    engine: str, *, sites: int, rounds: int, method: str, worker_idle: int = 0
) -> tuple[float, float, dict[str, str]]:
    """Seconds and processor seconds of a round, and the row of the last one.

    Raises:
        UserError: the run has failed, or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="round-cost-") as place:
        folder = Path(place)
        told = SMALL | {"method": method, "clients": sites, "rounds": rounds}
        told |= {"train-images": IMAGES * sites, "cache-dir": str(folder / "cache")}
        told |= {"save-dir": str(folder / "save")}
        with Loopback(folder / "flower") as loopback:
            _begin(loopback, engine, told, worker_idle)
            return _watch(loopback, folder / "save", rounds)


def _begin(loopback: Loopback, engine: str, told: dict[str, Any], worker_idle: int) -> None:
    sites = told["clients"]
    if engine == "process":
        words = [f"--{key}={value}" for key, value in told.items()]
        main_job = str(ROOT / "src" / "main_fednml.py")
        loopback.start("run", sys.executable, main_job, "--quiet", "--workers=1", *words)
        return
    loopback.start_superlink(simulated=sites if engine == "simulation" else 0)
    for k in range(sites if engine == "deployment" else 0):
        config = {"partition-id": k, "num-partitions": sites, "worker-idle": worker_idle}
        config |= {"cache-dir": told["cache-dir"]}
        loopback.start_node(f"node{k}", config | {"state-dir": str(loopback.folder / f"state{k}")})
    loopback.run(told)


def _watch(loopback: Loopback, save: Path, rounds: int) -> tuple[float, float, dict[str, str]]:
    used: dict[int, tuple[float, float]] = {}  # rounds done: moment, processor time
    end = time.monotonic() + LONGEST
    while len(rows := _rows(save)) < rounds:
        if rows and len(rows) not in used:
            used[len(rows)] = time.monotonic(), loopback.processor_seconds()
        if time.monotonic() > end or not loopback.processes("run"):
            raise UserError(f"the run has failed: {loopback.log('run')[-300:]}")
        time.sleep(0.02)
    first, done = min(used), rounds - min(used)
    processor = loopback.processor_seconds() - used[first][1]
    return median(float(row["seconds"]) for row in rows[1:]), processor / done, rows[-1]


def _rows(save: Path) -> list[dict[str, str]]:
    paths = [*save.glob("runs/*/metrics.csv")]
    return [*csv.DictReader(paths[0].read_text().splitlines())] if paths else []


if __name__ == "__main__":
    end_with(main)
