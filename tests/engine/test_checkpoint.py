"""A checkpoint gives back every bit, is the only one, and a damaged one is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny import make_plan

from src.checkpoint import load_checkpoint, read_sealed, save_checkpoint, write_sealed
from src.client import Client
from src.methods import method_class
from src.server import Server
from utils_.errors import UserError
from utils_.history import History
from utils_.labels import LabelState

OBSERVED = np.array([[0, 1, np.nan], [np.nan, 1, 0]], np.float32)
ARRAYS = {
    "float32": np.array([np.nan, np.inf, -0.0, 1e-40], np.float32),
    "float64": np.linspace(0, 1, 7),
    "int64": np.array([[2**62, -1]]),
    "uint8": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "bool": np.array([True, False]),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "every.second": np.arange(10)[::2],
}
HISTORY = [{"round": 0.0, "val_mAP": 0.1 + 0.2, "test_mAP": float("nan")}, {"round": 1.0}]

COLUMNS = ["round", "val_mAP", "test_mAP"]


def make_clients(count: int = 2) -> list[Client]:
    nothing = {"images": None, "augmenter": None, "plan": None}
    return [
        Client(k, rows=np.arange(2), labels=LabelState(OBSERVED), **nothing) for k in range(count)
    ]


def make_server(length: int = 5) -> Server:
    return Server(torch.zeros(length), method_class("fedavg")(make_plan()))


def save(folder: Path, round: int = 7, seed: int = 0) -> tuple[Server, list[Client], torch.Tensor]:
    """A checkpoint with something in every place."""
    server, clients = make_server(), make_clients()
    generator = torch.Generator().manual_seed(seed)
    server.model, best = (torch.randn(5, generator=generator) for _ in range(2))
    server.round, server.memory = round, dict(ARRAYS)
    clients[1].memory = {name: array.copy() for name, array in ARRAYS.items()}
    clients[1].labels.correct(np.isnan(OBSERVED), np.full((2, 3), 0.3), weight=0.7)
    clients[0].labels.correct(~np.isnan(OBSERVED), np.full((2, 3), 0.5))
    save_checkpoint(folder, server, clients, best=best, history=History(HISTORY))
    return server, clients, best


def assert_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    server, clients, best = save(tmp_path)
    other, others = make_server(), make_clients()
    found_best, history = load_checkpoint(tmp_path, other, others)
    assert torch.equal(other.model, server.model)
    assert torch.equal(found_best, best)
    assert other.round == 7
    assert_arrays(other.memory, server.memory)
    for found, expected in zip(others, clients, strict=True):
        assert_arrays(found.state(), expected.state())
        assert_arrays(found.memory, expected.memory)
    assert repr(list(history)) == repr(HISTORY)


def test_what_comes_back_can_be_changed(tmp_path: Path) -> None:
    """Methods add to their memory in place."""
    save(tmp_path)
    server, clients = make_server(), make_clients()
    best, _ = load_checkpoint(tmp_path, server, clients)
    for array in (*server.memory.values(), *clients[1].memory.values()):
        array[...] = 0
    server.model.add_(1)
    best.add_(1)


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    save(tmp_path, round=9)
    server, _, _ = save(tmp_path, round=10, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000010.safetensors"]
    other = make_server()
    load_checkpoint(tmp_path, other, make_clients())
    assert torch.equal(other.model, server.model)


def test_the_newest_of_several_is_loaded(tmp_path: Path) -> None:
    """A run that was killed between writing one and removing the other leaves two."""
    save(tmp_path / "old", round=9)
    server, _, _ = save(tmp_path / "new", round=10, seed=1)
    old = tmp_path / "old" / "round-000009.safetensors"
    old.rename(tmp_path / "new" / old.name)
    other = make_server()
    load_checkpoint(tmp_path / "new", other, make_clients())
    assert other.round == 10
    assert torch.equal(other.model, server.model)


def test_half_a_file_of_a_killed_run_is_passed_by(tmp_path: Path) -> None:
    save(tmp_path, round=9)
    (tmp_path / ".round-000010.safetensors.123.tmp").write_bytes(b"half")
    other = make_server()
    load_checkpoint(tmp_path, other, make_clients())
    assert other.round == 9


def test_no_checkpoint_changes_nothing(tmp_path: Path) -> None:
    server = make_server()
    assert load_checkpoint(tmp_path / "absent", server, make_clients()) is None
    assert server.round == 0


def damage(kind: str, path: Path) -> None:
    data = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "half":
        path.write_bytes(data[: len(data) // 2])
    if kind == "one byte short":
        path.write_bytes(data[:-1])
    if kind == "text":
        path.write_text("not a checkpoint\n" * 100)
    if kind == "zeros":
        path.write_bytes(bytes(len(data)))
    if kind == "no progress":
        save_file(load_file(path), path)
    if kind == "progress is not JSON":
        save_file(load_file(path), path, metadata={"progress": "{"})
    if kind == "no model":
        save_file({"best": np.zeros(5, np.float32)}, path, metadata={"progress": "{}"})
    if kind == "a folder":
        path.unlink()
        path.mkdir()


KINDS = ("empty", "half", "one byte short", "text", "zeros", "no progress", "progress is not JSON")


@pytest.mark.parametrize("kind", [*KINDS, "no model", "a folder"])
def test_a_damaged_checkpoint_is_one_line(kind: str, tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "round-000007.safetensors"
    damage(kind, path)
    assert_refused(tmp_path, path)


Arrays = dict[str, np.ndarray]
FORGED: dict[str, tuple[Callable[[Arrays], object], object]] = {
    "no model": (lambda arrays: arrays.pop("server.model"), {"history": HISTORY}),
    "no best": (lambda arrays: arrays.pop("best"), {"history": HISTORY}),
    "a longer model": (
        lambda arrays: arrays.update({"server.model": np.zeros(6, np.float32)}),
        {"history": HISTORY},
    ),
    "another type": (lambda arrays: arrays.update(best=np.zeros(5)), {"history": HISTORY}),
    "one label for all": (
        lambda arrays: arrays.update({"client.0.labels.weight": np.ones((1, 3), np.float32)}),
        {"history": HISTORY},
    ),
    "no labels": (lambda arrays: arrays.pop("client.1.labels.status"), {"history": HISTORY}),
    "a third client": (
        lambda arrays: arrays.update({"client.2.memory.x": np.ones(1)}),
        {"history": HISTORY},
    ),
    "of nobody": (lambda arrays: arrays.update(x=np.ones(1)), {"history": HISTORY}),
    "no history": (lambda arrays: None, {}),
    "a list": (lambda arrays: None, [1]),
    "rounds without number": (lambda arrays: None, {"history": [{"val_mAP": 1.0}]}),
    "columns without number": (lambda arrays: None, {"history": ["a", "b", "c"]}),
    "fewer columns": (lambda arrays: None, {"history": ["round", "val_mAP"]}),
    "a column twice": (lambda arrays: None, {"history": ["round", "round", "val_mAP"]}),
    "no numbers": (lambda arrays: arrays.pop("history.values"), {"history": COLUMNS}),
    "numbers of another kind": (
        lambda arrays: arrays.update({"history.values": np.zeros((2, 3), np.float32)}),
        {"history": COLUMNS},
    ),
    "other rows": (
        lambda arrays: arrays.update({"history.known": np.ones((3, 3), bool)}),
        {"history": COLUMNS},
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_checkpoint_of_something_else_is_one_line(case: str, tmp_path: Path) -> None:
    """Its checksum is right: another program, or somebody with a purpose, has written it."""
    change, progress = FORGED[case]
    save(tmp_path)
    path = tmp_path / "round-000007.safetensors"
    arrays, _ = read_sealed(path)
    change(arrays)
    write_sealed(path, arrays, progress)
    assert_refused(tmp_path, path)


def assert_refused(folder: Path, path: Path) -> None:
    server = make_server()
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder, server, make_clients())
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.round == 0
    assert not server.model.any()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_single_wrong_bit_is_noticed(place: float, bit: int, tmp_path: Path) -> None:
    """Resuming from it would go on, to another result."""
    save(tmp_path)
    path = tmp_path / "round-000007.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    assert_refused(tmp_path, path)


def test_progress_is_readable_by_others(tmp_path: Path) -> None:
    from safetensors import safe_open

    save(tmp_path)
    with safe_open(tmp_path / "round-000007.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["progress"]) == {"history": COLUMNS}


def test_the_rows_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "round-000007.safetensors"
    arrays, _ = read_sealed(path)
    old = {name: array for name, array in arrays.items() if not name.startswith("history.")}
    write_sealed(path, old, {"history": HISTORY})
    _, history = load_checkpoint(tmp_path, make_server(), make_clients())
    assert repr(list(history)) == repr(HISTORY)
