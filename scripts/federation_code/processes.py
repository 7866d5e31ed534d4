"""Processes that were started from a folder, found again and ended, with all that they started.

Each has the folder in its environment, which its children inherit, and says what it has to say in
a log there. Flower's own children leave the process group of their parent and outlive it for a
while, so a group is not enough to find them; nginx writes over its environment.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from utils_.errors import UserError
from utils_.side_by_side import last_line

MARK, PART = "FEDNML_FEDERATION", "FEDNML_PART"
PROCESSES = Path("/proc")
GRACE = 10.0  # seconds from SIGTERM to SIGKILL
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def refuse_other_systems() -> None:
    """Stop where processes cannot be found again.

    Raises:
        UserError: this is no Linux.
    """
    if not (PROCESSES / "self" / "environ").exists():
        raise UserError(
            "federation.py starts and ends processes on Linux only; elsewhere start Flower's own "
            "commands, see docs/deployment.md"
        )


def start_part(
    folder: Path,
    part: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a program in a group of its own, with a log in ``logs/``; return its number.

    Raises:
        UserError: this part runs already, or cannot be started.
    """
    if running(folder, part):
        raise UserError(f"{folder}: its {part} runs already; end it with stop")
    marks = {MARK: str(folder.resolve()), PART: part}
    (folder / "logs").mkdir(exist_ok=True)
    with log_of(folder, part).open("ab") as log:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | QUIET | dict(environment or {}) | marks,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be started ({error.strerror})") from error
    return process.pid


def log_of(folder: Path, part: str) -> Path:
    """What a part says, of all its starts."""
    return folder / "logs" / f"{part}.log"


def running(folder: Path, part: str | None = None) -> list[int]:
    """The processes of a folder, or of one part of it, whoever started them."""
    return sorted(n for n, of in _found(folder).items() if part in (None, of))


def parts(folder: Path) -> set[str]:
    """Which parts of a folder run."""
    return set(_found(folder).values())


def _found(folder: Path) -> dict[int, str]:
    """{process: its part}."""
    whole, found = folder.resolve(), {}
    for place in PROCESSES.iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                part = _part_by_environment(place, whole) or _part_by_log(place, whole)
                if part and not _is_dead(place):
                    found[int(place.name)] = part
    return found


def _part_by_environment(place: Path, folder: Path) -> str:
    lines = (place / "environ").read_bytes().decode(errors="replace").split("\0")
    told = dict(line.partition("=")[::2] for line in lines)
    return told.get(PART, "") if told.get(MARK) == str(folder) else ""


def _part_by_log(place: Path, folder: Path) -> str:
    log = (place / "fd" / "2").readlink()
    return log.stem if log.parent == folder / "logs" else ""


def _is_dead(place: Path) -> bool:
    """Whether it has ended and only waits to be noticed."""
    return (place / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"


def end_all(folder: Path, part: str | None = None) -> list[int]:
    """End the processes of a folder, by SIGTERM and then by SIGKILL; return those that remain."""
    for sent, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        deadline = time.monotonic() + seconds
        asked: set[int] = set()
        while left := running(folder, part):
            for number in set(left) - asked:  # a child may have come up meanwhile
                with suppress(ProcessLookupError):
                    os.kill(number, sent)
            asked |= set(left)
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    return running(folder, part)


def kill_all(folder: Path) -> int:
    """Kill the processes of a folder at once, as a loss of power would; return how many."""
    found = running(folder)
    for number in found:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return len(found)


def lives(number: int) -> bool:
    """Whether a process still runs."""
    try:
        return not _is_dead(PROCESSES / str(number))
    except OSError:
        return False


def wait_until(
    ready: Callable[[], bool], process: int, log: Path, *, seconds: float, what: str
) -> None:
    """Wait for a program to be ready.

    Raises:
        UserError: it has ended, or is not ready within the time.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if not lives(process):
            raise UserError(f"{what} has ended: {last_line(log)} (see {log})")
        if time.monotonic() > deadline:
            raise UserError(f"{what} is not ready after {seconds:g} s; see {log}")
        time.sleep(0.2)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def free_port() -> int:
    """One that the system gives to nobody else for the moment."""
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        return int(asking.getsockname()[1])


def refuse_taken(port: int, option: str) -> None:
    """Stop where a port of this machine is taken.

    Raises:
        UserError: somebody listens there.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"{option} {port}: give a port from 1 to 65535")
    if answers(port):
        raise UserError(f"{option} {port}: the port is taken; give another one")
