"""One trial: a program disturbed in a process of its own, started again, and what came of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from scripts.torture_code.faults import Fault, Operations
from scripts.torture_code.stages import Place, Stage

SURVIVED, TOLD, LOST = "survived", "told", "lost"
REFUSED = 2  # the exit code of one line that says what to do
TRIES = 3
OPERATIONS_FILE = "operations"
PATIENCE = 120  # seconds


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code, negative where it was killed.
        said: what it wrote to stderr.
        seconds: from start to end.
        counts: how many of each operation there were, where it lived to tell.
    """

    code: int
    said: str
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def fault(self) -> str:
        """What is wrong with how it ended, or ""."""
        if "Traceback" in self.said:
            return "a traceback"
        if self.code in (0, -signal.SIGKILL):
            return ""
        if self.code not in (REFUSED, 3):
            return f"exit code {self.code}"
        return "" if self.said.strip() else "not a word"

    @property
    def last(self) -> str:
        return self.said.strip().rpartition("\n")[2]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        verdict: ``SURVIVED``, ``TOLD`` where the program says what to do instead, or ``LOST``.
        told: why, or what the program said.
    """

    verdict: str
    told: str = ""


class Laboratory:
    """Does stages in one folder, and knows what each leaves undisturbed.

    Attributes:
        place: the folder.
        unsynced: files that some stage renames before they are synced.
    """

    def __init__(self, folder: Path) -> None:
        self.place, self._logs, self._operations = Place(folder / "work"), folder, Operations()
        self._usual: dict[str, tuple[Ended, dict[str, str]]] = {}
        self.unsynced: list[str] = []

    @property
    def sees_operations(self) -> bool:
        """Whether operations can be counted and made to fail."""
        return self._operations.present

    def learn(self, stage: Stage) -> None:
        """Do a stage undisturbed and keep what it leaves, how long it takes and what it does.

        Raises:
            RuntimeError: it fails even so.
        """
        if stage.name in self._usual:
            return
        stage.begin(self.place)
        ended = self._do(stage, None)
        result = stage.result(self.place)
        if ended.code or not result:
            raise RuntimeError(f"{stage.name} fails undisturbed ({ended.code}): {ended.said}")
        self._usual[stage.name] = ended, result
        lines = (self._logs / OPERATIONS_FILE).read_text(encoding="utf-8").splitlines()
        self.unsynced += [f"{stage.name}: {path}" for path in find_unsynced(lines)]

    def trial(self, stage: Stage, faults: list[Fault]) -> Outcome:
        """Disturb a stage by the first fault, and starting it again by the others."""
        stage.begin(self.place)
        for fault in faults:
            ended = self._do(stage, fault)
            if ended.fault:
                return Outcome(LOST, f"{ended.fault}: {ended.last}")
            if ended.code == 0 and stage.result(self.place) != self._usual[stage.name][1]:
                return Outcome(LOST, f"exit code 0, but {self._unlike(stage)}")
        return self._again(stage)

    def _again(self, stage: Stage) -> Outcome:
        """Start a stage again until it has its result, or says that something else must be done."""
        for _ in range(TRIES):
            if stage.result(self.place) == self._usual[stage.name][1]:
                return Outcome(SURVIVED)
            ended = self._do(stage, None)
            if ended.fault:
                return Outcome(LOST, f"{ended.fault} on the next start: {ended.last}")
            if ended.code == REFUSED:
                return Outcome(TOLD, ended.last)
        return Outcome(LOST, self._unlike(stage))

    def _unlike(self, stage: Stage) -> str:
        wanted, found = self._usual[stage.name][1], stage.result(self.place)
        differ = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        return f"these files differ: {', '.join(differ[:5])}"

    def _do(self, stage: Stage, fault: Fault | None) -> Ended:
        usual = self._usual[stage.name][0] if fault else None
        number = 0
        if usual and fault and fault.operation:
            number = 1 + int(fault.moment * usual.counts[fault.operation])
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            self._live(stage, fault, number)
        moment = fault.moment * usual.seconds if usual and fault and not fault.operation else None
        code = _ended(child, PATIENCE if moment is None else moment)
        said = (self._logs / "said").read_text(encoding="utf-8", errors="replace")
        counts = json.loads((self._logs / "counts").read_text() or "{}") if code == 0 else {}
        return Ended(code, said, time.monotonic() - begun, counts)

    def _live(self, stage: Stage, fault: Fault | None, number: int) -> None:
        """The life of the child, which never returns."""
        code = 1
        try:
            for descriptor, name in ((1, "printed"), (2, "said")):
                os.dup2(self._opened(name), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            log = self._opened(OPERATIONS_FILE)
            self._operations.arm(self.place.folder, fault, number=number, log=log)
            code = stage.program(stage.command(self.place))
            (self._logs / "counts").write_text(json.dumps(self._operations.counts()))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _opened(self, name: str) -> int:
        return os.open(self._logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)


def _ended(child: int, patience: float) -> int:
    """The exit code of a process, which is killed when it is out of time."""
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def find_unsynced(lines: list[str]) -> list[str]:
    """Files that got their name before they were synced, and folders not synced after that.

    A loss of power could leave such a file empty, or take its new name away.
    """
    last: dict[str, str] = {}
    waiting: set[str] = set()
    found = []
    for line in lines:
        operation, path, other = line.split("\t")
        if operation == "rename":
            below = [name for name in last if f"{name}/".startswith(f"{path}/")]
            found += [other + name[len(path) :] for name in below if last[name] == "write"]
            waiting = {name for name in waiting if not f"{name}/".startswith(f"{path}/")}
            waiting.add(str(Path(other).parent))
        if operation == "fsync":
            waiting.discard(path)
        last[path] = operation
    return found + sorted(waiting)
