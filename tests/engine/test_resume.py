"""A run that is broken off goes on to the same bits, however it was broken off."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny import call_main, command, read_table, start_main, write_table

from src import job
from utils_.datasets.listing import DataOptions

ROUNDS = 12
PATIENCE = 60  # seconds
MEASURED = ("seconds", "seconds_per_round", "peak_rss_mb")
FLAWS = {"method": "fednml", "noise": 0.3, "missing": 0.5, "rounds": ROUNDS}


@pytest.fixture
def start() -> Iterator[Callable[..., forked.Captured]]:
    """Start the main job as a process; whatever is left of its session is killed at the end."""
    started: list[forked.Captured] = []

    def start_one(arguments: Sequence[Any]) -> forked.Captured:
        started.append(start_main(arguments))
        return started[-1]

    yield start_one
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def data(csv_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because its cache of decoded images is written beside it."""
    return shutil.copytree(csv_data, tmp_path_factory.mktemp("resume") / "data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody disturbed."""
    save = tmp_path_factory.mktemp("whole")
    assert call_main(command(data, save, name="whole", **FLAWS)) == 0
    return save / "runs" / "whole"


def result(folder: Path) -> dict[str, Any]:
    table = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in table.items() if name not in MEASURED}


def metrics(folder: Path) -> list[list[str]]:
    header, *rows = read_table(folder / "metrics.csv")
    column = header.index("seconds")
    return [row[:column] + row[column + 1 :] for row in (header, *rows)]


def assert_same_run(folder: Path, whole: Path) -> None:
    for name in ("model.safetensors", "best.safetensors", "assignments.csv", "clients.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert result(folder) == result(whole)
    assert metrics(folder) == metrics(whole)
    assert len(metrics(folder)) == 1 + ROUNDS
    assert (folder / "DONE").exists()
    assert not list(folder.rglob("*.tmp"))


def rows_done(folder: Path) -> int:
    path = folder / "metrics.csv"
    return len(read_table(path)) - 1 if path.exists() else 0


def wait_for(condition: Callable[[], bool], process: forked.Captured | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()}")
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(parent: int) -> list[int]:
    """Numbers of the living processes whose parent it is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, number = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def resume(folder: Path, *more: str) -> int:
    return call_main(["--resume", folder, "--quiet", *more])


@pytest.mark.slow
def test_killed_at_three_random_moments(
    data: Path, whole: Path, tmp_path: Path, start: Callable
) -> None:
    draw = random.Random(7)
    folder = tmp_path / "runs" / "killed"
    arguments = command(data, tmp_path, name="killed", workers=2, **FLAWS)
    for rows in (1, 4, 7):
        process = start(arguments)
        wait_for(lambda rows=rows: rows_done(folder) >= rows, process)
        time.sleep(draw.uniform(0, 0.1))
        workers = children(process.pid)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
        assert len(workers) >= 2
        wait_for(lambda workers=workers: not any(map(alive, workers)))
        process.communicate()
        assert not (folder / "DONE").exists()
        arguments = ["--resume", folder, "--quiet"]
    assert resume(folder) == 0
    assert_same_run(folder, whole)


SIGNALS = {
    "INT": [signal.SIGINT],
    "TERM": [signal.SIGTERM],
    "twice": [signal.SIGINT, signal.SIGTERM],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_cleanly_and_can_be_resumed(
    name: str, data: Path, whole: Path, tmp_path: Path, start: Callable
) -> None:
    folder = tmp_path / "runs" / "stopped"
    settings = FLAWS | {"name": "stopped", "workers": 2, "checkpoint_every": 3}
    process = start(command(data, tmp_path, **settings))
    wait_for(lambda: rows_done(folder) >= 2, process)
    workers = children(process.pid)
    for number in SIGNALS[name]:
        os.killpg(process.pid, number)  # as a terminal, `timeout` or a batch system does it
        time.sleep(0.02)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert out == ""
    assert f"--resume {folder}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not any(map(alive, workers))
    assert not (folder / "DONE").exists()
    assert not (folder / "result.json").exists()
    assert resume(folder) == 0
    assert_same_run(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_round_leaves_nothing(
    number: int,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While images are decoded, which may take minutes."""
    load = job.datasets.load

    def signalled(name: str, options: DataOptions) -> Any:
        if not options.labels_only:
            os.kill(os.getpid(), number)
        return load(name, options)

    monkeypatch.setattr(job.datasets, "load", signalled)
    save = tmp_path / "save"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup
    try:
        assert call_main(command(data, save, cache_dir=tmp_path / "cache", **FLAWS)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "main_fednml: interrupted\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def copy_unfinished(whole: Path, place: Path) -> Path:
    """The whole run as it would look had it been killed before its end."""
    folder = shutil.copytree(whole, place / "runs" / "whole")
    for name in ("DONE", "result.json", "model.safetensors", "best.safetensors"):
        (folder / name).unlink()
    return folder


def test_killed_while_the_result_was_written(whole: Path, tmp_path: Path) -> None:
    folder = copy_unfinished(whole, tmp_path)
    for name in (".model.safetensors.1.tmp", "checkpoint/.round-000012.safetensors.1.tmp"):
        (folder / name).write_bytes(b"half")
    assert resume(folder) == 0
    assert_same_run(folder, whole)  # which finds no such file any more


def test_killed_before_the_first_checkpoint(whole: Path, tmp_path: Path) -> None:
    folder = copy_unfinished(whole, tmp_path)
    shutil.rmtree(folder / "checkpoint")
    assert resume(folder, "--workers", "2") == 0
    assert_same_run(folder, whole)


def test_a_finished_run_only_shows_its_table(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "done")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert resume(folder) == 0
    out, err = capsys.readouterr()
    assert "best on validation" in out
    assert "already finished" in out
    assert err == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def assert_refused(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Exit code 2, one line on stderr, nothing on stdout, nothing written."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert resume(folder, *more) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("main_fednml: ")
    assert err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return err


@pytest.mark.parametrize("how", ["half", "empty", "one bit"])
def test_a_damaged_checkpoint_is_one_line(
    how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_unfinished(whole, tmp_path)
    (path,) = (folder / "checkpoint").iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"half": content[: len(content) // 2], "empty": b""}.get(how, content))
    assert str(path) in assert_refused(folder, capsys)


def test_settings_are_kept(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_unfinished(whole, tmp_path)
    assert "--lr" in assert_refused(folder, capsys, "--lr", "0.1")


def test_other_data_are_refused(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its sites would go on with label states of labels that are no longer there."""
    folder = copy_unfinished(whole, tmp_path)
    table = read_table(data / "train_data.csv")
    try:
        changed = [table[0], [table[1][0], *(1 - int(v) for v in table[1][1:])], *table[2:]]
        write_table(data / "train_data.csv", changed)
        assert "the labels are not those" in assert_refused(folder, capsys)
    finally:
        write_table(data / "train_data.csv", table)
    assert resume(folder) == 0


def test_where_there_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        assert str(folder) in assert_refused(folder, capsys)


def test_a_second_run_does_not_overwrite_the_first(
    data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    save = whole.parents[1]
    assert call_main(command(data, save, name="whole", **FLAWS)) == 0
    assert "already finished" in capsys.readouterr().out
    assert call_main(command(data, save, name="whole", **FLAWS | {"noise": 0.25})) == 2
    assert "--noise 0.3 instead of 0.25; choose another --name" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
