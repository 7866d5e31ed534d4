"""Numbers at the edge, for every method: divergence, saturation, lone images, nothing to learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    VARIANTS,
    call_main,
    command,
    make_config,
    make_dataset,
    make_scenario,
    make_simulation,
    read_table,
    simulate,
    write_csv_dataset,
    write_table,
)

from src import models
from src.client import Client
from src.methods import method_names
from src.server import NoReportLeft
from src.simulation import Simulation
from src.workers import ParallelRunner
from utils_.arrays import LARGEST, all_finite
from utils_.datasets.base import TRAIN, ImageDataset
from utils_.errors import Diverged
from utils_.scenario import Scenario

EACH_METHOD = pytest.mark.parametrize("method", [*method_names(), *VARIANTS])
SATURATED = 1e6  # times the head: every probability is exactly 0 or 1
UNKNOWN = ("losses", "noise_score")  # of missing cells, of images without an opinion: NaN
FAR = 1e30  # a learning rate after which nothing is finite


def diverge(client: Client, rounds: range) -> None:
    """Let a client's training go astray in these rounds."""
    train, plan = client.train, client.plan

    def far(model: Any, method: Any, message: Any) -> Any:
        client.plan = replace(plan, lr=FAR) if message.round in rounds else plan
        return train(model, method, message)

    client.train = far  # type: ignore[method-assign]


def saturate(simulation: Simulation) -> None:
    weight, _ = simulation.model.head_slices
    simulation.server.model[weight.start : weight.stop] *= SATURATED


def spoilt(dataset: ImageDataset) -> tuple[ImageDataset, Scenario]:
    """Nobody has class 1, client 0 annotates nothing, and half of the images are alike."""
    labels, images = dataset.labels.copy(), dataset.images.copy()
    labels[:, 1], images[::2] = 0, 128
    dataset = replace(dataset, labels=labels, verified=labels, images=images)
    scenario = make_scenario(dataset, mask="cells", noise=0.2)
    annotated = scenario.annotated & (scenario.client != 0)[:, None]
    return dataset, replace(scenario, annotated=annotated)


def assert_sound(simulation: Simulation) -> None:
    """Nothing that lasts, is saved or is scored holds a number that is none."""
    assert torch.isfinite(simulation.scored).all()
    assert torch.isfinite(simulation.best).all()
    assert all(math.isfinite(row["train_loss"]) for row in simulation.history)
    assert np.isfinite(simulation.predictions.test_probability).all()
    for client in simulation.clients:
        for name, array in client.memory.items():
            assert not np.isinf(array).any(), name
            assert name in UNKNOWN or not np.isnan(array).any(), name
        assert np.isfinite(client.labels.target[client.labels.weight > 0]).all()


# ---- sites that diverge


@EACH_METHOD
def test_a_site_that_diverges_is_left_out_and_may_come_back(
    method: str, dataset: ImageDataset
) -> None:
    """Client 1 diverges once, client 2 always; a class is absent, a site without labels."""

    def prepare(simulation: Simulation) -> None:
        diverge(simulation.clients[1], range(1, 2))
        diverge(simulation.clients[2], range(9))

    simulation = simulate(make_config(method), *spoilt(dataset), prepare=prepare).simulation
    assert [row["rejected"] for row in simulation.history] == [1, 2, 1]
    assert_sound(simulation)


@EACH_METHOD
def test_where_all_diverge_nothing_is_left_and_nothing_is_kept(
    method: str, dataset: ImageDataset
) -> None:
    simulation = make_simulation(make_config(method), dataset, make_scenario(dataset))
    before = [client.state() for client in simulation.clients]
    for client in simulation.clients:
        diverge(client, range(9))
    model, method_object = simulation.model, simulation.method
    message = simulation.server.broadcast()
    reports = [client.train(model, method_object, message) for client in simulation.clients]
    with pytest.raises(NoReportLeft, match="client 2: its model holds values that are not finite"):
        simulation.server.finish_round(reports)
    for client, state in zip(simulation.clients, before, strict=True):
        assert client.state().keys() == state.keys()
        for name, array in client.state().items():
            np.testing.assert_array_equal(array, state[name])


def test_a_model_whose_predictions_overflow_ends_the_run(dataset: ImageDataset) -> None:
    simulation = make_simulation(make_config(), dataset, make_scenario(dataset))
    vector = torch.full_like(simulation.server.model, 1e14)
    for runner in (simulation.start_runner(), ParallelRunner(
        simulation.clients, simulation.method, simulation.predictor, workers=2
    )):  # fmt: skip
        with pytest.raises(Diverged, match="what the model predicts is not finite"):
            runner.predict(vector, np.arange(4))
        assert simulation.model.module.training  # as it was
        runner.close()


def test_an_aggregate_that_is_not_finite_is_no_model(dataset: ImageDataset) -> None:
    simulation = make_simulation(make_config(), dataset, make_scenario(dataset))
    server, before = simulation.server, simulation.server.model
    server.method.aggregate = lambda server, reports: torch.full_like(  # type: ignore[method-assign]
        next(iter(reports)).model, torch.inf
    )
    message = server.broadcast()
    reports = [simulation.clients[0].train(simulation.model, simulation.method, message)]
    with pytest.raises(Diverged, match="round 0: the global model is not finite"):
        server.finish_round(reports)
    assert server.model is before


def test_how_large_a_number_may_be() -> None:
    largest = torch.finfo(torch.float32).max
    assert all_finite(torch.tensor([largest, -largest]))  # whose difference is not
    assert all_finite(torch.tensor([-LARGEST]), most=LARGEST)
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not all_finite(torch.tensor([0.0, value, 1.0]))
    for value in (1.1 * LARGEST, -1.1 * LARGEST):
        assert not all_finite(torch.tensor([0.0, value]), most=LARGEST)


def test_a_diverging_run_is_one_line_with_advice_that_works(
    csv_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {"method": "fedavg", "optimizer": "sgd", "momentum": 0.9999, "lr": 10.0}
    options |= {"weight_decay": 10.0, "local_epochs": 3}
    assert call_main(command(csv_data, tmp_path, **options, name="far")) == 3
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "NoReportLeft" in line]
    assert told.endswith("a resume would end alike: start a new run with a smaller --lr than 10")
    folder = tmp_path / "runs" / "far"
    assert not any((folder / name).exists() for name in ("model.safetensors", "result.json"))
    options |= {"lr": 1e-4, "rounds": 1}
    assert call_main(command(csv_data, tmp_path, **options, name="near")) == 0


# ---- saturated, lone and equal


@EACH_METHOD
def test_one_image_a_client_one_class_and_equal_images(method: str) -> None:
    """Every batch is a batch of one, all images are alike, and there is one class."""
    dataset = make_dataset(classes=1)
    few = np.where(np.cumsum(dataset.part == TRAIN) <= 5, dataset.part, 3).astype(np.uint8)
    part = np.where(dataset.part == TRAIN, few, dataset.part).astype(np.uint8)
    dataset = replace(dataset, images=np.full_like(dataset.images, 128), part=part)
    scenario = make_scenario(dataset, clients=5)
    trace = simulate(make_config(method, clients=5), dataset, scenario)
    assert_sound(trace.simulation)
    assert not any(row["rejected"] for row in trace.simulation.history)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute as on a GPU: in bfloat16 where autocast says so."""
    autocast: Callable[..., Any] = torch.autocast
    monkeypatch.setattr(
        models.torch, "autocast",
        lambda device, kind, enabled: autocast(device, kind, enabled=True),
    )  # fmt: skip
    yield


@EACH_METHOD
@pytest.mark.usefixtures("bfloat16")
def test_one_site_in_bfloat16_with_probabilities_of_exactly_0_and_1(
    method: str, dataset: ImageDataset
) -> None:
    _, scenario = spoilt(dataset)
    scenario = replace(scenario, client=np.minimum(scenario.client, 0))
    config = make_config(method, clients=1)
    simulation = simulate(config, dataset, scenario, prepare=saturate).simulation
    assert_sound(simulation)
    assert np.isin(simulation.predictions.test_probability, (0, 1)).mean() > 0.9


@pytest.mark.usefixtures("bfloat16")
def test_an_overflow_in_bfloat16_is_told_as_divergence(dataset: ImageDataset) -> None:
    simulation = make_simulation(make_config(), dataset, make_scenario(dataset))
    with pytest.raises(Diverged):
        simulation.predictor(torch.full_like(simulation.server.model, 1e20), np.arange(4))
    (report,) = [simulation.clients[0].train(
        simulation.model, simulation.method,
        replace(simulation.server.broadcast(), model=simulation.server.model * 1e12),
    )]  # fmt: skip
    assert report.model.isnan().all()


# ---- nothing to learn


def test_without_any_label_no_run_begins_and_the_advice_works(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = write_csv_dataset(tmp_path / "data")
    header, *rows = read_table(data / "train_data.csv")
    write_table(data / "train_data.csv", [header, *([row[0], *[""] * 4] for row in rows)])
    options = command(data, tmp_path / "save", method="fedavg", rounds=1, name="run")
    assert call_main(options) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "no training image has a label at any client, so" in told[0]
    assert not (tmp_path / "save").exists()
    write_table(data / "train_data.csv", [header, *rows[:-1], [rows[-1][0], *[""] * 4]])
    assert call_main(options) == 0
    result = json.loads((tmp_path / "save" / "runs" / "run" / "result.json").read_text())
    assert result["not_trained"] == []
