"""Real SuperLinks and SuperNodes that are killed, late, slow or out of disk space.

Each test takes some minutes, most of it Flower's own starts and waits; all waiting is bounded.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny import call_main, command, write_csv_dataset

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")
if sys.platform != "linux":
    pytest.skip("processes are looked up in /proc", allow_module_level=True)

from cut_sites import hospitals, model_of, pooled_hospitals, run_config, server_folder

from scripts.bench.loopback import Loopback, wait_until
from src.checkpoint import read_sealed, round_file, saved_rounds

pytestmark = pytest.mark.slow
# Seconds of a round: shorter than Flower takes to notice that a node is gone, but a busy machine
# needs more. Nothing may take longer than BOUND.
PATIENCE = int(os.environ.get("FEDNML_TEST_PATIENCE", "45"))
BOUND = 6 * PATIENCE
SMALL_DISK = 2_000_000  # bytes


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Loopback]:
    with Loopback(tmp_path / "flower") as loopback:
        loopback.start_superlink()
        yield loopback


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no small disk can be mounted here; run the test as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Run:
    """A run that was started, and the rows that it has written."""

    def __init__(self, federation: Loopback, save: Path, **told: Any) -> None:
        self.federation, self.save = federation, save
        self.process = federation.run(told)

    @property
    def rows(self) -> list[dict[str, str]]:
        paths = [*self.save.glob("runs/*/metrics.csv")]
        return [*csv.DictReader(paths[0].open())] if paths else []

    def row(self, fits: Callable[[dict[str, str]], bool], *, since: int) -> int:
        """Wait for a round that fits, from a number on; return its number."""

        def found() -> list[int]:
            return [k for k, row in enumerate(self.rows) if k >= since and fits(row)]

        wait_until(lambda: found() or self.over, seconds=BOUND, what="a round")
        assert found(), self.federation.log("run")[-3000:]
        return found()[0]

    def all_heard(self, *, since: int) -> int:
        return self.row(lambda row: float(row["rejected"]) == 0, since=since)

    def one_missing(self, *, since: int) -> int:
        return self.row(lambda row: float(row["rejected"]) == 1, since=since)

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> None:
        self.process.wait(timeout=BOUND)
        assert [*self.save.glob("runs/*/DONE")], self.federation.log("run")[-3000:]


def asked_to_train(federation: Loopback, name: str) -> int:
    return federation.log(name).count("Receiving: train")


def wait_for_training(federation: Loopback, name: str) -> None:
    """Until a node has got a further round to train."""
    before = asked_to_train(federation, name)
    wait_until(
        lambda: asked_to_train(federation, name) > before, seconds=BOUND, what=f"a round of {name}"
    )


def state_folder(root: Path) -> Path:
    (folder,) = root.glob("*/site-*")
    return folder


def made_from(root: Path) -> tuple[int, int]:
    """The latest state of a site, and the one that it was made from, by number of rounds."""
    folder = state_folder(root)
    latest = saved_rounds(folder)[-1]
    return latest, read_sealed(round_file(folder, latest))[1]["earlier"]


def fill(disk: Path) -> None:
    """Leave no byte."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_bad_day(federation: Loopback, tmp_path: Path, small_disk: Path) -> None:
    """A node comes late, a disk is full, a node is killed, another one is slow."""
    data, save = write_csv_dataset(tmp_path / "data"), tmp_path / "save"
    states = [small_disk / "state", tmp_path / "state1", tmp_path / "state2"]
    nodes: list[dict[str, Any]] = [
        {"partition-id": k, "num-partitions": 3, "state-dir": str(states[k])} for k in range(3)
    ]
    settings = {"method": "fednml", "noise": 0.4, "missing": 0.5, "split": "iid", "rounds": 60}
    told = run_config(data, save, **settings, round_timeout=PATIENCE)
    for k in range(2):
        federation.start_node(f"node{k}", nodes[k])
    run = Run(federation, save, **told)
    assert run.one_missing(since=0) == 0  # begun without the third
    federation.start_node("node2", nodes[2])
    there = run.all_heard(since=1)

    fill(small_disk)
    full = run.one_missing(since=there + 1)
    assert "No space left on device" in federation.log("node0")
    wait_until(  # the server's log comes later than its rows
        lambda: "cannot be written" in federation.log("run"), seconds=60, what="the reason"
    )
    kept = made_from(states[0])[0]
    assert kept <= full
    (small_disk / "filler").unlink()
    again = run.all_heard(since=full + 1)
    wait_until(lambda: made_from(states[0])[1] >= kept, seconds=BOUND, what="its next state")

    wait_for_training(federation, "node1")
    federation.kill("node1")
    wait_until(lambda: not federation.processes("node1"), seconds=20, what="the end of its session")
    kept = made_from(states[1])[0]
    killed = run.one_missing(since=again + 1)
    federation.start_node("node1", nodes[1])
    back = run.all_heard(since=killed + 1)
    # It went on from the labels that it had, and every state since was made from one of them.
    assert kept in saved_rounds(state_folder(states[1])) or made_from(states[1])[1] > kept

    wait_for_training(federation, "node2")
    federation.send("node2", signal.SIGSTOP)
    slow = run.one_missing(since=back + 1)
    federation.send("node2", signal.SIGCONT)
    run.all_heard(since=slow + 1)
    federation.stop()  # in the middle of a round


def test_a_superlink_that_is_killed_costs_no_bit(federation: Loopback, tmp_path: Path) -> None:
    """Nor does a worker; and nobody is left when all is over."""
    pooled = pooled_hospitals(tmp_path / "pooled")
    settings = {"method": "fednml", "rounds": 4}
    assert call_main(command(pooled, tmp_path / "here", **settings, split="site")) == 0
    nodes = hospitals(pooled, tmp_path, ["south", "north", "east"])
    for told in nodes.values():
        federation.start_node(told["site"], told)
    server, save = server_folder(pooled, tmp_path / "server"), tmp_path / "there"
    run = Run(federation, save, **run_config(server, save, **settings, round_timeout=4 * PATIENCE))

    run.row(lambda row: True, since=0)
    wait_for_training(federation, "north")
    (worker,) = federation.processes("north", of="src.flower.worker")
    os.kill(worker, signal.SIGKILL)
    run.row(lambda row: True, since=1)
    federation.kill("superlink")
    wait_until(lambda: run.over, seconds=BOUND, what="the end of the run")
    # Its server ends with it; what has been written stays.
    wait_until(lambda: not federation.processes("superlink"), seconds=60, what="the server's end")
    written = len(run.rows)
    (folder,) = (save / "runs").iterdir()
    if not (folder / "DONE").exists():
        assert 2 <= written < 4
        federation.start_superlink()
        Run(federation, save, resume=str(folder)).wait()
    assert model_of(save) == model_of(tmp_path / "here")
    result = json.loads((folder / "result.json").read_text())
    assert result["sites"] == ["east", "north", "south"]

    def workers() -> list[int]:
        return federation.processes(of="src.flower.worker")

    wait_until(lambda: not workers(), seconds=30, what="the end of the workers with the run")
    federation.stop()
    time.sleep(1)
    assert federation.processes() == []
