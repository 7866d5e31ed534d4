"""What results may depend on: seeds and settings; and what they may not: workers, order, names."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    SETTINGS,
    VARIANTS,
    Trace,
    make_config,
    make_dataset,
    make_scenario,
    make_simulation,
    simulate,
)

from src.messages import Broadcast, Report
from src.methods import method_names
from src.workers import SequentialRunner
from utils_.datasets.base import TRAIN, ImageDataset
from utils_.scenario import ScenarioSettings, build_scenario

EACH_METHOD = pytest.mark.parametrize("method", [*method_names(), *VARIANTS])
NOISE = 0.2


def flawed_run(dataset: ImageDataset, method: str = "fedavg", **settings: Any) -> Trace:
    scenario = make_scenario(dataset, mask="cells", noise=NOISE)
    return simulate(make_config(method, **settings), dataset, scenario)


@functools.cache
def plain_run(method: str = "fedavg") -> Trace:
    """The run that others are compared with."""
    return flawed_run(make_dataset(), method)


def assert_same(one: Trace, other: Trace) -> None:
    assert torch.equal(one.vector, other.vector)
    assert torch.equal(one.simulation.best, other.simulation.best)
    assert one.crossed() == other.crossed()
    assert one.labels() == other.labels()
    assert one.scores() == other.scores()


@EACH_METHOD
def test_the_same_seed_gives_the_same_bits(method: str, dataset: ImageDataset) -> None:
    assert_same(plain_run(method), flawed_run(dataset, method))


@EACH_METHOD
def test_the_number_of_workers_does_not_matter(method: str, dataset: ImageDataset) -> None:
    assert_same(plain_run(method), flawed_run(dataset, method, workers="2"))


@EACH_METHOD
def test_the_order_of_the_clients_does_not_matter(
    method: str, dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plain_run(method)
    run, orders = SequentialRunner.run, []

    def backwards(self: SequentialRunner, message: Broadcast, selected: Any) -> Iterator[Report]:
        orders.append(list(reversed(selected)))
        yield from reversed(list(run(self, message, orders[-1])))

    monkeypatch.setattr(SequentialRunner, "run", backwards)
    assert_same(plain, flawed_run(dataset, method))
    assert [2, 1, 0] in orders and all(order == sorted(order)[::-1] for order in orders)


@EACH_METHOD
def test_another_seed_gives_another_model(method: str, dataset: ImageDataset) -> None:
    one, other = plain_run(method), flawed_run(dataset, method, seed=2)
    assert not torch.equal(one.sent[0].model, other.sent[0].model)
    assert not torch.equal(one.vector, other.vector)


def test_the_seed_of_the_data_changes_the_data_alone() -> None:
    dataset = make_dataset()
    vectors, scenarios = [], []
    for data_seed in (1, 2):
        config = make_config(noise=0.4, missing=0.5, data_seed=data_seed)
        scenarios.append(build_scenario(dataset, config.part(ScenarioSettings), folder=None))
        simulation = make_simulation(config, dataset, scenarios[-1])
        vectors.append(simulation.server.model)
    assert torch.equal(*vectors)
    one, other = scenarios
    train = one.part == TRAIN
    assert not np.array_equal(one.client[train], other.client[train])
    assert not np.array_equal(one.noisy, other.noisy, equal_nan=True)
    assert not np.array_equal(one.annotated, other.annotated)


def test_settings_of_where_and_how_change_no_bit(dataset: ImageDataset) -> None:
    assert SETTINGS["workers"] == "1"
    assert_same(
        plain_run(),
        flawed_run(dataset, workers="3", checkpoint_every=2, name="other", save_dir="elsewhere"),
    )
