"""Runs the clients of a round: one after another, or side by side in forked processes.

Each client computes with one thread from its own derived seed, and reports are handed on in the
order of the clients, so the number of workers changes the time and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

import torch

from src.messages import Broadcast, Report

if TYPE_CHECKING:
    from src.client import Client
    from src.methods.base import Method
    from src.models import FlatModel


class ClientError(RuntimeError):
    """A client failed; the message names it and the round."""


class SequentialRunner:
    """Trains the clients in this process, one after another."""

    def __init__(self, clients: Sequence[Client], method: Method, model: FlatModel) -> None:
        self.clients, self.method, self.model = clients, method, model

    def run(self, message: Broadcast, selected: Sequence[int]) -> Iterator[Report]:
        """Yield the reports of the selected clients, in that order."""
        for index in selected:
            try:
                yield self.clients[index].train(self.model, self.method, message)
            except Exception as error:
                raise ClientError(_failure(index, message.round, error)) from error

    def close(self) -> None:
        """Nothing to end."""


class ParallelRunner:
    """Trains the clients in ``workers`` forked processes, which share the images' memory.

    A worker keeps no state: a task carries the client's arrays there and back, so any worker can
    take any client and a checkpoint needs the parent alone.
    """

    def __init__(
        self, clients: Sequence[Client], method: Method, model: FlatModel, *, workers: int
    ) -> None:
        self.clients = clients
        context = multiprocessing.get_context("fork")
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            arguments = (theirs, self._connections, clients, method, model)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def run(self, message: Broadcast, selected: Sequence[int]) -> Iterator[Report]:
        """Yield the reports of the selected clients, in that order."""
        waiting, done = list(selected), {}
        for connection in self._connections:
            self._give(connection, waiting, message)
        for index in selected:
            while index not in done:
                for connection in wait(self._connections):
                    self._take(connection, done, message)
                    self._give(connection, waiting, message)
            yield done.pop(index)

    def _give(self, connection: Connection, waiting: list[int], message: Broadcast) -> None:
        if waiting:
            index = waiting.pop(0)
            connection.send((index, self.clients[index].state(), _as_arrays(message)))

    def _take(self, connection: Connection, done: dict[int, Report], message: Broadcast) -> None:
        try:
            index, report, state = connection.recv()
        except EOFError as error:
            raise ClientError(
                f"round {message.round}: a worker died, perhaps for want of memory; "
                "resume with fewer --workers"
            ) from error
        if isinstance(report, str):
            raise ClientError(report)
        self.clients[index].load_state(state)
        done[index] = _as_tensors(report)

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()


def _work(
    connection: Connection,
    parents_ends: Sequence[Connection],
    clients: Sequence[Client],
    method: Method,
    model: FlatModel,
) -> None:
    """A worker's life: train what arrives until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent decides
    for end in parents_ends:  # a copy kept open here would hide that the parent was killed
        end.close()
    try:
        while True:
            connection.send(_answer(connection.recv(), clients, method, model))
    except (EOFError, OSError):  # the parent is gone; what a client raises is in the answer
        return


def _answer(task: tuple, clients: Sequence[Client], method: Method, model: FlatModel) -> tuple:
    index, state, message = task
    client = clients[index]
    client.load_state(state)
    try:
        report = client.train(model, method, _as_tensors(message))
    except Exception as error:
        return index, _failure(index, message.round, error), None
    return index, _as_arrays(report), client.state()


def _as_arrays(message: Broadcast | Report) -> Broadcast | Report:
    """For the pipe: tensors would travel through shared memory and cost a file handle each."""
    return replace(message, model=message.model.numpy())


def _as_tensors(message: Broadcast | Report) -> Broadcast | Report:
    return replace(message, model=torch.from_numpy(message.model))


def _failure(index: int, round: int, error: Exception) -> str:
    return f"client {index} failed in round {round}: {type(error).__name__}: {error}"
