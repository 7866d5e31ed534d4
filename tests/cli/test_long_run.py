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
    number = np.arange(ROUNDS, dtype=float)[:, None]
    return np.hstack(
        [0 * number + 5e5, 0.1 * number, 900 * number, 7000 * number, 1e6 + 0 * number]
    )


def over(samples: np.ndarray) -> set[str]:
    found = judge(samples)
    return {name for name, limit in LIMITS.items() if found[name] >= limit}


def test_what_is_steady_holds() -> None:
    assert over(steady()) == set()
    assert judge(steady())["memory"] == 0 and judge(steady())["time"] == pytest.approx(1)


@pytest.mark.parametrize("name", LIMITS)
def test_what_grows_is_found(name: str) -> None:
    samples, column = steady(), COLUMNS.index(name)
    growth = np.arange(ROUNDS) * 1.5 if name == "memory" else samples[:, column] ** 2 / 50
    samples[:, column] += growth
    assert over(samples) == {name}


def test_a_jump_of_memory_is_no_slope() -> None:
    values = np.full(300, 5e5)
    values[170:] += 4096
    values[::7] += 50
    assert slope(values) < 20
    assert slope(np.arange(301) * 0.9) == pytest.approx(0.9)


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
