"""Comparisons of two implementations must hold on any processor: run again under other settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

MARK = "pytest.mark.numerics"
CHILD = """
import sys, pytest, torch
code = pytest.main(sys.argv[1:])
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
sys.exit(code)
"""
THREADS = ("FEDNML_TEST_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TWO = dict.fromkeys(THREADS, "2") | {"OMP_WAIT_POLICY": "PASSIVE"}  # no core is kept busy waiting
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",  # torch's own kernels
    "DNNL_MAX_CPU_ISA": "SSE41",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products
}


def marked(*folders: str) -> list[str]:
    """The files that hold marked tests; reading all others would take longer than the tests."""
    own = Path(__file__).name
    paths = [path for folder in folders for path in (ROOT / "tests" / folder).rglob("test_*.py")]
    return sorted(str(p) for p in paths if p.name != own and MARK in p.read_text("utf-8"))


def run_numerics(paths: list[str], **variables: str) -> tuple[str, str]:
    """Run the marked tests; the capability and the threads that torch had in the end."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "-m", "numerics", "-p", "no:cacheprovider", *paths],
        cwd=ROOT,
        env=os.environ | dict.fromkeys(THREADS, "1") | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    capability, threads = done.stdout.split()[-2:]
    return capability, threads


@pytest.mark.slow
def test_numerics_hold_with_the_plainest_kernels() -> None:
    """Sums are added in another order there, and no product is fused with a sum.

    Whole training runs are not marked: they take minutes, and where bits are asked of them, the
    same code ran on both sides.
    """
    assert run_numerics(marked("."), **PLAIN) == ("DEFAULT", "1")


@pytest.mark.slow
def test_numerics_hold_with_two_threads() -> None:
    """Only where tensors are large enough to be shared out: networks, batches of images, vectors.

    The batches of five images in tests/methods never are.
    """
    assert run_numerics(marked("engine", "data"), **TWO)[1] == "2"
