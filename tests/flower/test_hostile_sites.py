"""A site that sends what it should not is refused by name, and the round goes on without it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")

from cut_sites import hospitals, pooled_hospitals, run_config, server_folder
from fake_grid import FakeGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from src.aggregation import Frame, Layout
from src.flower import records
from src.flower.federation import most_bytes
from src.flower.own_data import SiteTable
from src.methods import method_class, method_names
from utils_.errors import UserError

SITES = ["south", "north", "east"]  # nodes 50, 49 and 48
HOSTILE = 49
Change = Callable[[Message], None]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_hospitals(tmp_path_factory.mktemp("pooled"))


def put(record: str, name: str, value: Any) -> Change:
    def change(reply: Message) -> None:
        reply.content[record][name] = value

    return change


def array(record: str, name: str, values: Any) -> Change:
    return put(record, name, Array(np.asarray(values)))


def not_finite(reply: Message) -> None:
    model = reply.content["model"]["model"].numpy().copy()
    model[-1] = np.nan
    reply.content["model"]["model"] = Array(model)


def claims(size: int) -> Array:
    """An array whose header claims more than there is."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},), }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"abcd"
    return Array("float32", (1,), "numpy.ndarray", data)


def drop(record: str) -> Change:
    return lambda reply: reply.content.pop(record)


def many_logs(reply: Message) -> None:
    reply.content["logs"] = MetricRecord({f"a{number}": 1.0 for number in range(1000)})


def instead(record: str, content: Any) -> Change:
    def change(reply: Message) -> None:
        reply.content[record] = content

    return change


REPORTS: dict[str, tuple[Change, str]] = {
    "oversized": (
        array("extras", "more", np.zeros(10**6)),
        r"arrays have [\d,]+ bytes, and .* most",
    ),
    "oversized model": (array("model", "model", np.zeros(10**6, "f4")), "bytes, and"),
    "a bomb": (put("model", "model", claims(10**12)), "not as long as it claims"),
    "no array": (put("model", "model", Array("x", (1,), "numpy.ndarray", b"PK")), "cannot be read"),
    "shorter": (array("model", "model", np.zeros(7, "f4")), r"its model has shape \(7,\)"),
    "NaN": (not_finite, "its model holds values that are not finite"),
    "NaN in extras": (array("extras", "positives", np.full(4, np.nan)), "not finite"),
    "extras of another shape": (array("extras", "positives", np.zeros((4, 1))), "has shape"),
    "text in extras": (array("extras", "positives", np.array(["a"] * 4)), "instead of numbers"),
    "unknown extras with NaN": (array("extras", "spy", [np.nan]), "'spy' holds values"),
    "no extras": (drop("extras"), "it lacks the record 'extras'"),
    "no logs": (drop("logs"), "it lacks the record 'logs'"),
    "no head": (drop("head"), "it lacks the record 'head'"),
    "other records": (instead("model", ConfigRecord({"a": 1})), "it lacks the record 'model'"),
    "empty model": (instead("model", ArrayRecord()), "its model is no vector"),
    "1000 logs": (many_logs, "more than 200 names"),
    "a long name": (put("logs", "x" * 101, 1.0), "or one of 100 letters"),
    "in another's name": (put("head", "client", 2), "it answers for another site"),
    "more weight": (put("head", "samples", 10**9), "joined with"),
    "NaN as weight": (put("head", "samples", float("nan")), "number of images is nan"),
    "lines of a log": (put("head", "fault", "a\nfednml: round 3: client 0"), "a fednml: round 3"),
}


def one_round(
    pooled: Path, tmp_path: Path, tamper: Callable[[int, Message], Message | None], **more: Any
) -> FakeGrid:
    from src.flower.server_app import run_federation

    grid = FakeGrid(hospitals(pooled, tmp_path, SITES), tamper=tamper)
    server = server_folder(pooled, tmp_path / "server")
    told = {"method": "fednml", "rounds": 1, "warmup_rounds": 0, "round_timeout": 30} | more
    grid.registered = told.pop("registered", {})
    run_federation(grid, run_config(server, tmp_path / "save", **told))
    return grid


def test_reports_that_cannot_be_used(
    pooled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One kind in each round, and all rounds go on with the two others."""
    kinds = iter(REPORTS.values())

    def tamper(node: int, reply: Message) -> Message:
        if node == HOSTILE and "model" in reply.content:
            next(kinds)[0](reply)
        return reply

    grid = one_round(pooled, tmp_path, tamper, rounds=len(REPORTS), round_timeout=20)
    assert [kind for _, kind in grid.asked].count("train") == 3 * len(REPORTS)
    (rows,) = (tmp_path / "save").glob("runs/*/metrics.csv")
    with rows.open() as file:
        assert [float(row["rejected"]) for row in csv.DictReader(file)] == [1] * len(REPORTS)
    said = [text for text in caplog.messages if "left out" in text]
    assert len(said) == len(REPORTS) and not any("\n" in text for text in said)
    for number, (what, (_, reason)) in enumerate(REPORTS.items()):
        wanted = rf"round {number}: client 1 \(north\) is left out: .*{reason}"
        assert re.search(wanted, said[number]), f"{what}: {said[number]}"


def test_what_is_too_large_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "unpack", lambda record: pytest.fail("it was decoded"))
    report = records.RecordDict({"model": ArrayRecord({"model": Array(np.zeros(1000))})})
    with pytest.raises(records.BadRecord, match="its arrays have 8,128 bytes, and 4,000 are the"):
        records.to_report(report, most=4000)


def test_counts_other_than_those_told_before(
    pooled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With class weights they would reach every other site."""

    def tamper(node: int, reply: Message) -> Message:
        if node == HOSTILE and "class_counts" in reply.content.get("extras", {}):
            reply.content["extras"]["class_counts"] = Array(np.full((2, 4), 1e9))
        return reply

    with pytest.raises(
        Exception, match=r"north\) has not introduced itself: its counts of classes"
    ):
        one_round(pooled, tmp_path, tamper, class_weights="inverse")


# ---- who is who


def test_a_site_that_joins_in_another_s_name(pooled: Path, tmp_path: Path) -> None:
    """The name belongs to the key that was registered under it."""

    def tamper(node: int, reply: Message) -> Message:
        if node == HOSTILE and "site" in reply.content["head"]:
            reply.content["head"]["site"] = "south"
        return reply

    keys = dict(zip((50, 49, 48), SITES, strict=True))
    with pytest.raises(UserError, match=r"2 of 3 sites came .*north: it answers in the name of "):
        one_round(pooled, tmp_path, tamper, registered=keys, round_timeout=8)


def test_the_owner_of_a_name_takes_part_whoever_else_claims_it(
    pooled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = hospitals(pooled, tmp_path, SITES)
    grid = FakeGrid({7: nodes[50], **nodes})  # the lowest number is an impostor
    grid.registered = {7: "spy", **dict(zip((50, 49, 48), SITES, strict=True))}
    server = server_folder(pooled, tmp_path / "server")
    told = run_config(server, tmp_path / "save", method="fedavg", rounds=1, round_timeout=30)
    from src.flower.server_app import run_federation

    run_federation(grid, told)
    assert "site spy: it answers in the name of the site south" in caplog.text
    assert (7, "train") not in grid.asked and (50, "train") in grid.asked


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a\nfednml: round 1"}, "no name"),
        ({"name": ""}, "no name"),
        ({"images": 0}, "images instead of"),
        ({"images": 10**12}, "images instead of"),
        ({"positives": np.full(4, 99)}, "do not fit its number of images"),
        ({"positives": np.full(4, -1)}, "do not fit its number of images"),
        ({"annotated": np.full(4, np.nan)}, "not one number a class"),
        ({"annotated": np.full(5, 1)}, "not one number a class"),
        ({"pixels": np.full((3, 3), np.inf)}, "sums of its pixels"),
    ],
)
def test_what_a_site_tells_when_it_joins(change: dict[str, Any], said: str) -> None:
    table = {"name": "north", "images": 9, "positives": np.full(4, 2), "annotated": np.full(4, 9)}
    table |= {"pixels": np.ones((3, 3))}
    assert SiteTable(**table).fault(4) is None
    assert said in (SiteTable(**table | change).fault(4) or "")


@pytest.mark.parametrize("name", [n for n in method_names() if method_class(n).exchange])
def test_honest_reports_of_every_method_have_room(name: str) -> None:
    """The most that a report may have follows from what its method declares."""
    import torch

    layout = Layout(1000, slice(0, 400), slice(400, 420))  # 20 classes, 20 features
    expected = method_class(name).reported
    arrays = [np.zeros([layout.lengths.get(a, a) for a in e.axes]) for e in expected.values()]
    frame = Frame(torch.zeros(1100), layout, expected=expected)
    told = sum(len(Array(one).data) for one in arrays) + 4 * 1100
    assert told <= most_bytes(frame) <= told + records_room()


def records_room() -> int:
    from src.flower.federation import HEADERS

    return HEADERS
