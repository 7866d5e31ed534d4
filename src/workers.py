"""Trains the clients of a round and predicts: in this process, or side by side in forked ones.

The number of workers changes the time and nothing else. Each client computes with one thread from
its own derived seed, reports are handed on in the order of the clients, and images are predicted in
the same batches wherever that is done.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from src.messages import NO_MODEL, Arrays, Broadcast, Report
from src.models import PREDICT_BATCH
from utils_.errors import Diverged

if TYPE_CHECKING:
    from src.client import Client
    from src.methods.base import Method
    from src.models import Predictor


Task = tuple[Any, ...]  # a function for the worker, the key of its answer, and what it is given
Message = TypeVar("Message", Broadcast, Report)
Packed = tuple[Any, np.ndarray]  # a message without its model, and the model


class WorkError(RuntimeError):
    """A client, an evaluation or a worker failed; the message says which, and in which round."""


@dataclass(frozen=True)
class Failure:
    """What a worker answers where it failed, by itself or because the model has diverged."""

    text: str
    diverged: bool


class Runner(Protocol):
    """Has the clients of a round trained, and predicts."""

    def run(self, message: Broadcast, selected: Sequence[int]) -> Iterator[Report]:
        """Yield the reports of the selected clients, in that order."""

    def predict(self, vector: Tensor, rows: np.ndarray) -> np.ndarray:
        """(n, C) probabilities of the chosen images by a (P,) vector."""

    def close(self) -> None:
        """End what was started for it."""


class SequentialRunner:
    """Trains the clients in this process, one after another."""

    def __init__(self, clients: Sequence[Client], method: Method, predictor: Predictor) -> None:
        self.clients, self.method, self.predictor = clients, method, predictor

    def run(self, message: Broadcast, selected: Sequence[int]) -> Iterator[Report]:
        """Yield the reports of the selected clients, in that order."""
        for index in selected:
            try:
                yield self.clients[index].train(self.predictor.model, self.method, message)
            except Exception as error:
                what = f"{self.clients[index].called} failed in round {message.round}"
                raise WorkError(f"{what}: {type(error).__name__}: {error}") from error

    def predict(self, vector: Tensor, rows: np.ndarray) -> np.ndarray:
        """(n, C) probabilities of the chosen images by a (P,) vector."""
        try:
            return self.predictor(vector, rows)
        except Diverged:
            raise
        except Exception as error:
            raise WorkError(f"evaluation failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Nothing to end."""


class ParallelRunner:
    """Does the same in ``workers`` forked processes, which share the images' memory.

    A worker keeps no state: a task carries the client's arrays there and back, so any worker can
    take any client and a checkpoint needs the parent alone.
    """

    def __init__(
        self, clients: Sequence[Client], method: Method, predictor: Predictor, *, workers: int
    ) -> None:
        self.clients = clients
        context = multiprocessing.get_context("fork")
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            arguments = (theirs, self._connections, SequentialRunner(clients, method, predictor))
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def run(self, message: Broadcast, selected: Sequence[int]) -> Iterator[Report]:
        """Yield the reports of the selected clients, in that order."""
        sent = _packed(message)

        def task(index: int) -> Task:
            return _train, index, self.clients[index].state(), sent

        for index, (report, state) in self._answers(selected, task, f"round {message.round}"):
            self.clients[index].load_state(state)
            yield _unpacked(report)

    def predict(self, vector: Tensor, rows: np.ndarray) -> np.ndarray:
        """(n, C) probabilities of the chosen images by a (P,) vector."""
        starts = range(0, len(rows), PREDICT_BATCH)

        def task(start: int) -> Task:
            return _predict, start, vector.numpy(), rows[start : start + PREDICT_BATCH]

        return np.concatenate([part for _, part in self._answers(starts, task, "evaluation")])

    def _answers(
        self, keys: Sequence[int], task: Callable[[int], Task], what: str
    ) -> Iterator[tuple[int, Any]]:
        """Hand the task of each key to whoever is free; yield key and answer in the keys' order.

        Raises:
            WorkError: a task failed, or a worker died.
        """
        waiting, done = list(keys), {}
        for connection in self._connections:
            _give(connection, waiting, task, what)
        for key in keys:
            while key not in done:
                for connection in self._ready():
                    answered, answer = _take(connection, what)
                    done[answered] = answer
                    _give(connection, waiting, task, what)
            yield key, done.pop(key)

    def _ready(self) -> list[Connection]:
        """Those that have an answer, in no order; waits for one."""
        ready = set(map(id, wait(self._connections)))
        return [connection for connection in self._connections if id(connection) in ready]

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()


def _give(
    connection: Connection, waiting: list[int], task: Callable[[int], Task], what: str
) -> None:
    if waiting:
        with _noticing_death(what):
            connection.send(task(waiting.pop(0)))


def _take(connection: Connection, what: str) -> tuple[int, Any]:
    with _noticing_death(what):
        key, answer = connection.recv()
    if isinstance(answer, Failure):
        raise Diverged(answer.text) if answer.diverged else WorkError(answer.text)
    return key, answer


@contextmanager
def _noticing_death(what: str) -> Iterator[None]:
    """A pipe whose other end is gone says so in several ways."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise WorkError(
            f"{what}: a worker died, perhaps for want of memory; resume with fewer --workers"
        ) from error


def _work(
    connection: Connection,
    parents_ends: Sequence[Connection],
    runner: SequentialRunner,
) -> None:
    """A worker's life: do what arrives until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent decides
    for end in parents_ends:  # a copy kept open here would hide that the parent was killed
        end.close()
    try:
        while True:
            act, key, *rest = connection.recv()
            connection.send((key, _answer(act, runner, key, *rest)))
    except (EOFError, OSError):  # the parent is gone; what a task raises is in the answer
        return


def _answer(act: Callable[..., Any], *task: Any) -> Any:
    try:
        return act(*task)
    except (WorkError, Diverged) as error:
        return Failure(str(error), isinstance(error, Diverged))


def _train(runner: SequentialRunner, index: int, state: Arrays, sent: Packed) -> tuple[Any, Arrays]:
    """Report, packed, and state of a client."""
    runner.clients[index].load_state(state)
    (report,) = runner.run(_unpacked(sent), [index])
    return _packed(report), runner.clients[index].state()


def _predict(runner: SequentialRunner, _: int, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return runner.predict(torch.from_numpy(vector), rows)


def _packed(message: Message) -> Packed:
    """For the pipe: tensors would travel through shared memory and cost a file handle each."""
    return replace(message, model=NO_MODEL), message.model.numpy()


def _unpacked(packed: tuple[Message, np.ndarray]) -> Message:
    message, model = packed
    return replace(message, model=torch.from_numpy(model))
