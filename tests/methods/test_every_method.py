"""What every method must do: finish, resume to the same bits, and stand hard federations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VARIANTS, NoLog, Trace, make_config, make_scenario, make_simulation, simulate
from tqdm import tqdm

from src.interruption import Interrupted
from src.methods import method_names
from src.simulation import Simulation
from utils_.datasets.base import TRAIN, ImageDataset
from utils_.scenario import Scenario

EACH_METHOD = pytest.mark.parametrize("method", [*method_names(), *VARIANTS])


def run_on(simulation: Simulation, folder: Path) -> bool:
    """Run one more round; whether it was the last."""
    try:
        with tqdm(disable=True) as bar:
            simulation.run(folder, NoLog(), stop=lambda: True, progress=bar)
    except Interrupted:
        return False
    return True


@EACH_METHOD
def test_a_run_broken_off_after_every_round_ends_in_the_same_bits(
    method: str, dataset: ImageDataset, tmp_path: Path
) -> None:
    config = make_config(method, rounds=4, fraction=0.7)
    scenario = make_scenario(dataset, mask="cells", noise=0.2)
    whole, done, rounds = simulate(config, dataset, scenario), False, 0
    while not done:
        simulation = make_simulation(config, dataset, scenario)
        simulation.resume(tmp_path)
        done, rounds = run_on(simulation, tmp_path), rounds + 1
    assert rounds == 4
    pieces = Trace(simulation)
    assert torch.equal(whole.vector, pieces.vector)
    assert torch.equal(whole.simulation.best, simulation.best)
    assert whole.labels() == pieces.labels()
    assert whole.scores() == pieces.scores()
    memories = [run.server.memory for run in (whole.simulation, simulation)]
    assert memories[0].keys() == memories[1].keys()
    for name, array in memories[0].items():
        np.testing.assert_array_equal(array, memories[1][name], err_msg=name)


def hard(dataset: ImageDataset) -> Scenario:
    """Sites without a label, without a positive, of two images, and of the rest; no class 3."""
    scenario = make_scenario(dataset, clients=4)
    train = np.flatnonzero(scenario.part == TRAIN)
    client, noisy = scenario.client.copy(), scenario.noisy.copy()
    annotated = scenario.annotated.copy()
    client[train] = np.repeat([0, 1, 2, 3], [8, 9, 2, len(train) - 19])
    annotated[client == 0] = False
    noisy[client == 1] = 0
    annotated[train, 3] = False
    return replace(scenario, client=client, noisy=noisy, annotated=annotated)


def assert_sound(trace: Trace) -> None:
    assert torch.isfinite(trace.vector).all()
    assert not torch.equal(trace.vector, trace.sent[0].model)
    assert trace.result["rounds"] == 3
    for client in trace.simulation.clients:
        assert all(np.isfinite(array).all() for array in client.memory.values())
        assert np.isfinite(client.labels.target[client.labels.weight > 0]).all()


@EACH_METHOD
def test_a_hard_federation_ends_in_a_finite_model(method: str, dataset: ImageDataset) -> None:
    assert_sound(simulate(make_config(method, clients=4), dataset, hard(dataset)))


@EACH_METHOD
@pytest.mark.parametrize("mask", ["classes", "none"])
def test_one_site_alone(method: str, mask: str, dataset: ImageDataset) -> None:
    scenario: Any = make_scenario(dataset, clients=1, mask=mask)
    assert_sound(simulate(make_config(method, clients=1), dataset, scenario))
