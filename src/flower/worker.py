"""A site's worker: it keeps PyTorch, images and model from message to message.

``python -m src.flower.worker FOLDER IDLE`` answers those who come to the socket in FOLDER, one at
a time. It ends when nobody has come for IDLE seconds, when the SuperNode is gone, when whoever asks
is gone, and after the last message of a run.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from src.flower.own_log import show_log
from src.flower.resident import (
    BEAT,
    BEAT_SECONDS,
    CREDENTIALS,
    DONE,
    LOCKED,
    ROOT,
    SOCKET,
    from_bytes,
    place_of_socket,
    receive_part,
    send_parts,
    to_bytes,
)
from src.flower.words import HEAD, OVER
from utils_.folder_lock import held

REQUEST_SECONDS = 60.0  # within which a whole question must come
logger = logging.getLogger("fednml")


class Watched:
    """The process that started the one that asks; where it is gone, so is the SuperNode."""

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self._number = 0

    def follow(self, number: int) -> None:
        """Watch the process of this number from now on."""
        if number == self._number:
            return
        self._number, old = number, self.descriptor
        try:
            self.descriptor = os.pidfd_open(number)  # type: ignore[attr-defined,unused-ignore]
        except OSError as error:
            logger.debug("process %d cannot be watched: %s", number, error)
            self.descriptor = None
        if old is not None:
            os.close(old)

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return self.descriptor is not None and bool(_ready([self.descriptor], 0))


def keep_answering(folder: Path, *, idle: float) -> None:
    """Answer in turn until there is a reason to end."""
    watched = Watched()
    with _listening(folder) as listener:
        while _somebody_comes(listener, watched, idle):
            line, _ = listener.accept()
            with line, suppress(OSError):  # who asks may be gone at any moment
                if _answer_one(line, watched):
                    return


@contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    (folder / SOCKET).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        with place_of_socket(folder) as place:
            listener.bind(place)
        listener.listen()
        try:
            yield listener
        finally:
            (folder / SOCKET).unlink(missing_ok=True)


def _somebody_comes(listener: socket.socket, watched: Watched, idle: float) -> bool:
    sources = [listener.fileno(), watched.descriptor]
    ready = _ready([source for source in sources if source is not None], idle)
    return listener.fileno() in ready


def _answer_one(line: socket.socket, watched: Watched) -> bool:
    """Answer a question; whether it was the run's last."""
    line.settimeout(REQUEST_SECONDS)
    peer = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    if CREDENTIALS.unpack(peer)[1] != os.getuid():
        return False
    told: dict[str, Any] = json.loads(receive_part(line))
    if told["code"] != str(ROOT):
        logger.info("the code has changed: a new worker takes over")
        return True
    question = from_bytes(receive_part(line))
    watched.follow(told["watched"])
    with _signs_of_life(line, watched):
        from src.flower.answers import answer_question  # PyTorch, at the first question

        found = to_bytes(answer_question(told["kind"], question, told["config"]))
    line.settimeout(None)
    line.sendall(DONE)
    send_parts(line, (found,))
    return bool(question.get(HEAD, {}).get(OVER))


@contextmanager
def _signs_of_life(line: socket.socket, watched: Watched) -> Iterator[None]:
    """Tell who asks, all the while, that this process lives; end it when there is nobody."""
    done = threading.Event()

    line.sendall(BEAT)

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            if watched.gone or _hung_up(line):
                logger.warning("nobody waits for the answer any more: the worker ends")
                os._exit(1)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()


def _hung_up(line: socket.socket) -> bool:
    """Whether the other end is closed; gives it a sign otherwise."""
    try:
        line.sendall(BEAT)
    except OSError:
        return True
    return False


def _ready(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Those of which something can be read, within the time."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    end = time.monotonic() + seconds
    while True:
        found = poller.poll(max(0.0, end - time.monotonic()) * 1000)
        if found or time.monotonic() >= end:
            return [descriptor for descriptor, _ in found]


def run_worker(arguments: Sequence[str]) -> int:
    """Serve; return 0, or LOCKED where another worker does."""
    show_log()
    folder = Path(arguments[0])
    try:
        with held(folder):
            keep_answering(folder, idle=float(arguments[1]))
    except BlockingIOError:
        return LOCKED
    except OSError as error:
        logger.error("%s: no worker can stay there (%s)", folder, error.strerror)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:]))
