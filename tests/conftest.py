"""Fixtures that several test files share; the functions behind them are in tiny.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when NumPy and scikit-learn are imported

# Works with a bare `pytest` too, which does not put the repository's root on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny

from src.simulation import Simulation
from utils_.datasets.base import ImageDataset

LONGEST = (  # each takes more than twenty seconds of one core
    "test_honesty.py",
    "test_training_options.py",
    "test_own_data.py",
    "test_portability.py",
    "test_html_report.py",
    "test_determinism.py",
    "test_compare.py",
    "test_benchmark.py",
    "test_readme.py",
    "test_site_detection.py",
)
THREADS = int(os.environ.get("FEDNML_TEST_THREADS", "1"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """As in a run: one thread, so that sums are added in one order.

    FEDNML_TEST_THREADS asks for more. Tests marked ``numerics`` must hold then too; others may
    hang, since workers are forked. Before each test, because a simulation goes back to one.
    """
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny run would spend most of its time on drawing labels; tests marked ``pictures`` draw."""
    if "pictures" not in request.keywords:
        monkeypatch.setattr(Simulation, "_picture_due", lambda simulation: False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first: late ones would keep a single process busy."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else 99)


@pytest.fixture(scope="session")
def dataset() -> ImageDataset:
    """60 images in memory."""
    return tiny.make_dataset()


@pytest.fixture(scope="session")
def csv_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as files; read-only for the tests, which copy it to change it."""
    return tiny.write_csv_dataset(tmp_path_factory.mktemp("csv") / "data")
