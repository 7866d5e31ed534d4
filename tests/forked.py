"""Programs of this repository as processes that need not import torch, which takes seconds.

A server (fork_server.py) has imported everything and started nothing. It forks a real process for
each program: with a number, files, signals, an exit code and a session of its own. What is read
while Python or a library starts (options of the interpreter, thread settings) cannot be changed
there; the server refuses it, and the interpreter of :func:`python` then starts as it always does.

With FEDNML_TEST_FORKS=0, and where forking is not safe, all are started by the interpreter itself.

This module imports little: it is also what that interpreter runs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

FORKS = sys.platform == "linux" and os.environ.get("FEDNML_TEST_FORKS") != "0"
HERE = Path(__file__).resolve().parent
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
STAND_IN = """#!{python} -ISB
import sys
sys.path.insert(0, {here!r})
import forked
forked.stand_in({server!r}, {python!r})
"""


class Refused(Exception):
    """The program must be started by the interpreter itself."""


class Forked:
    """A process, as a subprocess.Popen is one.

    Args:
        server: the address of the server.
        command: a script of a checkout, and its arguments.
        files: stdin, stdout and stderr of the process; they may be closed afterwards.

    Raises:
        Refused: see the module.
    """

    returncode: int | None = None

    def __init__(
        self,
        server: str,
        command: Sequence[str],
        *,
        files: Sequence[int],
        **more: Any,
    ) -> None:
        self.args = list(command)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server)
        request = json.dumps({"command": self.args} | more).encode()
        socket.send_fds(self._connection, [len(request).to_bytes(8, "big")], list(files))
        self._connection.sendall(request)
        number = self._answer()
        if not number:
            self._connection.close()
            raise Refused(" ".join(self.args))
        self.pid = int(number)

    def _answer(self) -> str:
        return self._connection.recv(16, socket.MSG_WAITALL).decode().strip()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code, or minus the number of a signal."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._answer()
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self.returncode = os.waitstatus_to_exitcode(int(answer))
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """To the process alone; nothing where it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Captured(Forked):
    """A process whose output is kept."""

    def __init__(self, command: Sequence[Any], **options: Any) -> None:
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        with Path(os.devnull).open("rb") as nothing:
            files = [file.fileno() for file in (nothing, self._out, self._err)]
            super().__init__(_server()[0], [*map(str, command)], files=files, **options)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return stdout and stderr."""
        self.wait(timeout)
        return _text(self._out), _text(self._err)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def start(
    command: Sequence[Any],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pictures: bool = False,
) -> Captured | subprocess.Popen[str]:
    """Start a program.

    Args:
        command: a script of a checkout, and its arguments.
        env: all its variables; those of this process by default.
        pictures: let a run draw its labels, on which a tiny one would spend most of its time.
    """
    place, variables = str(cwd or Path.cwd()), dict(os.environ if env is None else env)
    if not FORKS:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
            env=variables,
            start_new_session=True,
        )
    options = {"cwd": place, "env": variables, "ignored": [], "executable": python()}
    return Captured(command, **options, pictures=pictures)


def run(
    command: Sequence[Any], *, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; the options of :func:`start`."""
    process = start(command, **options)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def python() -> str:
    """The path of an interpreter, for whatever starts programs itself.

    It hands a script of a checkout over to the server and behaves as its process does: passes
    signals on, ends with its code, and takes it along when it is killed. All else, options as
    ``-c`` too, it runs as Python does.
    """
    return _server()[1] if FORKS else sys.executable


@functools.cache
def _server() -> tuple[str, str]:
    """The address of this process's server, started now, and its stand-in for Python."""
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    address, program = folder / "server", folder / "python"
    script = STAND_IN.format(python=sys.executable, here=str(HERE), server=str(address))
    program.write_text(script)
    program.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    alive, held = os.pipe()  # the server ends when this process does, which holds the other end
    subprocess.Popen(
        [sys.executable, HERE / "fork_server.py", str(listener.fileno()), str(alive), folder],
        pass_fds=[listener.fileno(), alive],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    listener.close()
    os.close(alive)
    os.set_inheritable(held, False)
    return str(address), str(program)


class _Forwarder:
    """Passes the signals that this process gets on to a process that may not be there yet."""

    def __init__(self) -> None:
        ignored = {n for n in FORWARDED if signal.getsignal(n) == signal.SIG_IGN}
        self.ignored = sorted(map(int, ignored))  # as under nohup: the process must ignore them too
        self._process: Forked | None = None
        self._early: list[int] = []
        self._handle(self._forward)

    def _handle(self, handler: Any) -> None:
        for number in set(FORWARDED) - set(self.ignored):
            signal.signal(number, handler)

    def _forward(self, number: int, frame: object) -> None:
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)

    def to(self, process: Forked) -> None:
        """There it is."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def end(self) -> None:
        """Signals do what they do by default."""
        self._handle(signal.SIG_DFL)


def stand_in(server: str, interpreter: str) -> NoReturn:
    """Be the process of the script that the arguments of this process name."""
    signals = _Forwarder()
    try:
        if any(stream is None or stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
            raise Refused
        options = {"cwd": str(Path.cwd()), "env": dict(os.environ), "executable": sys.argv[0]}
        options |= {"ignored": signals.ignored, "pictures": "FEDNML_TEST_PICTURES" in os.environ}
        process = Forked(server, sys.argv[1:], files=range(3), **options)
    except (Refused, OSError):  # OSError: there is no server any more
        signals.end()
        os.execv(interpreter, [interpreter, *sys.argv[1:]])
    signals.to(process)
    code = process.wait()
    if code < 0:
        signals.end()
        os.kill(os.getpid(), -code)
        time.sleep(60)  # which the signal ends
    os._exit(code)
