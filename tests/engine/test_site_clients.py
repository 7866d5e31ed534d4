"""Sites of groups.csv are the clients, with their names; cells that are uncertain start at 0.5."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

from src import job
from src.main_fednml import run
from src.server import NoReportLeft
from src.workers import WorkError
from utils_.errors import UserError
from utils_.labels import MISSING, OBSERVED, PSEUDO
from utils_.scenario import ScenarioSettings, build_scenario, client_names
from utils_.scenario_tables import client_table
from utils_.site_names import SiteNames
from utils_.truth import reference

SITES = ("Genf", "north", "west/east")
NAMED = SiteNames(SITES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The tiny data as files, dealt to three sites."""
    folder = tiny.write_csv_dataset(tmp_path / "data")
    rows = [[f"image{n}.png", SITES[n % 3]] for n in range(60)]
    tiny.write_table(folder / "groups.csv", [["image", "site"], *rows])
    return folder


def settings(data: Path, **changes: Any) -> dict[str, Any]:
    table = {k: v for k, v in tiny.SETTINGS.items() if k != "clients"}
    places = {"dataset": "csv", "data_dir": str(data), "save_dir": str(data.parent / "save")}
    return table | places | {"method": "fedavg"} | changes


@pytest.mark.parametrize(
    ("given", "split", "clients"),
    [
        ({}, "site", 3),
        ({"clients": 3}, "site", 3),
        ({"split": "site"}, "site", 3),
        ({"split": "iid"}, "iid", 4),
        ({"split": "iid", "clients": 5}, "iid", 5),
        ({"split": "dirichlet"}, "dirichlet", 4),
    ],
)
def test_sites_are_clients_unless_told_else(
    data: Path, given: dict[str, Any], split: str, clients: int
) -> None:
    config = job.settle(settings(data, **given))
    assert (config.split, config.clients) == (split, clients)


def test_it_is_said(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        job.settle(settings(data))
    assert "each site is a client (--split site --clients 3): Genf, north, west/east" in caplog.text


def test_another_number_of_clients_is_refused_and_the_advice_works(data: Path) -> None:
    with pytest.raises(UserError) as caught:
        job.settle(settings(data, clients=4))
    assert "use --clients 3 to make each a client, or add --split iid" in str(caught.value)
    assert job.settle(settings(data, clients=3)).split == "site"
    assert job.settle(settings(data, clients=4, split="iid")).clients == 4


def test_what_needs_the_number_of_clients_waits_for_it(data: Path) -> None:
    names = [f"h{n}" for n in range(8)]
    rows = [[f"image{n}.png", names[n % 8]] for n in range(60)]
    tiny.write_table(data / "groups.csv", [["image", "site"], *rows])
    assert job.settle(settings(data, attack="nan", attackers=6)).clients == 8
    with pytest.raises(UserError, match="--attackers 9"):
        job.settle(settings(data, attack="nan", attackers=9))


@pytest.mark.parametrize("sites", [None, "one"])
def test_without_sites_nothing_changes(data: Path, sites: str | None) -> None:
    if sites is None:
        (data / "groups.csv").unlink()
    else:
        rows = [[f"image{n}.png", sites] for n in range(60)]
        tiny.write_table(data / "groups.csv", [["image", "site"], *rows])
    config = job.settle(settings(data))
    assert (config.split, config.clients) == ("iid", 4)
    assert config == tiny.resolve(settings(data))


def test_a_site_whose_images_are_all_for_testing_is_no_client(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [[f"image{n}.png", "far" if n >= 48 else SITES[n % 2]] for n in range(60)]
    tiny.write_table(data / "groups.csv", [["image", "site"], *rows])
    assert job.settle(settings(data)).clients == 2
    assert "sites without a training image are no clients: far" in caplog.text


def test_names_stand_wherever_numbers_do(data: Path, capsys: pytest.CaptureFixture) -> None:
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in settings(data, rounds=1, warmup_rounds=0, name="mine").items()
    ]
    shown = run([*options, "--dry-run"])
    assert all(name in shown for name in SITES)
    run([*options, "--quiet"])
    folder = data.parent / "save/runs/mine"
    table = pd.read_csv(folder / "clients.csv")
    assert table["client"].tolist() == [0, 1, 2] and table["site"].tolist() == list(SITES)
    assert json.loads((folder / "result.json").read_text())["sites"] == list(SITES)
    events = b"".join(path.read_bytes() for path in folder.rglob("events*"))
    assert b"sites/0 Genf/loss" in events and b"sites/2 west-east/loss" in events
    assert "split: site\n" in (folder / "config.yaml").read_text()
    assert "already finished" in run(["--resume", str(folder), "--quiet"])


def test_clients_that_are_no_sites_keep_their_numbers(data: Path) -> None:
    config = job.settle(settings(data, split="iid", clients=3))
    dataset = job.load_dataset(config, quiet=True, labels_only=True)
    scenario = build_scenario(dataset, config.part(ScenarioSettings), folder=None)
    assert client_names(scenario, dataset, split="iid") == SiteNames()
    truth = reference(dataset, scenario, noise=False)
    assert "site" not in client_table(scenario, dataset, truth=truth).columns


def test_names_are_those_of_the_images(data: Path) -> None:
    config = job.settle(settings(data))
    dataset = job.load_dataset(config, quiet=True, labels_only=True)
    scenario = build_scenario(dataset, config.part(ScenarioSettings), folder=None)
    for client, name in enumerate(client_names(scenario, dataset, split="site").names):
        assert set(dataset.sites[scenario.rows(client)].tolist()) == {name}


def test_messages_of_the_server_name_the_site(caplog: pytest.LogCaptureFixture) -> None:
    dataset = tiny.make_dataset()
    config = tiny.make_config(lr=1e-3)
    simulation = tiny.make_simulation(config, dataset, tiny.make_scenario(dataset))
    simulation.server.names = NAMED
    broadcast = simulation.server.broadcast()
    simulation.clients[1].called = NAMED.called(1)
    with pytest.raises(WorkError, match=r"client 1 \(north\) failed in round 0"):
        list(simulation.start_runner().run(replace(broadcast, model=None), [1]))
    with pytest.raises(NoReportLeft, match=r"client 0 \(Genf\): its model"):
        reports = simulation.start_runner().run(broadcast, [0, 1, 2])
        simulation.server.finish_round(replace(r, model=r.model * np.nan) for r in reports)
    assert "client 2 (west/east) is left out" in caplog.text
    assert SiteNames().called(2) == "client 2" and SiteNames().tag(2) == "2"


# ---- uncertain cells


def uncertain_data() -> Any:
    """The tiny data, whose first class is uncertain in every fifth image."""
    dataset = tiny.make_dataset()
    labels, uncertain = dataset.labels.copy(), np.zeros(dataset.labels.shape, bool)
    uncertain[::5, 0] = True
    labels[uncertain] = np.nan
    return replace(dataset, labels=labels, uncertain=uncertain)


def scenario_of(dataset: Any, **changes: Any) -> Any:
    config = tiny.make_config(**changes)
    return build_scenario(dataset, config.part(ScenarioSettings), folder=None)


def test_uncertain_cells_start_at_a_half_without_annotation() -> None:
    dataset = uncertain_data()
    simulation = tiny.make_simulation(tiny.make_config("fedavg"), dataset, scenario_of(dataset))
    seen = 0
    for client in simulation.clients:
        soft = client.labels.status == PSEUDO
        seen += int(soft.sum())
        assert (client.labels.target[soft] == 0.5).all() and (client.labels.weight[soft] == 1).all()
        assert (
            not client.labels.annotated[soft].any() and np.isnan(client.labels.observed[soft]).all()
        )
        assert (client.labels.status[~soft] == OBSERVED).all()
    train = dataset.part == 0
    assert seen == dataset.uncertain[train].sum()  # nothing of validation and test


def test_a_hidden_cell_is_not_soft() -> None:
    dataset = uncertain_data()
    scenario = scenario_of(dataset, missing=2)
    hidden = np.isnan(scenario.observed).all(axis=0)
    simulation = tiny.make_simulation(tiny.make_config("fedavg", missing=2), dataset, scenario)
    for client, labels in enumerate(c.labels for c in simulation.clients):
        hidden = ~labels.annotated.any(axis=0)
        assert hidden.sum() == 2 and (labels.status[:, hidden] == MISSING).all(), client


def test_uncertain_is_not_assumed_negative() -> None:
    dataset = uncertain_data()
    scenario = scenario_of(dataset, assume_negative=True)
    assert (
        scenario.soft.any() and not (scenario.soft & (scenario.assumed | scenario.annotated)).any()
    )


def test_soft_cells_change_the_key_and_are_saved(tmp_path: Path) -> None:
    dataset = uncertain_data()
    wanted = tiny.make_config().part(ScenarioSettings)
    first = build_scenario(dataset, wanted, folder=tmp_path)
    again = build_scenario(dataset, wanted, folder=tmp_path)
    np.testing.assert_array_equal(first.soft, again.soft)
    plain = build_scenario(replace(dataset, uncertain=None), wanted, folder=tmp_path)
    assert plain.key != first.key and not plain.soft.any()
    assert "soft" not in np.load(tmp_path / f"{plain.key}.npz").files  # as before there were any


@pytest.mark.parametrize("method", ["fedavg", "fednml", "fedmlp", "fedcorr"])
def test_methods_train_with_soft_cells(method: str) -> None:
    dataset = uncertain_data()
    config = tiny.make_config(method, rounds=2)
    trace = tiny.simulate(config, dataset, scenario_of(dataset))
    assert np.isfinite(trace.vector.numpy()).all()
