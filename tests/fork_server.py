"""The server of forked.py: imports what programs import, then forks one for each request."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"src", "scripts"}
# Variables that Python and libraries read when they are started.
READ_AT_START = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_")
READ_AT_START += ("ATEN_", "DNNL_", "ONEDNN_", "TORCH", "CUDA_", "MPL", "LD_")
PATH = sys.path[1:]  # as it is for every script, but for the folder of the script


def load() -> None:
    """Import what the programs import, some of it late."""
    sys.path[0] = str(ROOT)

    import src.main_fednml
    import src.simulation  # noqa: F401

    gc.collect()
    gc.freeze()


def settings(variables: dict[str, str]) -> dict[str, str]:
    """Those variables that a process must have had from the start."""
    found = {name: value for name, value in variables.items() if name.startswith(READ_AT_START)}
    found.pop("PYTHON", None)  # what our shell scripts read
    threads = found.get("OMP_NUM_THREADS")  # which libraries follow that have none of their own
    return {n: v for n, v in found.items() if not n.endswith("_NUM_THREADS") or v != threads} | {
        "threads": threads or ""
    }


def checkout_of(command: list[str], cwd: str) -> Path | None:
    """The root of the repository, or of a copy, that the script belongs to."""
    if not command or not command[0].endswith(".py"):
        return None
    script = Path(cwd, command[0]).resolve()
    roots = [folder.parent for folder in script.parents if folder.name in PROGRAMS]
    found = (root for root in roots if (root / "src" / "main_fednml.py").is_file())
    return next(found, None) if script.is_file() else None


class Server:
    """Forks processes and tells how they end."""

    def __init__(self, listener: socket.socket, alive: int, folder: str) -> None:
        self._listener, self._alive, self._folder = listener, alive, folder
        self._connections: dict[int, socket.socket] = {}  # by the process
        self._started = settings(dict(os.environ))
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def serve(self) -> tuple[dict[str, Any], list[int]]:
        """Return in forked processes only: what is asked of them, and their three files."""
        while True:
            watched = [self._listener, self._alive, self._woken, *self._connections.values()]
            ready, _, _ = select.select(watched, [], [])
            if self._alive in ready:
                self._end()
            if self._woken in ready:
                os.read(self._woken, 4096)
            self._tell_ends()
            for process, connection in self._connections.items():
                if connection in ready:  # whoever waited was killed
                    os.kill(process, signal.SIGKILL)
            if self._listener in ready:
                request = self._accept()
                if request is not None:
                    return request

    def _end(self) -> NoReturn:
        for process in self._connections:
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)

    def _tell_ends(self) -> None:
        for process in list(self._connections):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                _answer(self._connections.pop(process), str(status), last=True)

    def _accept(self) -> tuple[dict[str, Any], list[int]] | None:
        connection, _ = self._listener.accept()
        head, files, _, _ = socket.recv_fds(connection, 8, 3)
        try:
            request = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        except (ValueError, ConnectionError):  # whoever asked was killed while asking
            connection.close()
        else:
            if self._fork(request, connection):
                return request, files
        for file in files:
            os.close(file)
        return None

    def _fork(self, request: dict[str, Any], connection: socket.socket) -> bool:
        """Whether this is the new process."""
        request["root"] = checkout_of(request["command"], request["cwd"])
        if request["root"] is None or settings(request["env"]) != self._started:
            _answer(connection, "", last=True)
            return False
        process = os.fork()
        if not process:
            self._close(connection)
            return True
        self._connections[process] = connection
        _answer(connection, str(process))
        return False

    def _close(self, own: socket.socket) -> None:
        """What a forked process has not."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for connection in (own, self._listener, *self._connections.values()):
            connection.close()
        for file in (self._alive, self._woken, self._waker):
            os.close(file)


def _answer(connection: socket.socket, text: str, *, last: bool = False) -> None:
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(text.ljust(16).encode())
    if last:
        connection.close()


def become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the process of a script, to its end."""
    os.setsid()
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.argv, sys.executable = request["command"], request["executable"]
    sys.path[:] = [str(Path(sys.argv[0]).resolve().parent), *PATH]
    sys.modules["numpy"].random.seed()  # else as that of every other process
    if request["root"] != ROOT:
        forget()
    if not request["pictures"]:
        without_pictures(request["root"])
    end(sys.argv[0])


def forget() -> None:
    """A copy has modules of its own."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("src", "utils_", "scripts"):
            del sys.modules[name]


def without_pictures(root: Path) -> None:
    """A run draws no labels, as in conftest.py."""
    if not (root / "src" / "simulation.py").is_file():
        return
    sys.path.insert(0, str(root))
    from src.simulation import Simulation

    sys.path.pop(0)
    Simulation._picture_due = lambda simulation: False


def end(script: str) -> NoReturn:
    """Run a script and end as the interpreter does, but for taking every library apart."""
    code: object = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    os._exit(code)


if __name__ == "__main__":
    server = Server(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
    load()
    become(*server.serve())
