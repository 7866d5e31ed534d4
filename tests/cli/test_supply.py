"""What comes in and what goes out: versions, no network, no patient's id."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import ROOT

from scripts import audit, lock
from utils_.errors import UserError

LINE = re.compile(r"([a-z0-9-]+)==([0-9][\w.]*)")
FEW = ["--folds", "2", "--repeats", "1", "--rounds", "1", "--least", "2", "--quiet"]


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)][:3]


def test_the_tested_versions_are_locked_and_above_the_lower_bounds() -> None:
    text = (ROOT / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    locked = dict(LINE.fullmatch(line).groups() for line in lines)
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, lowest = line.partition(">=")
            assert numbers(locked[name]) >= numbers(lowest), name
    assert len(locked) > 30, "what they need is locked too"


def test_the_lock_is_of_what_is_installed(capsys: pytest.CaptureFixture) -> None:
    assert lock.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("#") and "packaging==" in "\n".join(printed)
    with pytest.raises(UserError, match="no-such-package: is not installed"):
        lock.installed(["no-such-package>=1"])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every way out of this process is noted and closed."""
    asked: list[Any] = []

    def refused(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments[-1] if arguments else options)
        raise OSError(101, "Network is unreachable")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refused)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refused)
    return asked


def test_neither_a_network_nor_a_patient_s_id(
    no_network: list[Any], csv_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run, its resume and the audit; test_html_report.py asks the same of the report."""
    data = shutil.copytree(csv_data, tmp_path / "data")
    names = [
        row[0]
        for part in ("train", "test")
        for row in tiny.read_table(data / f"{part}_data.csv")[1:]
    ]
    rows = [[name, f"PATIENT{n:03d}", f"site{n % 3}"] for n, name in enumerate(names)]
    tiny.write_table(data / "groups.csv", [["image", "patient_id", "site"], *rows])
    save = tmp_path / "save"
    settings = {"method": "fedavg", "rounds": 2, "split": "site", "name": "run"}
    command = tiny.command(data, save, cache_dir=save / "cache", **settings)
    assert tiny.call_main(command) == 0
    run = save / "runs" / "run"
    (run / "DONE").unlink()
    assert tiny.call_main(["--resume", run, "--quiet"]) == 0
    assert audit.main([str(run), *FEW]) == 0
    told = capsys.readouterr()
    assert "PATIENT" not in told.out + told.err
    held = [path for path in save.rglob("*") if path.is_file() and b"PATIENT" in path.read_bytes()]
    assert held == []
    assert no_network == []
    named = [path for path in save.rglob("*") if path.is_file() and b"image7." in path.read_bytes()]
    assert (run / "assignments.csv") in named
    assert (run / "model_card.md") not in named


def test_the_closed_ways_are_those_that_are_used(no_network: list[Any]) -> None:
    import urllib.request

    with pytest.raises(OSError, match="unreachable"):
        urllib.request.urlopen("http://192.0.2.1/")
    assert no_network
