"""scripts/round_cost.py, and the line of whatever needs Flower where it is not."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from scripts import round_cost
from scripts.bench.loopback import Loopback
from src.flower import require_flower
from src.methods import method_names
from utils_.errors import UserError


def test_python_3_10_is_told_apart_from_an_absent_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    with pytest.raises(UserError, match=r"pip install '\.\[flower\]'"):
        require_flower()
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(
        UserError, match=r"Flower 1\.42 needs Python 3\.11 or later and this is 3\.10"
    ):
        require_flower()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--engines", "deploy"], "--engines: invalid choice: 'deploy'"),
        (["--sites", "1"], "at least 3 rounds and 2 sites"),
        (["--rounds", "2"], "at least 3 rounds and 2 sites"),
    ],
)
def test_what_cannot_be_measured(
    words: list[str], problem: str, capsys: pytest.CaptureFixture
) -> None:
    assert round_cost.main(words) == 2
    assert problem in capsys.readouterr().err


def test_the_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    asked: list[tuple[str, int, str]] = []

    def measured(engine: str, *, sites: int, method: str, **told: Any) -> tuple:
        asked.append((engine, sites, method))
        up = 3000 * (2 if method == "scaffold" else 1)
        return 1.25, 0.5, {"bytes_down": "3000", "bytes_up": str(up)}

    monkeypatch.setattr(round_cost, "measure_run", measured)
    assert round_cost.main(["--sites", "3", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["| process | 3 | 1.2 | 0.5 |", "| process | 4 | 1.2 | 0.5 |"]
    assert round_cost.main(["--bytes", "--sites", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| `scaffold` | 1.0 | 2.0 | +100.0% |" in lines
    assert len(lines) - 2 == len([n for n in method_names() if n not in ("local", "clean")])
    assert {engine for engine, _, _ in asked} == {"process"}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_nobody_is_left(tmp_path: Any) -> None:
    with Loopback(tmp_path / "flower") as loopback:
        loopback.start("deaf", "bash", "-c", "trap '' TERM; sleep 100 & sleep 100")
        loopback.start("other", "sleep", "100")
        assert len(loopback.processes("other", of="sleep")) == 1
        loopback.kill("other")
        assert loopback.processes("other") == []
        with pytest.raises(TimeoutError, match=r"the end of all processes: not within 0\.3 s"):
            loopback.stop(seconds=0.3)
        loopback.send("deaf", 9)
        loopback.stop(seconds=5)
    assert loopback.processes() == []
