"""Bad input of every kind: exit code 2, one line that names it, and nothing left behind."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bad_input import ROOT_USER, Place, options
from bad_input_table import GROUPS, TABLE

# A warning of Python would be a second line on stderr.
pytestmark = pytest.mark.filterwarnings("error")
SETPRIV = shutil.which("setpriv")


@pytest.fixture(scope="module")
def finished(csv_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    save = tmp_path_factory.mktemp("finished")
    assert tiny.call_main(tiny.command(csv_data, save, method="fedavg", rounds=1, name="run")) == 0
    return save / "runs" / "run"


@pytest.fixture
def place(
    tmp_path: Path, csv_data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """An empty folder, which is the current one; afterwards nothing stays mounted."""
    place = Place(tmp_path / "place", csv_data, finished)
    place.folder.mkdir()
    monkeypatch.chdir(place.folder)
    yield place
    for path in place.mounts:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def plain_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own: pytest's handlers would keep the log away from stderr."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)


@pytest.mark.parametrize("name", TABLE)
def test_bad_input(
    name: str, place: Place, plain_logging: None, capfd: pytest.CaptureFixture
) -> None:
    entry = TABLE[name]
    arguments = entry.prepare(place)
    before = place.contents()
    capfd.readouterr()
    if entry.separate:
        code, out, err = separately(arguments)
    else:
        code = tiny.call_main(arguments)
        out, err = capfd.readouterr()
    assert code == 2, err
    assert_one_line(err, entry.words)
    assert out == ""
    assert place.contents() == before


def assert_one_line(err: str, words: Sequence[str]) -> None:
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("main_fednml: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def separately(arguments: Sequence[Any]) -> tuple[int, str, str]:
    """Run in a process that permission bits bind even if it is root's, or skip the row."""
    command = [sys.executable, str(tiny.MAIN), *map(str, arguments)]
    if ROOT_USER and SETPRIV is None:
        pytest.skip("root may read everything and setpriv, which would change that, is absent")
    if ROOT_USER:
        command = [SETPRIV, "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 40
    assert len(TABLE) == sum(map(len, GROUPS.values()))  # no name twice


def test_the_same_files_unharmed_are_good_input(place: Place) -> None:
    """What the rows change is what stops them."""
    assert tiny.call_main(tiny.command(place.data, place.save, method="fedavg", rounds=1)) == 0
    assert tiny.call_main(["--resume", place.run, "--quiet"]) == 0
    (place.run / "DONE").unlink()
    assert tiny.call_main(["--resume", place.run, "--quiet"]) == 0
    assert json.loads((place.run / "result.json").read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(place: Place, capfd: pytest.CaptureFixture) -> None:
    assert tiny.call_main(options("--device", "cuda")(place)) == 2
    assert_one_line(capfd.readouterr().err, ["--device cuda", "use --device cpu"])
    assert place.contents() == {}
