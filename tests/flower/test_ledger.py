"""A site's own record says what left it, and nothing leaves that it cannot note."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")

from flwr.app import ConfigRecord, Metadata, RecordDict

from src.flower.ledger import LEDGER, noted
from src.flower.records import from_report
from src.messages import Report

ABOUT = Metadata(1, "a", 1, 2, "", "3", 0.0, 60.0, "train")


def answer() -> RecordDict:
    import torch

    arrays = {"counts": np.zeros((2, 5), np.float32), "level": np.array(0.5)}
    return from_report(Report(1, 40, torch.zeros(9), arrays, {"loss": 0.25}))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / LEDGER).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_array_and_value_has_a_row(tmp_path: Path) -> None:
    config: dict[str, Any] = {"site": "north", "data-dir": "/data", "state-dir": str(tmp_path)}
    sent = answer()
    for _ in range(2):
        assert noted(sent, config, ABOUT) is sent
    found = rows(tmp_path)
    assert len(found) == 2 * 6
    assert {row["message"] for row in found} == {"train"} and {r["round"] for r in found} == {"3"}
    told = {row["name"]: (row["type"], row["shape"]) for row in found}
    assert told == {
        "head/client": ("int", "one"),
        "head/samples": ("int", "one"),
        "logs/loss": ("float", "one"),
        "model": ("float32", "9"),
        "extras/counts": ("float32", "2x5"),
        "extras/level": ("float64", "one"),
    }
    size = sum(int(row["bytes"]) for row in found) / 2
    arrays = [array for record in sent.array_records.values() for array in record.values()]
    assert size == sum(len(array.data) for array in arrays) + 3 * 8


def test_it_lies_beside_the_data_unless_told_otherwise(tmp_path: Path) -> None:
    fault = RecordDict({"head": ConfigRecord({"fault": "site north: no"})})
    noted(fault, {"site": "north", "data-dir": str(tmp_path)}, ABOUT)
    (row,) = rows(tmp_path / ".fednml")
    assert (row["name"], row["type"], row["bytes"]) == ("head/fault", "str", "14")


def test_a_simulation_has_none(tmp_path: Path) -> None:
    sent = answer()
    config: dict[str, Any] = {"partition-id": 0, "num-partitions": 3, "state-dir": str(tmp_path)}
    assert noted(sent, config, ABOUT) is sent
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_noted_does_not_leave(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()  # as a full disk would
    config = {"site": "north", "data-dir": "/data", "state-dir": str(tmp_path)}
    left = noted(answer(), config, ABOUT)
    assert [*left] == ["head"]
    assert left["head"]["fault"] == "site north cannot take part; its own log says why"
