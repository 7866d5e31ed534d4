"""Fixtures that several test files share; the functions behind them are in tiny.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when NumPy and scikit-learn are imported

# Works with a bare `pytest` too, which does not put the repository's root on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny

from utils_.datasets.base import ImageDataset

THREADS = int(os.environ.get("FEDNML_TEST_THREADS", "1"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """As in a run: one thread, so that sums are added in one order.

    FEDNML_TEST_THREADS asks for more. Tests marked ``numerics`` must hold then too; others may
    hang, since workers are forked. Before each test, because a simulation goes back to one.
    """
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def dataset() -> ImageDataset:
    """60 images in memory."""
    return tiny.make_dataset()


@pytest.fixture(scope="session")
def csv_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as files; read-only for the tests, which copy it to change it."""
    return tiny.write_csv_dataset(tmp_path_factory.mktemp("csv") / "data")


@pytest.fixture(scope="session")
def run_main() -> Callable:
    """Run the command line in a process of its own."""
    return tiny.run_main
