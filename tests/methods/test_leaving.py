"""What leaves a site is what its method declares, and a method that only sums does only that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ROOT, Trace, make_config, make_scenario, simulate

from scripts.federation_code.privacy import federated, tables
from src.methods import method_class
from utils_.datasets.base import ImageDataset

EACH = pytest.mark.parametrize("method", federated())


@pytest.fixture(scope="module")
def heard(dataset: ImageDataset) -> dict[str, Trace]:
    """{method: a run of three rounds}."""
    scenario = make_scenario(dataset, mask="cells", noise=0.4)
    configs = {name: make_config(name, rounds=3, warmup_rounds=1) for name in federated()}
    return {name: simulate(config, dataset, scenario) for name, config in configs.items()}


@EACH
def test_what_leaves_is_declared(method: str, heard: dict[str, Trace]) -> None:
    declared, sent = method_class(method).reported, {}
    for report in heard[method].received:
        sent |= report.extras
    assert set(sent) == set(declared)
    for name, array in sent.items():
        assert np.asarray(array).dtype.itemsize == declared[name].item_bytes, name
        assert declared[name].meaning, name


@EACH
def test_a_method_that_only_sums_moves_with_each_report(
    method: str, heard: dict[str, Trace]
) -> None:
    """Twice the change of one site's model is twice the change of the next model."""
    server = heard[method].simulation.server
    reports, own = heard[method].received[-3:], slice(server.layout.parameters)
    server.round = 2  # the last one once more
    change = torch.zeros_like(server.model)
    change[own] = torch.randn(server.layout.parameters, generator=torch.Generator().manual_seed(1))

    def next_model(steps: float) -> torch.Tensor:
        memory = {name: array.copy() for name, array in server.memory.items()}
        moved = replace(reports[0], model=reports[0].model + steps * change)
        model = server.method.aggregate(server, [moved, *reports[1:]])
        server.memory = memory
        return model.double()

    start, one, two = (next_model(steps) for steps in (0, 1, 2))
    straight = torch.allclose(two - start, 2 * (one - start), rtol=1e-3, atol=1e-4)
    assert straight or method_class(method).sees_each
    assert not torch.equal(one, start)
    if method == "rscfed":
        assert not straight  # the test can fail


def test_the_page_has_the_tables() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert tables("resnet18", 20) in page
