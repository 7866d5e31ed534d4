"""All that a finished run's folder says, read for a report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from utils_.runlog import METRICS_FILE, read_metrics
from utils_.spreadsheet import as_was

Table = list[dict[str, str]]
UNREADABLE = (OSError, ValueError, yaml.YAMLError, csv.Error)


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Attributes:
        folder: where it lies.
        result, config, environment: ``result.json``, ``config.yaml`` and ``env.json``.
        history: ``metrics.csv``, a row a round.
        clients: ``clients.csv``, a row a site.
        site_classes: ``site_classes.csv``, a row a site and class; empty in runs that are older.
    """

    folder: Path
    result: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]
    clients: Table
    site_classes: Table

    @property
    def classes(self) -> list[str]:
        """Names in the order of the columns of predictions."""
        return list(self.result.get("classes", []))

    def column(self, name: str) -> np.ndarray:
        """(rounds,) a column of the history; NaN where a round lacks it."""
        return np.array([row.get(name, np.nan) for row in self.history], dtype=float)

    @property
    def site_names(self) -> list[str]:
        """What the sites are called, in the order of their numbers."""
        return [as_was(row.get("site") or f"client {row['client']}") for row in self.clients]

    @cached_property
    def annotated(self) -> np.ndarray | None:
        """(K, C) how many cells each site annotates; None in runs that do not say."""
        return self._counts("annotated")

    @cached_property
    def positive(self) -> np.ndarray | None:
        """(K, C) how many of these say present; None in runs that do not say."""
        return self._counts("positive")

    @property
    def trained(self) -> dict[str, bool]:
        """For each class whether any site annotates it; empty where the run does not say."""
        if self.annotated is None:
            return {}
        seen = self.annotated.sum(axis=0) > 0
        return {name: bool(seen[c]) for c, name in enumerate(self.classes)}

    @property
    def cells(self) -> int:
        """How many cells, annotated or not, the sites hold together."""
        return sum(int(row["images"]) for row in self.clients) * len(self.classes)

    @property
    def annotated_cells(self) -> float:
        """How many of them are annotated, assumed negatives included."""
        shares = [int(row["images"]) * (1 - float(row["missing_cells"])) for row in self.clients]
        return sum(shares) * len(self.classes)

    def _counts(self, name: str) -> np.ndarray | None:
        numbers = [int(row[name]) for row in self.site_classes]
        shape = len(self.clients), len(self.classes)
        return np.array(numbers).reshape(shape) if numbers else None


def read_record(folder: Path) -> RunRecord:
    """Read the run in ``folder``.

    Raises:
        ValueError: a file is absent or damaged; the message names it.
    """
    return RunRecord(
        folder=folder,
        result=_parsed(folder / "result.json", json.loads),
        config=_parsed(folder / "config.yaml", yaml.safe_load),
        environment=_parsed(folder / "env.json", json.loads),
        history=_history(folder),
        clients=_table(folder / "clients.csv"),
        site_classes=_table(folder / "site_classes.csv", optional=True),
    )


def _parsed(path: Path, parse: Any) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, "no table of names and values")
    return found


def _history(folder: Path) -> list[dict[str, float]]:
    try:
        return read_metrics(folder)
    except UNREADABLE as error:
        raise _damaged(folder / METRICS_FILE, error) from error


def _table(path: Path, *, optional: bool = False) -> Table:
    if optional and not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except UNREADABLE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path.name}: absent or damaged ({' '.join(str(why).split())})")
