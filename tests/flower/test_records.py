"""What crosses a site's boundary in Flower's records comes back to the same bits, or is refused."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from src.flower.records import (
    BadRecord,
    from_broadcast,
    from_report,
    head,
    to_broadcast,
    to_report,
    unpack,
)
from src.messages import NO_MODEL, Broadcast, Report

ARRAYS = st.sampled_from(["f4", "f8", "f2", "?", "i1", "u1", "i4", "i8", "u8"]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
EXTRAS = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=3)
MODELS = hnp.arrays("f4", st.integers(0, 9)).map(torch.from_numpy)
LOGS = st.dictionaries(st.text(max_size=8), st.floats(), max_size=3)
SAMPLES = st.integers(1, 2**40) | st.floats(0.5, 1e9)


def travelled(records: RecordDict) -> RecordDict:
    """The records after the way through bytes that Flower takes them."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    return recorddict_from_proto(recorddict_to_proto(records))


def bits(message: Broadcast | Report) -> dict:
    """All of a message, with arrays as bytes: NaN is equal to no NaN."""
    table = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    table["model"] = message.model.numpy().tobytes()
    table["extras"] = {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in message.extras.items()
    }
    return {name: repr(value) for name, value in table.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), MODELS, EXTRAS)
def test_broadcasts_keep_their_bits(round: int, model: torch.Tensor, extras: dict) -> None:
    message = Broadcast(round, model, extras)
    assert bits(to_broadcast(travelled(from_broadcast(message)))) == bits(message)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), SAMPLES, MODELS, EXTRAS, LOGS)
def test_reports_keep_their_bits(
    client: int, samples: float, model: torch.Tensor, extras: dict, logs: dict
) -> None:
    report = Report(client, samples, model, extras, logs)
    assert bits(to_report(travelled(from_report(report)))) == bits(report)


def test_a_report_without_a_model_and_arrays_by_column_pass() -> None:
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    report = to_report(travelled(from_report(Report(0, 3, NO_MODEL, {"a": columns}))))
    assert len(report.model) == 0
    assert (report.extras["a"] == columns).all()
    report.extras["a"][0, 0] = 5  # a method may go on with what it was sent


def test_what_holds_code_is_not_sent() -> None:
    with pytest.raises(ValueError, match="pickle"):
        from_report(Report(0, 3, NO_MODEL, {"a": np.array([object()])}))


def good() -> RecordDict:
    return from_report(Report(1, 3, torch.zeros(4), {"a": np.zeros((2, 2))}, {"loss": 1.0}))


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


HUGE = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 9999999)}")
CODE = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N.")
BACKWARDS = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", b"abcd")
ALL_BACKWARDS = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -1, -1)}", b"8 bytes.")
LATER = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"abcd").replace(
    b"\1", b"\2", 1
)
TOO_SHORT = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", b"abcd")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (HUGE, "not as long"),
        (TOO_SHORT, "not as long"),
        (CODE, "instead of numbers"),
        (BACKWARDS, "not as long"),
        (ALL_BACKWARDS, "not as long"),
        (LATER, "cannot be read"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 a zip file", "cannot be read"),
        (npy("{'descr': '<f4'"), "cannot be read"),
        (npy("{'descr': 7, 'fortran_order': False, 'shape': (1,)}"), "cannot be read"),
    ],
)
def test_arrays_that_are_not_what_they_claim(data: bytes, problem: str) -> None:
    record = ArrayRecord({"a": Array("float64", (2, 2), "numpy.ndarray", data)})
    with pytest.raises(BadRecord, match=f"'a'.*{problem}"):
        unpack(record)


def test_an_array_of_another_framework() -> None:
    record = ArrayRecord({"a": Array("float64", (1,), "torch.tensor", Array(np.zeros(1)).data)})
    with pytest.raises(BadRecord, match="'a' cannot be read"):
        unpack(record)


def changed(name: str, value: object) -> RecordDict:
    records = good()
    head(records)[name] = value
    return records


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        (RecordDict({}), "lacks the record 'model'"),
        (changed("client", "two"), "does not say its 'client'"),
        (changed("client", True), "does not say its 'client'"),
        (changed("samples", float("nan")), "number of images is nan"),
        (changed("samples", float("inf")), "number of images is inf"),
        (changed("client", 2.0), "does not say its 'client'"),
        (changed("samples", -3), "number of images is -3"),
        (changed("samples", 0), "number of images is 0"),
        (changed("samples", 2.0**53), "number of images is 9007199254740992"),
        (RecordDict({**good(), "head": ArrayRecord()}), "lacks the record 'head'"),
        (RecordDict({**good(), "logs": ConfigRecord()}), "lacks the record 'logs'"),
        (RecordDict({**good(), "model": ArrayRecord()}), "its model is no vector"),
        (
            RecordDict({**good(), "model": ArrayRecord({"model": Array(np.zeros(4))})}),
            "its model is no vector of float32",
        ),
    ],
)
def test_reports_that_are_none(records: RecordDict, problem: str) -> None:
    with pytest.raises(BadRecord, match=re.escape(problem)):
        to_report(records)


def test_a_list_among_the_logs() -> None:
    records = good()
    records["logs"]["loss"] = [1.0, 2.0]
    with pytest.raises(BadRecord, match="its log 'loss' is no number"):
        to_report(records)


def test_any_number_of_images_that_a_float_can_count() -> None:
    assert to_report(changed("samples", 2**53 - 1)).samples == 2**53 - 1


def test_a_round_is_a_whole_number() -> None:
    records = from_broadcast(Broadcast(3, torch.zeros(4), {}))
    head(records)["round"] = 1.5
    with pytest.raises(BadRecord, match="does not say its 'round'"):
        to_broadcast(records)
