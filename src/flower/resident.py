"""A site's worker, as the process that Flower starts for each message sees it.

Flower starts a process for each message, which would import PyTorch and read the data each time.
That one therefore imports neither: it hands the message to a worker (worker.py) that stays, starts
it where there is none, and replaces one that is dead or gives no sign of life. They speak over a
socket in a folder that only this user may enter, in Flower's own bytes; nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto

from src.flower.node import Node
from src.flower.words import FAULT, HEAD
from utils_.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BEAT, DONE = b"\0", b"\1"  # what a worker sends: that it works, and that the answer follows
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 60.0  # after which a worker that gives no sign is replaced
START_SECONDS = 120.0
ATTEMPTS = 2
LEAVING = 3  # tries with workers that end just when somebody comes
SOCKET = "socket"
LENGTH = struct.Struct(">Q")
CREDENTIALS = struct.Struct("3i")  # of the process at the other end: its number, user and group
logger = logging.getLogger("fednml")


class WorkerGone(Exception):
    """The worker has ended, or gives no sign, before it has answered; says how."""


class NoWorker(Exception):
    """No worker can be started here; says why."""


def answered(
    kind: str, question: RecordDict, config: Mapping[str, Any], *, seconds: float
) -> RecordDict:
    """The site's answer to a message, see :func:`src.flower.answers.answer_question`.

    Args:
        kind: of the message.
        config: the node's ``--node-config``.
        seconds: after which nobody waits for the answer.
    """
    node = _node(config)
    if node and _lasts(node):
        try:
            return _by_worker(kind, question, config, node=node, seconds=seconds)
        except (OSError, NoWorker) as error:
            logger.warning("no lasting worker (%s): each message is answered more slowly", error)
    from src.flower.answers import answer_question

    return answer_question(kind, question, config)


def _node(config: Mapping[str, Any]) -> Node | None:
    """None where the settings are wrong, which is told by who answers."""
    try:
        return Node.read(config)
    except UserError:
        return None


def _lasts(node: Node) -> bool:
    """Whether this process is one of Flower's for a single message, and could have a worker."""
    alone = Path(sys.argv[0]).name == "flwr-clientapp"
    return alone and node.idle > 0 and sys.platform == "linux"


def _by_worker(
    kind: str, question: RecordDict, config: Mapping[str, Any], *, node: Node, seconds: float
) -> RecordDict:
    settings = json.loads(str(question[HEAD].get("settings", "{}")))
    folder = worker_folder(node.state_root(str(settings.get("save_dir", "save"))), node.name)
    told = {"kind": kind, "config": dict(config), "watched": os.getppid(), "code": str(ROOT)}
    request = json.dumps(told).encode(), to_bytes(question)
    end = time.monotonic() + seconds
    for _ in range(ATTEMPTS):
        try:
            return from_bytes(ask_worker(folder, request, idle=node.idle, end=end))
        except WorkerGone as error:
            logger.error("the worker of %s %s", node.called, error)
            told_of = str(error)
    fault = f"{node.called}: its worker {told_of}; its own log says why"
    return RecordDict({HEAD: ConfigRecord({FAULT: fault})})


def worker_folder(state: Path, name: str) -> Path:
    """Where the worker of a site has its socket; only this user may enter.

    Raises:
        OSError: it cannot be made.
    """
    folder = state / f"worker-{quote(name, safe='')}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def ask_worker(folder: Path, request: tuple[bytes, bytes], *, idle: float, end: float) -> bytes:
    """Have the worker of a folder answer; start it if there is none.

    Args:
        request: JSON, and the records.
        idle: seconds for which a worker that is started waits for the next message.
        end: the moment, on the monotonic clock, after which nobody waits.

    Raises:
        WorkerGone: it has ended on the way, or had to be ended.
        NoWorker: it cannot be started.
        OSError: the folder cannot hold a socket.
    """
    for _ in range(LEAVING):
        with _connected(folder, idle) as line:
            process, user, _ = CREDENTIALS.unpack(
                line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
            )
            if user != os.getuid():
                raise NoWorker(f"another user's process answers in {folder}")
            if not _takes_up(line, request, process, end):
                continue
            return _result(line, process, end)
    raise WorkerGone("ends before it works")


def _takes_up(line: socket.socket, request: tuple[bytes, bytes], process: int, end: float) -> bool:
    """Send the request and wait for the first sign; False if the worker was about to leave."""
    try:
        send_parts(line, request)
        return _next_sign(line, process, end) == BEAT
    except OSError:  # closed
        return False


def _result(line: socket.socket, process: int, end: float) -> bytes:
    try:
        while _next_sign(line, process, end) == BEAT:
            pass
        return receive_part(line)
    except OSError as error:
        raise WorkerGone("has ended while it worked") from error


def _next_sign(line: socket.socket, process: int, end: float) -> bytes:
    """What the worker sends next; one that sends nothing is ended."""
    line.settimeout(max(min(SILENCE_SECONDS, end - time.monotonic()), 0.001))
    try:
        return _exactly(line, 1)
    except TimeoutError as error:
        _end(process)
        late = time.monotonic() >= end
        raise WorkerGone(
            "has not answered in time" if late else "has given no sign of life"
        ) from error
    finally:
        line.settimeout(SILENCE_SECONDS)


def _end(process: int) -> None:
    """Kill a worker and wait until it is gone, so that the next one finds its folder free."""
    try:
        descriptor = os.pidfd_open(process)  # type: ignore[attr-defined,unused-ignore]
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)  # type: ignore[attr-defined,unused-ignore]
        select.select([descriptor], [], [], 10)
    finally:
        os.close(descriptor)


@contextmanager
def _connected(folder: Path, idle: float) -> Iterator[socket.socket]:
    """A line to the worker of the folder."""
    started: subprocess.Popen[bytes] | None = None
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with place_of_socket(folder) as place, socket.socket(socket.AF_UNIX) as line:
                line.settimeout(SILENCE_SECONDS)
                line.connect(place)
                yield line
                return
        except (FileNotFoundError, ConnectionRefusedError):
            if started is None or started.poll() == LOCKED:
                started = _start(folder, idle)
            elif started.poll() is not None:
                raise NoWorker(f"it ended with {started.returncode} at its start") from None
        if time.monotonic() > end:
            raise NoWorker(f"none answers in {folder}")
        time.sleep(0.05)


LOCKED = 3  # exit code of a worker that finds another one in its folder


def _start(folder: Path, idle: float) -> subprocess.Popen[bytes]:
    """Start a worker in this process's group and log, with the very code that runs here."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "src.flower.worker", str(folder), str(idle)],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
    )


@contextmanager
def place_of_socket(folder: Path) -> Iterator[str]:
    """The socket's address: a path of a hundred bytes at most, however long the folder's is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


# ---- bytes


def to_bytes(records: RecordDict) -> bytes:
    """Records as Flower sends them."""
    found: bytes = recorddict_to_proto(records).SerializeToString(deterministic=True)
    return found


def from_bytes(data: bytes) -> RecordDict:
    """The records of :func:`to_bytes`."""
    return recorddict_from_proto(Proto.FromString(data))


def send_parts(line: socket.socket, parts: tuple[bytes, ...]) -> None:
    """Send byte strings, each behind its length."""
    for part in parts:
        line.sendall(LENGTH.pack(len(part)))
        line.sendall(part)


def receive_part(line: socket.socket) -> bytes:
    """The next byte string.

    Raises:
        OSError: the other end is closed.
    """
    (count,) = LENGTH.unpack(_exactly(line, LENGTH.size))
    return _exactly(line, count)


def _exactly(line: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        got = line.recv(min(count - len(data), 2**20))
        if not got:
            raise ConnectionResetError("closed")
        data += got
    return bytes(data)
