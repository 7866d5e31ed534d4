"""scripts/long_run.py: a short run holds, and what grows is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts import long_run
from scripts.long_run import COLUMNS, LIMITS, judge, slope

ROUNDS = 500


def steady() -> np.ndarray:
    """Samples of a run in which nothing grows but its logs, line by line."""
    slopes, start = np.array([0, 0.1, 900, 7000, 0]), np.array([5e5, 0, 0, 0, 1e6])
    return start + slopes * np.arange(ROUNDS)[:, None]


def over(samples: np.ndarray) -> set[str]:
    found = judge(samples)
    return {name for name, limit in LIMITS.items() if found[name] >= limit}


def test_what_is_steady_holds() -> None:
    assert over(steady()) == set()
    assert judge(steady())["memory"] == pytest.approx(0, abs=1e-6)
    assert judge(steady())["time"] == pytest.approx(1)


@pytest.mark.parametrize("name", LIMITS)
def test_what_grows_is_found(name: str) -> None:
    samples, column = steady(), COLUMNS.index(name)
    growth = np.arange(ROUNDS) * 2.5 if name == "memory" else samples[:, column] ** 2 / 50
    samples[:, column] += growth
    assert over(samples) == {name}


def test_the_slope_is_that_of_the_line() -> None:
    assert slope(7 + np.arange(301) * 0.9) == pytest.approx(0.9)
    assert slope(np.arange(301) % 2) == pytest.approx(0, abs=1e-4)


def test_a_short_run_is_measured(tmp_path: Path) -> None:
    samples = long_run.train(tmp_path, 50, "fedavg")
    found = judge(samples)
    assert found["metrics"] < LIMITS["metrics"] and found["events"] < LIMITS["events"]
    assert (np.diff(samples[:, 1]) > 0).all() and (samples[1:, 4] > 0).all()
    rows = samples[-1, 4] - samples[10, 4]
    assert 0 <= rows < 40 * 600  # what a checkpoint grows by in forty rounds
    text = long_run.table(found, samples)
    assert [line.split()[0] for line in text.splitlines()[1:]] == list(COLUMNS)


@pytest.mark.parametrize("words", [["--rounds", "49"], ["--rounds", "x"], ["--method", "fedag"]])
def test_bad_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert long_run.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("long_run: ") and len(err.splitlines()) == 1
