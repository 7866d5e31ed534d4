"""A federation of real processes on this machine: a SuperLink, SuperNodes, and runs on them.

Each process has a session of its own, so that whatever it starts is found and ended with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUIET = {  # Flower calls home by default, and would install this project anew for every run
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
CONNECTION = (
    '[superlink]\ndefault = "loopback"\n[superlink.loopback]\n'
    'address = "127.0.0.1:{}"\ninsecure = true\n'
)
SIMULATED = (
    "options.num-supernodes = {}\noptions.backend.client-resources.num-cpus = 1\n"
    "options.backend.client-resources.num-gpus = 0.0\n"
)


class Loopback:
    """The processes of one federation; a context manager that leaves none of them behind.

    Attributes:
        folder: where logs, states and Flower's own files lie.
        logs: {name of a process: its log}.
    """

    def __init__(
        self, folder: Path, *, environment: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """``environment`` has variables for processes by name."""
        self.folder, self.port = folder.absolute(), _free_port()
        self.logs: dict[str, Path] = {}
        self._environment = dict(environment or {})
        self._sessions: dict[str, subprocess.Popen[bytes]] = {}
        self._gone: dict[str, int] = {}  # {name: session} whose first process was ended
        self._connect("")

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start_superlink(self, *, simulated: int = 0) -> None:
        """Start the SuperLink, or start it again on the database of the one before.

        Args:
            simulated: nodes that it starts itself, on one processor each; 0 for SuperNodes.
        """
        kind = ["--database", str(self.folder / "state.db")]
        if simulated:
            kind = ["--simulation", "--isolation", "subprocess"]
            self._connect(SIMULATED.format(simulated))
        self._start(
            "superlink",
            *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--disable-runtime-dependency-installation", *kind),
        )
        wait_until(lambda: _listens(self.port), seconds=60, what="the SuperLink's port")

    def start_node(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a SuperNode with this ``--node-config``, or one that was killed again."""
        told = " ".join(f"{key}={_toml(value)}" for key, value in config.items())
        self._start(
            name,
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"),
            *("--port", str(_free_port()), "--node-config", told),
        )

    def kill(self, name: str) -> None:
        """Kill a process, as a loss of power would; not those that it has started."""
        process = self._sessions.pop(name)
        self._gone[name] = process.pid
        process.kill()
        process.wait()

    def send(self, name: str, number: int) -> None:
        """Send a signal to a process and all that it has started."""
        for pid in self.processes(name):
            _signal(pid, number)

    def stop(self, *, seconds: float = 60) -> None:
        """Ask all to end, and wait until they, and all that they have started, are gone.

        Raises:
            TimeoutError: somebody stays.
        """
        for process in self._sessions.values():
            process.terminate()
        inside = {pid for pid, own in _sessions_now().items() if own in self._all_sessions()}
        for pid in self._detached([*inside]):
            _signal(pid, signal.SIGTERM)
        wait_until(lambda: not self.processes(), seconds=seconds, what="the end of all processes")

    def run(self, settings: Mapping[str, Any], *, name: str = "run") -> subprocess.Popen[bytes]:
        """Start a run and follow it; its log is that of the server."""
        told = " ".join(f"{key}={_toml(value)}" for key, value in settings.items())
        command = ("flwr", "run", str(ROOT), "loopback", "--stream", "--run-config", told)
        return self._start(name, *command)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start any program as one of this federation's."""
        return self._start(name, *command)

    def processor_seconds(self) -> float:
        """What all processes have used that live, and those that they have waited for."""
        ticks = sum(_ticks(pid) for pid in self.processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def log(self, name: str) -> str:
        """What a process has said so far."""
        path = self.logs[name]
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def processes(self, name: str = "", *, of: str = "") -> list[int]:
        """Those that live of a name, also after it was killed, or of all names.

        ``of`` is a word of their command line.
        """
        wanted = {self._session(name)} if name else self._all_sessions()
        for process in self._sessions.values():
            process.poll()  # else it would stay as a zombie
        found = [pid for pid, session in _sessions_now().items() if session in wanted]
        found += [] if name else self._detached(found)
        return [pid for pid in found if os.fsencode(of) in _command(pid)]

    def close(self) -> None:
        """End everything, politely first."""
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                _signal(pid, number)
            deadline = time.monotonic() + 10 * (number == signal.SIGTERM)
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)
        for process in self._sessions.values():
            process.wait()

    def _detached(self, known: list[int]) -> list[int]:
        """What Flower starts in sessions of their own: a SuperLink's SuperExec and ServerApps."""
        mark = b"FLWR_HOME=" + os.fsencode(self.folder / "home") + b"\0"
        return [pid for pid in _sessions_now() if pid not in known and mark in _environment(pid)]

    def _connect(self, more: str) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        text = CONNECTION.format(self.port) + more
        (home / "config.toml").write_text(text, encoding="utf-8")

    def _session(self, name: str) -> int:
        return self._sessions[name].pid if name in self._sessions else self._gone[name]

    def _all_sessions(self) -> set[int]:
        return {process.pid for process in self._sessions.values()} | {*self._gone.values()}

    def _start(self, name: str, program: str, *options: str) -> subprocess.Popen[bytes]:
        self.logs[name] = self.folder / f"{name}.log"
        own = {"FLWR_HOME": str(self.folder / "home"), "PATH": _path()}
        with self.logs[name].open("ab") as log:
            self._sessions[name] = subprocess.Popen(
                [_program(program), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | QUIET | own | dict(self._environment.get(name, {})),
                cwd=self.folder,
                start_new_session=True,
            )
        return self._sessions[name]


def wait_until(done: Callable[[], object], *, seconds: float, what: str) -> None:
    """Look ten times a second.

    Raises:
        TimeoutError: it has not come within the time.
    """
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


def _program(name: str) -> str:
    found = shutil.which(name, path=_path())
    if found is None:
        raise FileNotFoundError(f"{name}: not beside this Python; pip install '.[flower]'")
    return found


def _path() -> str:
    """With the programs of this environment first: Flower starts its own by name."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f"'{value}'"


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _ticks(pid: int) -> int:
    """Processor time of a process and of the children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _sessions_now() -> dict[int, int]:
    """{process: its session}, without those that have ended and were not yet waited for."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state not in "ZX":
            found[int(path.parent.name)] = int(session)
    return found
