"""The engine on Flower ends in the bits of the in-process one, whoever fails on the way."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import call_main, command, write_csv_dataset

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")

from cut_sites import hospitals, model_of, pooled_hospitals, run_config, server_folder
from fake_grid import FakeGrid, partitions

from src.flower.server_app import run_federation
from src.job import RunFailed
from utils_.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv_dataset(tmp_path_factory.mktemp("data"))


METHODS = ["fedavg", "fednml", "fednoro", "scaffold", "fedmlp", "fedcorr"]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_as_in_one_process(method: str, data: Path, tmp_path: Path) -> None:
    settings = {"method": method, "noise": 0.4, "missing": 0.5, "split": "iid"}
    assert call_main(command(data, tmp_path / "here", **settings)) == 0
    grid = FakeGrid(partitions(3, tmp_path))
    table = run_federation(grid, run_config(data, tmp_path / "there", **settings))
    assert "run folder" in table
    assert model_of(tmp_path / "there") == model_of(tmp_path / "here")


def rows_of(save: Path, column: str) -> list[float]:
    (path,) = save.glob("runs/*/metrics.csv")
    return [float(row[column]) for row in csv.DictReader(path.open())]


def one_run(data: Path, save: Path, grid: FakeGrid, **settings: Any) -> str:
    settings = {"method": "fednml", "noise": 0.4, "missing": 0.5} | settings
    return run_federation(grid, run_config(data, save, **settings))


def test_a_node_that_is_gone_for_a_round_is_left_out_and_returns(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid, away = FakeGrid(partitions(3, tmp_path)), {}

    def leave(grid: FakeGrid) -> None:
        rounds = [kind for _, kind in grid.asked].count("train")
        if rounds == 3:
            away.update({999: grid.nodes.pop(999)}) if 999 in grid.nodes else None
        if rounds == 5:
            grid.nodes[77] = away[999]  # under another number, as after a new registration

    grid.before = leave
    one_run(data, tmp_path / "save", grid, round_timeout=5)
    assert rows_of(tmp_path / "save", "rejected") == [0, 1, 0]
    assert "client 1 is left out" in caplog.text
    assert (77, "train") in grid.asked


def test_too_few_sites_end_the_run_and_it_can_go_on(data: Path, tmp_path: Path) -> None:
    whole = FakeGrid(partitions(3, tmp_path / "a"))
    one_run(data, tmp_path / "whole", whole)
    grid = FakeGrid(partitions(3, tmp_path / "b"))
    grid.tamper = lambda node, reply: None if len(grid.asked) > 3 + 4 else reply
    with pytest.raises(RunFailed, match=r"round 1: 1 of 3 sites have answered, min-clients is 2"):
        one_run(data, tmp_path / "broken", grid, round_timeout=1)
    (folder,) = (tmp_path / "broken" / "runs").iterdir()
    grid.tamper = lambda node, reply: reply  # all sites have trained in round 1 already
    run_federation(grid, {"resume": str(folder)})
    assert model_of(tmp_path / "broken") == model_of(tmp_path / "whole")


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_hospitals(tmp_path_factory.mktemp("pooled"))


def test_hospitals_get_what_the_pooled_data_would_give(pooled: Path, tmp_path: Path) -> None:
    settings = {"method": "fednml", "class_weights": "inverse", "head_bias": "prior"}
    line = command(pooled, tmp_path / "here", **settings, split="site")
    assert call_main(line) == 0
    grid = FakeGrid(hospitals(pooled, tmp_path, ["south", "north", "east"]))
    server = server_folder(pooled, tmp_path / "server")
    table = run_federation(grid, run_config(server, tmp_path / "there", **settings))
    assert model_of(tmp_path / "there") == model_of(tmp_path / "here")
    assert "unknown" in table  # nobody knows how noisy the labels are
    (result,) = (tmp_path / "there").glob("runs/*/result.json")
    assert json.loads(result.read_text())["sites"] == ["east", "north", "south"]
    (clients,) = (tmp_path / "there").glob("runs/*/clients.csv")
    (known,) = (tmp_path / "here").glob("runs/*/clients.csv")
    assert clients.read_text() == known.read_text()


def test_a_class_that_the_run_has_not_is_refused_by_its_site(
    pooled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = hospitals(pooled, tmp_path, ["south", "north", "east"])
    path = tmp_path / "north" / "train_data.csv"
    path.write_text(path.read_text().replace("class0", "klass0"))
    server = server_folder(pooled, tmp_path / "server")
    told = run_config(server, tmp_path / "save", method="fedavg", round_timeout=1)
    with pytest.raises(UserError, match=r"2 of 3 sites came .*north: its classes klass0 are none"):
        run_federation(FakeGrid(nodes), told)
    assert not (tmp_path / "save" / "runs").exists()


def test_a_failure_tells_the_server_nothing_of_the_files(pooled: Path, tmp_path: Path) -> None:
    nodes = hospitals(pooled, tmp_path, ["south", "north", "east"])
    (tmp_path / "north" / "train_data.csv").unlink()
    server = server_folder(pooled, tmp_path / "server")
    told = run_config(server, tmp_path / "save", method="fedavg", round_timeout=1)
    with pytest.raises(UserError, match=r"cannot take part; its own log says why") as caught:
        run_federation(FakeGrid(nodes), told)
    assert "train_data" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "local"}, "--method local: a bound has no federation"),
        ({"method": "clean"}, "--method clean: a bound has no federation"),
        ({"checkpoint_every": 2}, "--checkpoint-every: every round is kept"),
        ({"clients": 2}, "it is one of 3 partitions and --clients is 2"),
        ({"method": "fedvag"}, "did you mean 'fedavg'"),
    ],
)
def test_what_cannot_be_run(data: Path, tmp_path: Path, settings: dict, problem: str) -> None:
    grid = FakeGrid(partitions(3, tmp_path))
    told = run_config(data, tmp_path / "save", **settings, round_timeout=1)
    with pytest.raises(UserError, match=re.escape(problem)):
        run_federation(grid, told)
    assert not (tmp_path / "save").exists()


def test_hospitals_and_what_is_simulated(pooled: Path, tmp_path: Path) -> None:
    grid = FakeGrid(hospitals(pooled, tmp_path, ["south", "north", "east"]))
    server = server_folder(pooled, tmp_path / "server")
    told = run_config(server, tmp_path / "save", noise=0.4)
    with pytest.raises(UserError, match=r"--noise 0.4: nothing is simulated where hospitals"):
        run_federation(grid, told)
