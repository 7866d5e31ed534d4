"""Broadcast and Report as Flower's records, and back to the same bits; no pickle in either way.

What comes from another machine is looked at before memory is asked for: an array must be numbers,
and as many as its header claims.
"""

from __future__ import annotations

from io import BytesIO
from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from src.flower.words import EXTRAS, HEAD, LOGS, MODEL
from src.messages import Arrays, Broadcast, Report

NUMBERS = "biuf"  # kinds of NumPy types that a message may hold
NUMPY = "numpy.ndarray"  # how Flower marks the bytes of numpy.save
SMALL = 2**20  # bytes of an answer without a model
MOST_NAMES, LONGEST_NAME = 200, 100  # of the arrays and logs of a report


class BadRecord(ValueError):
    """A message is not what its sender should have written; the text is the end of a sentence."""


def from_broadcast(message: Broadcast) -> RecordDict:
    """The records that go to a site."""
    head = ConfigRecord({"round": message.round})
    return RecordDict({HEAD: head, **_arrays_out(message.model, message.extras)})


def to_broadcast(records: RecordDict) -> Broadcast:
    """The broadcast in the records of :func:`from_broadcast`.

    Raises:
        BadRecord: they hold something else.
    """
    model, extras = _arrays_in(records)
    return Broadcast(_number(records, "round", whole=True), model, extras)


def from_report(report: Report) -> RecordDict:
    """The records that go to the server; ``credit`` is the server's own and stays behind."""
    head = ConfigRecord({"client": report.client, "samples": report.samples})
    logs = MetricRecord({name: float(value) for name, value in report.logs.items()})
    return RecordDict({HEAD: head, LOGS: logs, **_arrays_out(report.model, report.extras)})


def to_report(records: RecordDict, *, most: int | None = None) -> Report:
    """The report in the records of :func:`from_report`.

    Args:
        most: bytes that its arrays may have; what has more is not decoded.

    Raises:
        BadRecord: they hold something else. Shapes and values are the server's to judge.
    """
    refuse_oversized(records, most)
    model, extras = _arrays_in(records)
    client, samples = _number(records, "client", whole=True), _number(records, "samples")
    if not 0 < samples < 2**53:
        raise BadRecord(f"its number of images is {samples}")
    logs = {name: _log(name, value) for name, value in _record(records, LOGS, MetricRecord).items()}
    return Report(client, samples, model, extras, logs)


def head(records: RecordDict) -> ConfigRecord:
    """The record of single values, to which sender and receiver may add their own.

    Raises:
        BadRecord: there is none.
    """
    found: ConfigRecord = _record(records, HEAD, ConfigRecord)
    return found


def extras(records: RecordDict) -> Arrays:
    """The arrays beside the model.

    Raises:
        BadRecord: there are none, or they are not what they claim.
    """
    return unpack(_record(records, EXTRAS, ArrayRecord))


def pack(arrays: Arrays) -> ArrayRecord:
    """Arrays by name as a record."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def unpack(record: ArrayRecord) -> Arrays:
    """The arrays of a record, which may be written to.

    Raises:
        BadRecord: one of them is no array of numbers, or not as long as it claims.
    """
    return {name: _numbers(name, array) for name, array in record.items()}


def refuse_oversized(records: RecordDict, most: int | None = SMALL) -> None:
    """Stop before anything is decoded; an answer without a model is small.

    Raises:
        BadRecord: the arrays have more than ``most`` bytes, or there are too many names.
    """
    arrays = [array for record in records.array_records.values() for array in record.values()]
    size = sum(len(array.data) for array in arrays)
    if most is not None and size > most:
        raise BadRecord(f"its arrays have {size:,} bytes, and {most:,} are the most")
    names = [name for record in records.values() for name in record]
    if len(names) > MOST_NAMES or any(len(name) > LONGEST_NAME for name in names):
        raise BadRecord(f"it has more than {MOST_NAMES} names, or one of {LONGEST_NAME} letters")


def _arrays_out(model: Tensor, extras: Arrays) -> dict[str, ArrayRecord]:
    return {MODEL: pack({MODEL: model.numpy()}), EXTRAS: pack(extras)}


def _arrays_in(records: RecordDict) -> tuple[Tensor, Arrays]:
    models = unpack(_record(records, MODEL, ArrayRecord))
    if [*models] != [MODEL] or models[MODEL].dtype != np.float32 or models[MODEL].ndim != 1:
        raise BadRecord("its model is no vector of float32")
    return torch.from_numpy(models[MODEL]), extras(records)


def _numbers(name: str, array: Array) -> np.ndarray:
    """What numpy.load would give, without asking for memory that the bytes do not fill."""
    file = BytesIO(array.data)
    try:
        if array.stype != NUMPY or np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another format")
        shape, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # a header is parsed as Python, and fails in as many ways
        raise BadRecord(f"its array '{name}' cannot be read") from error
    if kind.kind not in NUMBERS:
        raise BadRecord(f"its array '{name}' holds {kind} instead of numbers")
    start, count = file.tell(), prod(shape)
    if min(shape, default=0) < 0 or count * kind.itemsize != len(array.data) - start:
        raise BadRecord(f"its array '{name}' is not as long as it claims")
    values = np.frombuffer(array.data, kind, count, start).copy()
    return values.reshape(shape, order="F" if by_columns else "C")


def _record(records: RecordDict, name: str, kind: type) -> Any:
    if not isinstance(records.get(name), kind):
        raise BadRecord(f"it lacks the record '{name}'")
    return records[name]


def _number(records: RecordDict, name: str, *, whole: bool = False) -> Any:
    value = head(records).get(name)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise BadRecord(f"it does not say its '{name}'")
    return value


def _log(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRecord(f"its log '{name}' is no number")
    return float(value)
