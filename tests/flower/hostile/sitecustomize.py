"""On PYTHONPATH, makes a site send in each round something else that it should not send.

Python imports a module of this name by itself. ``FEDNML_HOSTILE`` names a file that counts rounds.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

MODULE = "src.flower.records"


def spoil(module: Any) -> None:
    """Have ``from_report`` give other records."""
    honest, counter = module.from_report, Path(os.environ["FEDNML_HOSTILE"])

    def from_report(report: Any) -> Any:
        import numpy as np
        from flwr.app import Array

        records, number = honest(report), len(counter.read_bytes()) if counter.exists() else 0
        with counter.open("ab") as file:
            file.write(b".")
        model = np.full(len(report.model), np.nan, np.float32)
        record, name, value = [
            ("extras", "more", Array(np.zeros(2_000_000))),
            ("model", "model", Array(model)),
            ("extras", "positives", Array(np.full((2, 2), np.nan))),
            ("head", "client", 0),
        ][number % 4]
        records[record][name] = value
        return records

    module.from_report = from_report


class Finder(importlib.abc.MetaPathFinder):
    """Loads the module as it is, and then changes it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """As of any finder."""
        if name != MODULE or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), spoil(module))
        return spec


if "FEDNML_HOSTILE" in os.environ:
    sys.meta_path.insert(0, Finder())
