"""Give wrong input to all that reads: python scripts/fuzz.py [--inputs 100000] [--targets NAME ...]

Label files, split files, answers, YAML, the command line, images, npz, caches, weights, models,
checkpoints and folders of runs, all of them valid ones with changes by chance. Each input must be
read or refused in one line, within 5 s and 1 GB, with nothing written outside the folder given.
With --guided, one target is tried by atheris, which looks for inputs that reach other lines; it has
to be installed (pip install atheris), and ends at the first input that is neither read nor refused.
Exit codes: 0 all were, 1 some were not (each is named, with the words that repeat it), 2 bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.fuzz_code.mutate import mutated
from utils_.errors import UserError
from utils_.rng import derive
from utils_.script import Parser, end_with, exit_code, silenced

if TYPE_CHECKING:
    from scripts.fuzz_code.targets import Target

SECONDS, PATIENCE, BYTES = 5, 120, 2**30
SHOWN = 20
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
STARTING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the inputs; return the exit code."""
    return exit_code(lambda: _main(arguments), name="fuzz", interrupted="start it again")


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets (100000)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first (0)")
    parser.add_argument("--seed", type=int, default=1, help="of the changes (1)")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--guided", action="store_true", help="by atheris, one target")
    options = parser.parse_args(arguments)
    if options.guided and (find_spec("atheris") is None or len(options.targets or ()) != 1):
        raise UserError("--guided: needs --targets with one name, and pip install atheris")
    if options.inputs < 1 or options.first < 0:
        raise UserError("--inputs, --first: give a number from 1, and one from 0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # What is refused is told by the table.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, silenced(logging.CRITICAL):
        return fuzz(Path(folder).resolve(), options)


def fuzz(folder: Path, options: argparse.Namespace) -> int:
    """Try the inputs on each target in turn and print what came of it."""
    if options.guided:
        _guided(folder, options)
    targets = _chosen(folder, options.targets)
    each = -(-options.inputs // len(targets))
    failed = []
    print(f"{'target':<14}{'inputs':>8}{'read':>8}{'refused':>8}{'failed':>8}{'slowest':>9}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the run of the examples has taken it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target in targets.values():
        target.read()  # which is refused nowhere as long as nothing is wrong
    with only_below(folder), _little_memory():
        for name, target in targets.items():
            counts = {"read": 0, "refused": 0, "failed": 0}
            slowest = 0.0
            for number in range(options.first, options.first + each):
                verdict, why, seconds = attempt(name, target, seed=options.seed, number=number)
                counts[verdict] += 1
                slowest = max(slowest, seconds)
                if why:
                    again = f"--targets '{name}' --first {number} --inputs 1 --seed {options.seed}"
                    failed.append(f"{again}: {why}")
            cells = "".join(f"{count:>8}" for count in (each, *counts.values()))
            print(f"{name:<14}{cells}{slowest:>8.2f}s", flush=True)
    print(f"{each * len(targets)} inputs, {len(failed)} failed")
    print("\n".join(failed[:SHOWN]))
    return int(bool(failed))


def _guided(folder: Path, options: argparse.Namespace) -> None:
    """Let atheris choose the inputs of one target; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["src", "utils_", "scripts.audit_code"]):
        ((_, target),) = _chosen(folder, options.targets).items()
    path, others = target.files[0], [file.read_bytes() for file in target.files]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(others):
        (corpus / str(number)).write_bytes(data)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        with _time_limit(), contextlib.suppress(UserError, *target.refusals):
            target.read()

    atheris.Setup([sys.argv[0], f"-runs={options.inputs}", "-max_len=20000", str(corpus)], one)
    atheris.Fuzz()


def _chosen(folder: Path, names: Sequence[str] | None) -> dict[str, Target]:
    from scripts.fuzz_code.targets import make_targets
    from utils_.errors import nearest

    every = make_targets(folder)
    for name in names or ():
        if name not in every:
            raise UserError(f"--targets {name}: no such target; {nearest(name, every)}")
    return {name: target for name, target in every.items() if not names or name in names}


def attempt(name: str, target: Target, *, seed: int, number: int) -> tuple[str, str, float]:
    """Spoil one file and read: ``read``, ``refused`` or ``failed``, why, and the seconds."""
    path = target.files[derive(seed, "file", name, number).integers(len(target.files))]
    valid = [path.read_bytes()]
    path.write_bytes(mutated(seed, name, number, valid=valid))
    begun = time.process_time()
    try:
        with _time_limit():
            target.read()
        verdict, why = "read", ""
    except (UserError, *target.refusals):
        verdict, why = "refused", ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        verdict, why = "failed", f"{type(error).__name__} ({where}): {str(error)[:200]}"
    finally:
        path.write_bytes(valid[0])
    return ("failed" if why else verdict), why, time.process_time() - begun


class TookTooLong(Exception):
    """An input was not read within the time."""


@contextmanager
def _time_limit() -> Iterator[None]:
    """Of the processor, since a busy machine may stand still; for what waits, of the clock."""

    def stop(number: int, frame: object) -> None:
        raise TookTooLong(f"more than {SECONDS} s, or {PATIENCE} s without end")

    before = {one: signal.signal(one, stop) for one in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _little_memory() -> Iterator[None]:
    """More than ``BYTES`` on top of what is in use raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class WroteOutside(BaseException):
    """Something outside the folder was changed, or a program or a connection started."""


@contextmanager
def only_below(folder: Path) -> Iterator[None]:
    """Raise where Python opens for writing, or changes, what is not below ``folder``."""
    active = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if not active:
            return
        if event in STARTING:
            raise WroteOutside(f"{event} {arguments}")
        writes = event == "open" and isinstance(arguments[2], int)
        writes = writes and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        changed = arguments[:1] if writes else arguments if event in CHANGING else ()
        for place in changed:
            if isinstance(place, str | bytes | os.PathLike):
                path = Path(os.fsdecode(place)).resolve()
                if not path.is_relative_to(folder) and path != Path(os.devnull):
                    raise WroteOutside(f"{event} {path}")

    sys.addaudithook(watch)
    try:
        yield
    finally:
        active = False


if __name__ == "__main__":
    end_with(main)
