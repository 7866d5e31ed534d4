"""The engine on Flower ends in the bits of the in-process one, whoever fails on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tiny import PARAMS, SETTINGS, call_main, command, write_csv_dataset

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")

from fake_grid import FakeGrid, partitions

from src.flower.server_app import run_federation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv_dataset(tmp_path_factory.mktemp("data"))


def run_config(data: Path, save: Path, **settings: Any) -> dict[str, Any]:
    """What ``flwr run --run-config`` would say."""
    param = PARAMS.get(settings.get("method", "fednml"), {}) | settings.pop("param", {})
    table = SETTINGS | {"dataset": "csv", "data_dir": str(data), "save_dir": str(save)} | settings
    told = {key.replace("_", "-"): value for key, value in table.items()}
    told["param"] = " ".join(f"{key}={value}" for key, value in param.items())
    return told


def model_of(save: Path) -> dict[str, bytes]:
    (path,) = save.glob("runs/*/model.safetensors")
    return {name: array.tobytes() for name, array in load_file(path).items()}


def history(save: Path) -> list[str]:
    (path,) = save.glob("runs/*/metrics.csv")
    return path.read_text().splitlines()


METHODS = ["fedavg", "fednml", "fednoro", "scaffold", "fedmlp", "fedcorr"]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_as_in_one_process(method: str, data: Path, tmp_path: Path) -> None:
    settings = {"method": method, "noise": 0.4, "missing": 0.5, "split": "iid"}
    assert call_main(command(data, tmp_path / "here", **settings)) == 0
    grid = FakeGrid(partitions(3, tmp_path))
    table = run_federation(grid, run_config(data, tmp_path / "there", **settings))
    assert "run folder" in table
    assert model_of(tmp_path / "there") == model_of(tmp_path / "here")
