"""Workers: order, failures that name the client, signals, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.messages import Broadcast, Report
from src.models import PREDICT_BATCH
from src.workers import ParallelRunner, SequentialRunner, WorkError


class FakePredictor:
    """Tells each image's row and who was asked; images in the order of what ``act`` takes."""

    model = None

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.act = act

    def __call__(self, vector: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        self.act()
        columns = rows + vector.sum().item(), np.full(len(rows), os.getpid()), rows * 0 + len(rows)
        return np.stack(columns, axis=1)


PREDICTOR = FakePredictor()
MESSAGE = Broadcast(4, torch.arange(3.0), {"prior": np.array([0.5, np.nan])})


class FakeClient:
    """Has what a runner uses: it adds to a memory, and does what ``act`` says."""

    def __init__(self, index: int, act: Callable[[], None] = lambda: None) -> None:
        self.index, self.act, self.called = index, act, f"client {index}"
        self.memory = {"count": np.zeros(1)}

    def state(self) -> dict[str, np.ndarray]:
        return {"count": self.memory["count"].copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self.memory = state

    def train(self, model: Any, method: Any, message: Broadcast) -> Report:
        self.act()
        self.memory["count"] += 1
        extras = {"prior": message.extras["prior"] + self.index, "process": np.array(os.getpid())}
        return Report(self.index, 1, message.model + self.index, extras, {"loss": 0.5})


@contextmanager
def parallel(
    clients: list[FakeClient], workers: int = 2, predictor: FakePredictor = PREDICTOR
) -> Iterator[ParallelRunner]:
    runner = ParallelRunner(clients, None, predictor, workers=workers)
    try:
        yield runner
    finally:
        runner.close()
        assert not multiprocessing.active_children()


def wait_a_while() -> None:
    time.sleep(0.3)


def test_reports_come_in_the_order_of_the_clients() -> None:
    clients = [FakeClient(0, wait_a_while), *(FakeClient(k) for k in range(1, 5))]
    with parallel(clients) as runner:
        reports = list(runner.run(MESSAGE, [0, 1, 3, 4]))
        assert [report.client for report in reports] == [0, 1, 3, 4]
        for report in reports:
            assert torch.equal(report.model, MESSAGE.model + report.client)
            np.testing.assert_array_equal(report.extras["prior"], [0.5 + report.client, np.nan])
            assert report.logs == {"loss": 0.5}
        processes = {int(report.extras["process"]) for report in reports}
        assert len(processes) == 2
        assert os.getpid() not in processes


def test_what_clients_remember_comes_back_to_the_parent() -> None:
    clients = [FakeClient(k) for k in range(3)]
    with parallel(clients) as runner:
        for _ in range(3):
            list(runner.run(MESSAGE, [0, 2]))
        clients[2].memory["count"] += 10  # as after a checkpoint was loaded
        list(runner.run(MESSAGE, [0, 1, 2]))
    assert [client.memory["count"].item() for client in clients] == [4, 1, 14]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_images_are_predicted_in_the_same_batches_by_all_workers(workers: int) -> None:
    """The same batches give the same bits; answers come in the order of the images."""
    rows = np.arange(3 * PREDICT_BATCH + 7)[::-1]
    with parallel([FakeClient(0)], workers, FakePredictor(wait_a_while)) as runner:
        found = runner.predict(torch.tensor([1.0, 2.0]), rows)
    np.testing.assert_array_equal(found[:, 0], rows + 3)
    assert len(set(found[:, 1])) == min(workers, 4) and os.getpid() not in found[:, 1]
    assert found[:, 2].tolist() == [PREDICT_BATCH] * 3 * PREDICT_BATCH + [7] * 7


def test_a_worker_that_dies_while_predicting_ends_the_evaluation() -> None:
    with (
        pytest.raises(WorkError, match="evaluation: a worker died"),
        parallel([FakeClient(0)], 2, FakePredictor(die)) as runner,
    ):
        runner.predict(torch.ones(1), np.arange(5))


def test_a_failed_evaluation_says_why() -> None:
    """Also where the cause is an OSError, which must not pass for the end of the parent."""
    clients = [FakeClient(0)]
    for act, cause in ((fail, "ZeroDivisionError: by design"), (refuse, "OSError: unreadable")):
        wanted, predictor = f"^evaluation failed: {cause}$", FakePredictor(act)
        with pytest.raises(WorkError, match=wanted), parallel(clients, 2, predictor) as runner:
            runner.predict(torch.ones(1), np.arange(5))
        with pytest.raises(WorkError, match=wanted):
            SequentialRunner(clients, None, predictor).predict(torch.ones(1), np.arange(5))


@pytest.mark.parametrize("workers", [1, 5])
def test_any_number_of_workers_will_do(workers: int) -> None:
    with parallel([FakeClient(k) for k in range(3)], workers) as runner:
        for _ in range(2):
            assert [r.client for r in runner.run(MESSAGE, [0, 1, 2])] == [0, 1, 2]


def fail() -> None:
    raise ZeroDivisionError("by design")


def test_a_failure_names_client_round_and_cause() -> None:
    clients = [FakeClient(0), FakeClient(1, fail), FakeClient(2)]
    wanted = r"^client 1 failed in round 4: ZeroDivisionError: by design$"
    with pytest.raises(WorkError, match=wanted), parallel(clients) as runner:
        list(runner.run(MESSAGE, [0, 1, 2]))
    with pytest.raises(WorkError, match=wanted):
        list(SequentialRunner(clients, None, PREDICTOR).run(MESSAGE, [0, 1, 2]))


def refuse() -> None:
    raise OSError("unreadable")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_ends_the_round_and_not_in_a_hang() -> None:
    clients = [FakeClient(0), FakeClient(1, die), FakeClient(2), FakeClient(3)]
    with pytest.raises(WorkError, match="round 4: a worker died"), parallel(clients) as runner:
        list(runner.run(MESSAGE, [0, 1, 2, 3]))


def test_a_worker_killed_while_idle_is_noticed() -> None:
    with parallel([FakeClient(0), FakeClient(1)]) as runner:
        for process in runner._processes:
            process.kill()
            process.join()
        with pytest.raises(WorkError, match="round 4: a worker died"):
            list(runner.run(MESSAGE, [0, 1]))
        with pytest.raises(WorkError, match="evaluation: a worker died"):
            runner.predict(torch.ones(1), np.arange(5))


def test_large_messages_pass_in_both_directions() -> None:
    """Larger than a pipe's buffer, so that nobody may wait for the other while sending."""
    big = Broadcast(0, torch.ones(3_000_000), MESSAGE.extras)
    with parallel([FakeClient(k) for k in range(4)]) as runner:
        reports = list(runner.run(big, [0, 1, 2, 3]))
    assert [report.model[-1].item() for report in reports] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_round_to_the_parent(number: int) -> None:
    """Ctrl-C, `timeout` and batch systems signal every process of the group."""
    clients = [FakeClient(k, wait_a_while) for k in range(2)]
    with parallel(clients) as runner:
        reports = runner.run(MESSAGE, [0, 1])
        started = [process.pid for process in runner._processes]
        timer = multiprocessing.get_context("fork").Process(
            target=signal_later, args=(started, number)
        )
        timer.start()
        assert [report.client for report in reports] == [0, 1]
        timer.join()
        assert all(process.is_alive() for process in runner._processes)


def signal_later(processes: list[int], number: int) -> None:
    time.sleep(0.15)
    for process in processes:
        os.kill(process, number)


@pytest.mark.parametrize("length", [3, 3_000_000])
def test_workers_end_when_their_parent_is_killed(length: int) -> None:
    """It cannot tell them; and a long report must not wait for a reader forever."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    parent = context.Process(target=parent_of_three, args=(theirs, length))
    parent.start()
    theirs.close()
    workers = ours.recv()
    assert len(workers) == 3
    assert all(is_running(worker) for worker in workers)
    for _ in workers:
        assert ours.recv() == "training"
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    orphans = [worker for worker in workers if is_running(worker)]
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    assert not orphans


def parent_of_three(connection: Any, length: int) -> None:
    def act() -> None:
        connection.send("training")
        wait_a_while()

    runner = ParallelRunner([FakeClient(k, act) for k in range(3)], None, PREDICTOR, workers=3)
    connection.send([process.pid for process in runner._processes])
    while True:
        list(runner.run(Broadcast(0, torch.ones(length), MESSAGE.extras), [0, 1, 2]))


def is_running(process: int) -> bool:
    """Zombies, which only wait for somebody to note their end, do not count."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
