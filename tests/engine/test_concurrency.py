"""Several processes on one cache or run; a clock that goes back; disks that are read-only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from bad_input import Place

from src import job
from utils_.files import write_text
from utils_.folder_lock import held

SETTINGS = {"method": "fedavg", "rounds": 2, "missing": 0.5}
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def data(csv_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(csv_data, tmp_path_factory.mktemp("at-once") / "data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that was alone."""
    save = tmp_path_factory.mktemp("alone")
    assert tiny.call_main(command(data, save)) == 0
    return save / "runs" / "run"


def command(data: Path, save: Path, **settings: Any) -> list[str]:
    options = SETTINGS | {"name": "run", "cache_dir": save / "cache"} | settings
    return tiny.command(data, save, **options)


def unfinished(whole: Path, place: Path) -> Path:
    folder = shutil.copytree(whole, place / "runs" / "run")
    (folder / "DONE").unlink()
    shutil.rmtree(folder / "checkpoint")
    return folder


def at_once(works: Sequence[Callable[[], int]], said: Path) -> list[tuple[int, str]]:
    """Do each work in a process of its own; exit codes and what was said on stderr."""
    processes = []
    for number, work in enumerate(works):
        child = os.fork()
        if child == 0:
            code = 99
            with contextlib.suppress(BaseException):
                sys.stderr = (said / f"{number}").open("w")
                code = work()
                sys.stderr.flush()
            os._exit(code)
        processes.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in processes]
    return [(code, (said / f"{n}").read_text()) for n, code in enumerate(codes)]


def test_two_processes_make_one_cache_and_one_scenario(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    names = ("run", "other")
    works = [lambda name=name: tiny.call_main(command(data, tmp_path, name=name)) for name in names]
    assert [code for code, _ in at_once(works, tmp_path)] == [0, 0]
    for name in names:
        assert (tmp_path / "runs" / name / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    assert len(list((tmp_path / "splits").iterdir())) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_of_two_that_begin_one_run_one_does_it(data: Path, whole: Path, tmp_path: Path) -> None:
    """The other one says so in a line, at whatever moment it finds out."""
    works = [lambda: tiny.call_main(command(data, tmp_path))] * 2
    ended = dict(at_once(works, tmp_path))
    assert set(ended) <= {0, 2} and 0 in ended
    if 2 in ended:  # else the second came when all was done
        told = ended[2].splitlines()[-1]
        assert str(tmp_path / "runs" / "run") in told and "Traceback" not in ended[2]
    assert (tmp_path / "runs/run" / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_the_second_to_begin_a_run_says_what_the_first_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Between the look for the folder and its making."""
    create = job._create_folder

    def overtaken(folder: Path, *arguments: Any, **options: Any) -> None:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("rounds: 2\n")
        create(folder, *arguments, **options)

    monkeypatch.setattr(job, "_create_folder", overtaken)
    assert tiny.call_main(command(data, tmp_path)) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "another process has begun this run just now" in told


def test_a_run_at_work_is_not_resumed(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The second process would remove the first one's temporary files and write over its own."""
    folder = unfinished(whole, tmp_path)
    (folder / ".metrics.csv.1.tmp").write_text("being written")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with held(folder):
        assert tiny.call_main(["--resume", folder, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "another process is at work on this run" in err and f"--resume {folder}" in err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert tiny.call_main(["--resume", folder, "--quiet"]) == 0
    assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_a_fork_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    """As a worker does that ends its task after the run was killed."""
    began, begin = os.pipe()
    over, end = os.pipe()
    with held(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(begin, b"x")
            os.close(end)  # else it would wait for itself
            os.read(over, 1)
            os._exit(0)
        os.read(began, 1)
        with pytest.raises(BlockingIOError), held(tmp_path):
            pass
    try:
        with held(tmp_path):
            pass
    finally:
        os.close(end)
        os.waitpid(child, 0)


def test_a_disk_without_locks_holds_nobody_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(9, "Bad file descriptor")  # what NFS says of a folder

    monkeypatch.setattr("fcntl.flock", unsupported)
    with held(tmp_path), held(tmp_path):
        pass


def test_processes_of_two_machines_write_to_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers that share a disk have the same small numbers."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    seen = []
    replace = Path.replace

    def noted(path: Path, target: Path) -> Path:
        seen.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    for _ in range(2):
        write_text(tmp_path / "file", "text")
    assert len(set(seen)) == 2


def test_a_clock_that_goes_back_changes_nothing(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert tiny.call_main(command(data, tmp_path)) == 0
    folder = tmp_path / "runs" / "run"
    assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    header, *rows = tiny.read_table(folder / "metrics.csv")
    assert all(0 <= float(row[header.index("seconds")]) < 60 for row in rows)


@pytest.fixture
def place(tmp_path: Path, data: Path, whole: Path) -> Iterator[Place]:
    place = Place(tmp_path / "place", data, whole)
    place.folder.mkdir()
    yield place
    for path in place.mounts:
        subprocess.run(["umount", str(path)], check=True)


def test_data_on_a_read_only_disk(place: Place, whole: Path) -> None:
    disk = place.mount("disk", "size=8m")
    shutil.copytree(place.pristine, disk / "data")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert tiny.call_main(command(disk / "data", place.save)) == 0
    folder = place.save / "runs" / "run"
    assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes()


@pytest.mark.slow
def test_a_home_that_cannot_be_written(data: Path, whole: Path, tmp_path: Path) -> None:
    changed = {"HOME": "/proc/nowhere", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    environment = {k: v for k, v in os.environ.items() if k != "MPLCONFIGDIR"} | changed
    done = subprocess.run(
        [sys.executable, str(tiny.MAIN), *command(data, tmp_path)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/run" / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_a_network_disk_that_cannot_rename_is_one_line(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    replace = Path.replace

    def stale(path: Path, target: Path) -> Path:
        if target.parent.name == "checkpoint":
            raise OSError(116, "Stale file handle")
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stale)
        assert tiny.call_main(command(data, tmp_path)) == 3
    folder = tmp_path / "runs" / "run"
    told = capsys.readouterr().err.splitlines()[-1]
    assert "Stale file handle" in told and f"--resume {folder} goes on" in told
    assert not list(folder.rglob("*.tmp"))
    assert tiny.call_main(["--resume", folder, "--quiet"]) == 0
    assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes()
