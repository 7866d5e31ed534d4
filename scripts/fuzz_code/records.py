"""Messages as Flower brings them: records whose bytes and values are made wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from src.flower.records import EXTRAS, HEAD, LOGS, MODEL, NUMPY, from_report, to_report
from src.messages import Report


def examples() -> tuple[bytes, bytes]:
    """The bytes of an array and, as JSON, the values of a valid report."""
    report = Report(1, 7.0, torch.ones(9), {"counts": np.arange(6.0).reshape(2, 3)}, {"loss": 1.0})
    records: Any = from_report(report)
    values = {HEAD: dict(records[HEAD]), LOGS: dict(records[LOGS])}
    return records[EXTRAS]["counts"].data, json.dumps(values).encode()


def read(data: Path, values: Path) -> Report | None:
    """Take a report in as the server does; None where Flower itself refuses the values."""
    array = Array("float64", (2, 3), NUMPY, data.read_bytes())
    model = Array(np.ones(9, np.float32))
    try:
        told = json.loads(values.read_bytes())
        head, logs = ConfigRecord(told[HEAD]), MetricRecord(told[LOGS])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    arrays = {MODEL: ArrayRecord({MODEL: model}), EXTRAS: ArrayRecord({"counts": array})}
    return to_report(RecordDict({HEAD: head, LOGS: logs, **arrays}))
