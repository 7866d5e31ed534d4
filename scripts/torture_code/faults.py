"""What is done to a program: killed at a moment or at an operation, or an operation fails."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils_.rng import derive

SOURCE = Path(__file__).with_name("faults.c")
LIBRARY = "FEDNML_FAULTS"  # the variable that names the library to the program started with it
STAGES = ("drawn", "files", "resume", "report", "audit", "apply")
OPERATIONS = ("write", "fsync", "rename")  # in the order of faults.c
LASTING = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}  # a full disk stays full
ERRORS = LASTING | {"EINTR": errno.EINTR}
TIMED, KILLED, AGAIN = 0.4, 0.5, 0.3  # shares: of moments, of kills, of a second fault


@dataclass(frozen=True)
class Fault:
    """One way to disturb a program.

    Attributes:
        operation: one of ``OPERATIONS``, or "" for a moment in time.
        moment: the share of the undisturbed time, or of the operations, after which it strikes.
        error: the name of an errno; "" kills.
        lasting: whether all later operations of the kind fail, too.
    """

    operation: str
    moment: float
    error: str = ""
    lasting: bool = False

    def __str__(self) -> str:
        where = f"{self.operation or 'time'} {self.moment:.3f}"
        return f"{self.error or 'SIGKILL'}{' from' if self.lasting else ' at'} {where}"


def draw_faults(seed: int, point: int, *, operations: bool) -> list[Fault]:
    """What happens at a point: a fault, and at some points another one at the next start."""
    draw = derive(seed, "torture", point)
    return [_fault(draw, operations) for _ in range(1 + (draw.random() < AGAIN))]


def _fault(draw: np.random.Generator, operations: bool) -> Fault:
    moment = float(draw.random())
    if draw.random() < TIMED or not operations:
        return Fault("", moment)
    operation = OPERATIONS[draw.integers(len(OPERATIONS))]
    if draw.random() < KILLED:
        return Fault(operation, moment)
    error = str(draw.choice(list(ERRORS)))
    return Fault(operation, moment, error, lasting=error in LASTING and draw.random() < 0.5)


def build_library(folder: Path) -> Path | None:
    """Compile faults.c; None where there is no compiler or no LD_PRELOAD."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "faults.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False)
    return library if done.returncode == 0 else None


class Operations:
    """The library in this process, if the process was started with it."""

    def __init__(self) -> None:
        path = os.environ.get(LIBRARY)
        self._library = ctypes.CDLL(path) if path else None

    @property
    def present(self) -> bool:
        return self._library is not None

    def arm(self, folder: Path, fault: Fault | None, *, number: int, log: int) -> None:
        """Count what this process does below ``folder``; let the fault strike at the number.

        Args:
            log: a descriptor that gets one line an operation.
        """
        if self._library is None:
            return
        kind = OPERATIONS.index(fault.operation) if fault and fault.operation else -1
        code = ERRORS[fault.error] if fault and fault.error else 0
        lasting = int(bool(fault and fault.lasting))
        place = os.fsencode(folder)
        self._library.fault_arm(place, kind, ctypes.c_long(number), code, lasting, log)

    def counts(self) -> dict[str, int]:
        """How many of each operation there were."""
        if self._library is None:
            return dict.fromkeys(OPERATIONS, 0)
        return {name: self._library.fault_count(k) for k, name in enumerate(OPERATIONS)}
