"""How fast the machine is used: python scripts/benchmark.py [--small] [--peers] [--parts NAME ...]

What counts are ratios of two things timed in turn in one run, so that machines and their moods
cancel. Prints a table and writes save/benchmarks/<host>-<date>.json. The parts:

loops       FedAvg's and FedNML's round against bare loops of the same passes, one thread
default     FedAvg's round as configured by default against a plain loop with all threads
start       from ``import torch`` to the first batch, the image cache being warm
clients     time and peak memory of 4 to 1,000 clients over the same images
evaluation  images scored a second, metrics included
stages      time by stage of a round
cache       a cold image cache against one-process PIL on the same files
peers       the same FedAvg in Flower and pfl-research where installed; only with --peers
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts.bench.parts import FULL, PARTS, SMALL, Run, Scale, measure
from src.models import MODELS
from src.simulation import resolve_device
from utils_.environment import describe
from utils_.errors import UserError
from utils_.files import write_json
from utils_.script import Parser, end_with

# What the ratios are to stay under on two processor cores.
LIMITS = {
    "fedavg_over_bare": 1.05,
    "fednml_over_bare": 1.10,
    "fedavg_default_over_plain": 0.60,
    "fedavg_over_best_peer": 0.60,
    "clients_1000_over_4": 1.15,
    "memory_1000_minus_4_mb": 60,
    "start_seconds": 2,
    "cache_over_pil": 0.60,
}


def ratio_table(run: Run) -> dict[str, float | None]:
    """Every promised ratio with its spread beside it, then those by size; None = not measured."""
    table: dict[str, float | None] = {}
    for name in [*LIMITS, *(name for name in run.ratios if name not in LIMITS)]:
        table[name], table[f"{name}_spread"] = run.ratios.get(name, (None, None))
    return table


def text(run: Run) -> str:
    """The findings as tables."""
    lines = [f"{'ratio':<34}{'median':>9}{'spread':>9}{'at most':>9}"]
    for name in [*LIMITS, *(name for name in run.ratios if name not in LIMITS)]:
        cells = run.ratios.get(name)
        shown = f"{cells[0]:>9.3f}{cells[1]:>9.3f}" if cells else f"{'-':>9}{'-':>9}"
        lines.append(f"{name:<34}{shown}{LIMITS.get(name, ''):>9}")
    lines += ["", f"{'task':<34}{'seconds':>9}{'spread':>9}{'images/s':>9}"]
    for name, row in run.timed.items():
        numbers = f"{row['median']:>9.3f}{row['spread']:>9.3f}{row['images_per_second']:>9.0f}"
        lines.append(f"{name:<34}{numbers}")
    lines += ["", f"{'clients':<34}{'seconds':>9}{'':>9}{'peak MB':>9}"] if run.clients else []
    for row in run.clients:
        lines.append(f"{row['clients']:<34}{row['seconds']:>9.3f}{'':>9}{row['peak_mb']:>9.0f}")
    for method, found in run.stages.items():
        lines += ["", f"{'stage of ' + method:<34}{'seconds':>9}{'share':>9}"]
        whole = sum(found.values())
        lines += [f"{name:<34}{s:>9.4f}{s / whole:>9.1%}" for name, s in found.items()]
    return "\n".join(lines)


def result_path(folder: Path, moment: datetime) -> Path:
    """``<host>-<date>.json``, numbered from the second run of a day on."""
    host = "".join(c if c.isalnum() or c in "-_." else "_" for c in platform.node()) or "unknown"
    path = folder / f"{host}-{moment:%Y-%m-%d}.json"
    number = 2
    while path.exists():
        path = folder / f"{host}-{moment:%Y-%m-%d}-{number}.json"
        number += 1
    return path


def record(run: Run, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """All that the file holds."""
    return {
        "small": options.small,
        "machine": describe(ROOT),
        "device": options.device,
        "scale": asdict(run.scale),
        "spread_is": "distance of the quartiles over the repetitions",
        "ratios": ratio_table(run),
        "limits": LIMITS,
        "seconds": run.timed,
        "clients": run.clients,
        "stages": run.stages,
        "failures": run.failures,
        "total_seconds": seconds,
    }


# ---- the command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, complete; raises UserError for wrong ones."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="everything once and small, a minute")
    parser.add_argument("--peers", action="store_true", help="also Flower and pfl-research")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="NAME", help="only these")
    parser.add_argument("--repeats", type=int, help="repetitions in this process")
    parser.add_argument("--model", choices=MODELS, default="small", help="for loops and stages")
    parser.add_argument("--image-size", type=int, help="for loops and stages, in pixels")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--save-dir", type=Path, default=ROOT / "save", help="default: save")
    options = parser.parse_args(arguments)
    if options.repeats is not None and options.repeats < 1:
        raise UserError(f"--repeats {options.repeats}: give a number from 1")
    options.device = str(resolve_device(options.device))
    options.parts = options.parts or [part for part in PARTS if part != "peers"]
    if options.peers and "peers" not in options.parts:
        options.parts.append("peers")
    return options


def scale_of(options: argparse.Namespace) -> Scale:
    """What the options ask for."""
    scale = SMALL if options.small else FULL
    work = replace(scale.work, model=options.model, device=options.device)
    work = replace(work, size=options.image_size or work.size)
    repeats = options.repeats or scale.repeats
    return replace(
        scale, repeats=repeats, work=work, default=replace(scale.default, device=options.device)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0, 1 where a part failed, or 2 with one line on stderr."""
    begin, moment = time.perf_counter(), datetime.now()
    try:
        options = parse(arguments)
        scale = scale_of(options)
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            run = Run(scale, Path(folder))
            measure(run, options.parts)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    print(text(run))
    path = result_path(options.save_dir / "benchmarks", moment)
    write_json(path, record(run, options, time.perf_counter() - begin))
    print(f"\n{path}")
    return 1 if run.failures else 0


if __name__ == "__main__":
    end_with(main)
