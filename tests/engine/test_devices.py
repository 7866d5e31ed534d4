"""Rounds on every device there is: the CPU, which they are compared with, and a GPU."""

from __future__ import annotations

import pytest
import torch
from tiny import make_config, make_dataset, make_scenario, make_simulation

from src.simulation import Simulation
from src.workers import SequentialRunner
from utils_.datasets.base import TEST

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def rounds_on(device: str, method: str, *, count: int = 2) -> Simulation:
    """A simulation after some rounds; FedNML refines from the first on."""
    config = make_config(method, warmup_rounds=0, device=device)
    dataset = make_dataset()
    simulation = make_simulation(config, dataset, make_scenario(dataset))
    server = simulation.server
    runner = SequentialRunner(simulation.clients, simulation.method, simulation.predictor)
    for _ in range(count):
        server.finish_round(runner.run(server.broadcast(), server.select()))
    return simulation


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["fedavg", "fednml", "fednoro", "fedlsm", "fixmatch"])
def test_rounds_end_near_those_of_the_cpu(device: str, method: str) -> None:
    """A GPU computes in bf16, so updates point the same way and are not the same."""
    start = rounds_on("cpu", method, count=0).server.model
    expected = rounds_on("cpu", method).server.model - start
    simulation = rounds_on(device, method)
    found = simulation.server.model - start
    assert simulation.model.device.type == device and found.device.type == "cpu"
    assert torch.isfinite(found).all() and found.any()
    assert torch.cosine_similarity(found, expected, dim=0) > (0.999 if device == "cpu" else 0.8)


@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_one_model_agree(device: str) -> None:
    here, there = rounds_on("cpu", "fedavg"), rounds_on(device, "fedavg", count=0)
    expected, truth = here.evaluator.predict(here.server.model, TEST)
    found, _ = there.evaluator.predict(here.server.model, TEST)
    assert found.shape == truth.shape
    assert abs(found - expected).max() < (1e-6 if device == "cpu" else 0.05)
