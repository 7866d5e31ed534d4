"""The parts of the benchmark: each times some tasks in turn and notes what it found in a run."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.bench import children
from scripts.bench.work import (
    Bench,
    Federation,
    Work,
    bare_loop,
    interleave,
    plain_loop,
    quotient,
    spread,
    stage_times,
    threads,
)
from utils_.environment import processor_count

EVERY_ROUND = {"judge_from": 0}  # a round of FedNML that does all it may have to do


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        work: of the loops, the stages and the evaluation.
        default: of the default round and the peers; its size is one of ``sizes``.
        many: of the many clients; ``images`` are those of one of the most.
        repeats: repetitions of what runs in this process.
        restarts: repetitions of what needs a process of its own.
        sizes: edges of the images of the default round.
        counts: how many clients.
        files: JPEG files of the cache and the start, of edge ``file_size`` afterwards.
        peer_rounds: rounds of one repetition.
    """

    work: Work
    default: Work
    many: Work
    repeats: int = 7
    restarts: int = 3
    sizes: tuple[int, ...] = (32, 64)
    counts: tuple[int, ...] = (4, 16, 64, 256, 1000)
    files: int = 2208
    file_size: int = 64
    peer_rounds: int = 3


FULL = Scale(work=Work(), default=Work(), many=Work(clients=1000, images=32, tested=32, epochs=1))
LITTLE = Work(images=64, tested=128, epochs=1)
SMALL = Scale(
    repeats=2,
    restarts=1,
    work=LITTLE,
    default=replace(LITTLE, images=32),
    many=Work(clients=1000, images=2, tested=32, size=16, epochs=1, batch=2),
    counts=(4, 1000),
    files=150,
    peer_rounds=1,
)


@dataclass
class Run:
    """One run of the benchmark: what to do, and what was found.

    Attributes:
        ratios: name to median and spread; absent where not measured.
        timed: name to the seconds of each repetition, and how many images they took.
        clients, stages: rows of those two parts.
        failures: why a part gave nothing.
    """

    scale: Scale
    folder: Path
    ratios: dict[str, tuple[float, float]] = field(default_factory=dict)
    timed: dict[str, dict[str, Any]] = field(default_factory=dict)
    clients: list[dict[str, float]] = field(default_factory=list)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @cached_property
    def files(self) -> Path:
        """A folder of JPEG files, written once."""
        return children.write_jpegs(self.folder / "data", self.scale.files)

    def keep(self, name: str, seconds: list[float], *, images: int) -> None:
        """Note the repetitions of one task."""
        middle = statistics.median(seconds)
        self.timed[name] = {
            "median": middle,
            "spread": spread(seconds),
            "images_per_second": images / middle,
            "seconds": seconds,
        }


# ---- the parts


def loops(run: Run) -> None:
    """FedAvg and FedNML, each against the bare loop of the same passes."""
    work = run.scale.work
    bench, refining = Bench(work), Bench(work)
    fedavg = Federation("fedavg", work)
    fednml = Federation("fednml", work, param=EVERY_ROUND)
    tasks = {
        "bare loop": lambda: bare_loop(bench),
        "fedavg": fedavg.round,
        "bare loop, scoring": lambda: bare_loop(refining, scored=True),
        "fednml": fednml.round,
    }
    with threads(1):
        found = interleave(tasks, run.scale.repeats)
    for name, seconds in found.items():
        run.keep(name, seconds, images=work.trained)
    run.ratios["fedavg_over_bare"] = quotient(found["fedavg"], found["bare loop"])
    run.ratios["fednml_over_bare"] = quotient(found["fednml"], found["bare loop, scoring"])


def default(run: Run) -> None:
    """The default round against the plain loop; the ratio that counts is the worst of the sizes."""
    ratios = {}
    with ExitStack() as stack:
        pairs = {}
        for size in run.scale.sizes:  # all workers start before this process has any other thread
            work = replace(run.scale.default, size=size)
            federation = Federation("fedavg", work, workers="auto")
            stack.callback(federation.close)
            pairs[size] = federation, Bench(work)
        for size, (federation, bench) in pairs.items():
            names = f"plain loop, {size} px", f"fedavg by default, {size} px"
            tasks = dict(zip(names, (with_all_threads(bench), federation.round), strict=True))
            found = interleave(tasks, run.scale.repeats)
            for name in names:
                run.keep(name, found[name], images=federation.work.trained)
            ratios[size] = quotient(found[names[1]], found[names[0]])
    for size, ratio in ratios.items():
        run.ratios[f"fedavg_default_over_plain_{size}px"] = ratio
    run.ratios["fedavg_default_over_plain"] = max(ratios.values())


def with_all_threads(bench: Bench) -> Callable[[], None]:
    """The plain loop with a thread for each processor."""

    def task() -> None:
        with threads(processor_count()):
            plain_loop(bench)

    return task


def start(run: Run) -> None:
    """The main job up to its first batch, on a folder whose image cache is warm."""
    options = {"dataset": "csv", "data-dir": run.files, "cache-dir": run.folder / "warm"}
    options |= {"image-size": run.scale.file_size, "workers": 1}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    found = []
    for number in range(run.scale.restarts + 1):
        place = f"--save-dir={run.folder / f'start{number}'}"
        found.append(children.call("start", arguments=[*arguments, place, "--quiet"])["seconds"])
    del found[0]  # which made the image cache
    run.ratios["start_seconds"] = statistics.median(found), spread(found)


def clients(run: Run) -> None:
    """The same images at more and more clients, each time in a process of its own."""
    many, counts = run.scale.many, run.scale.counts
    total = many.clients * many.images
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    compared = [counts[0], counts[-1]]  # next to each other and more often, since a ratio counts
    for number in range(2 * run.scale.restarts):
        for count in compared if number % 2 else [*compared, *counts[1:-1]]:
            images = total // count // many.batch * many.batch  # whole batches everywhere
            work = replace(many, clients=count, images=images)
            row = children.call("many_clients", work=asdict(work))
            found[count].append(row | {"seconds_per_image": row["seconds"] / work.trained})
    for count, rows in found.items():
        middle = {name: statistics.median([row[name] for row in rows]) for name in rows[0]}
        run.clients.append({"clients": count} | middle)
    few, most = (
        {name: [row[name] for row in found[count]] for name in found[count][0]}
        for count in (counts[0], counts[-1])
    )
    more = [b - a for a, b in zip(few["peak_mb"], most["peak_mb"], strict=True)]
    run.ratios["clients_1000_over_4"] = quotient(
        most["seconds_per_image"], few["seconds_per_image"]
    )
    run.ratios["memory_1000_minus_4_mb"] = statistics.median(more), spread(more)


def evaluation(run: Run) -> None:
    """The test set through the model and the metrics."""
    federation = Federation("fedavg", run.scale.work)
    with threads(1):
        found = interleave({"evaluation": federation.evaluate}, run.scale.repeats)
    run.keep("evaluation", found["evaluation"], images=run.scale.work.tested)


def stages(run: Run) -> None:
    """Where the time of a round goes."""
    for method, param in (("fedavg", {}), ("fednml", EVERY_ROUND)):
        federation = Federation(method, run.scale.work, param=param)
        with threads(1):
            federation.round()
            run.stages[method] = stage_times(federation, run.scale.restarts)


def cache(run: Run) -> None:
    """Our cache from nothing, with all processors, against PIL in this process."""
    size, folders = run.scale.file_size, iter(range(1_000_000))
    tasks = {
        "PIL": lambda: children.decode_plainly(run.files, size=size),
        "cold cache": lambda: children.build_cache(
            run.files, run.folder / f"cold{next(folders)}", size=size
        ),
    }
    found = interleave(tasks, run.scale.restarts)
    for name, seconds in found.items():
        run.keep(name, seconds, images=run.scale.files)
    run.ratios["cache_over_pil"] = quotient(found["cold cache"], found["PIL"])


def peers(run: Run) -> None:
    """Rounds with evaluation: ours by default, and the same in each peer that is installed."""
    work = replace(run.scale.default, size=run.scale.sizes[0])
    names = ["ours", *filter(children.installed, children.PEERS)]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(run.scale.restarts):
        for name in [name for name in names if name in found]:
            try:
                rounds = children.call(name, work=asdict(work), rounds=run.scale.peer_rounds)
            except children.ChildFailed as error:
                run.failures.append(str(error))
                del found[name]
            else:
                found[name].append(statistics.median(rounds["seconds"]))
    for name, seconds in found.items():
        run.keep(f"round with evaluation, {name}", seconds, images=work.trained)
    others = {name: seconds for name, seconds in found.items() if name != "ours"}
    if others and "ours" in found:
        best = min(others.values(), key=statistics.median)
        run.ratios["fedavg_over_best_peer"] = quotient(found["ours"], best)


PARTS: dict[str, Callable[[Run], None]] = {
    "loops": loops,
    "default": default,
    "start": start,
    "clients": clients,
    "evaluation": evaluation,
    "stages": stages,
    "cache": cache,
    "peers": peers,
}


def measure(run: Run, parts: Sequence[str]) -> None:
    """Do one part after the other; one that fails does not end the rest."""
    for part in parts:
        begin, known = time.perf_counter(), len(run.failures)
        try:
            PARTS[part](run)
        except children.ChildFailed as error:
            run.failures.append(f"{part}: {error}")
        for failure in run.failures[known:]:
            print(f"benchmark: {failure}", file=sys.stderr)
        print(f"benchmark: {part}, {time.perf_counter() - begin:.0f} s", file=sys.stderr)
