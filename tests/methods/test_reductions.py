"""Methods that become FedAvg, or their own first stage, to the last bit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tiny import Trace, make_config, make_dataset, make_scenario, simulate

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two epochs": {"local_epochs": 2, "loss": "focal", "buffers": "local"},
    "some sites": {"fraction": 0.67, "rounds": 4},
    "extra terms": {"consistency": 0.5, "class_weights": "inverse", "aggregator": "median"},
    "head first": {"freeze_rounds": 1},
}
EACH_OPTION = pytest.mark.parametrize("name", OPTIONS)
PATIENT = {"warmup_rounds": 1000}


@functools.cache
def run(method: str, name: str, clients: int = 3, **flat: Any) -> Trace:
    """A run; settings with a dot, such as ``param.mu``, go to the method's parameters."""
    param = {k.partition(".")[2]: v for k, v in flat.items() if k.startswith("param.")}
    settings = {k: v for k, v in flat.items() if not k.startswith("param.")} | OPTIONS[name]
    scenario = make_scenario(make_dataset(), mask="cells", noise=0.2, clients=clients)
    config = make_config(method, clients=clients, param=param, **settings)
    return simulate(config, make_dataset(), scenario)


def assert_same(one: Trace, other: Trace) -> None:
    """Models, losses and labels; what is sent beside the model and remembered may differ."""
    assert torch.equal(one.vector, other.vector)
    for ours, theirs in zip(one.received, other.received, strict=True):
        assert torch.equal(ours.model, theirs.model)
        assert ours.logs["loss"] == theirs.logs["loss"]
    for ours, theirs in zip(one.labels(), other.labels(), strict=True):
        assert ours[:3] == theirs[:3]


@EACH_OPTION
def test_fedprox_without_its_term_is_fedavg(name: str) -> None:
    assert_same(run("fedprox", name, **{"param.mu": 0}), run("fedavg", name))
    assert not torch.equal(run("fedprox", name).vector, run("fedavg", name).vector)


@EACH_OPTION
def test_scaffold_with_one_client_is_fedavg(name: str) -> None:
    scaffold = run("scaffold", name, clients=1)
    assert_same(scaffold, run("fedavg", name, clients=1))
    assert scaffold.simulation.clients[0].memory["variate"].any()
    assert not torch.equal(run("scaffold", name).vector, run("fedavg", name).vector)


@EACH_OPTION
def test_fednoro_without_noisy_sites_stays_in_its_first_stage(name: str) -> None:
    nobody = run("fednoro", name, **{"param.alpha": 0})
    assert_same(nobody, run("fednoro", name, **PATIENT))
    told = [report for report in nobody.received if "losses" in report.extras]
    assert told, "the vote took place"
    assert 1 not in nobody.simulation.server.memory["noisy"]


@EACH_OPTION
def test_the_first_stage_of_fednoro_is_fedavg_but_for_the_adjusted_logits(name: str) -> None:
    plain = run("fednoro", name, **PATIENT, **{"param.logit_adjustment": False})
    assert_same(plain, run("fedavg", name))
    assert not torch.equal(run("fednoro", name, **PATIENT).vector, run("fedavg", name).vector)


@EACH_OPTION
def test_fednoro_with_one_client_stays_in_its_first_stage(name: str) -> None:
    assert_same(run("fednoro", name, clients=1), run("fednoro", name, clients=1, **PATIENT))


@EACH_OPTION
def test_fednml_with_an_endless_warm_up_is_fedavg(name: str) -> None:
    """But for its mixed images; labels are judged all the while and left alone."""
    plain = run("fednml", name, **PATIENT, **{"param.mixup": 0})
    assert_same(plain, run("fedavg", name))
    assert not torch.equal(run("fednml", name).vector, run("fedavg", name).vector)


@EACH_OPTION
def test_the_warm_up_of_fednml_with_logit_adjustment_is_the_first_stage_of_fednoro(
    name: str,
) -> None:
    """Both adjust logits by the priors of what a site annotates; the rest has no weight yet."""
    adjusted = {"param.mixup": 0, "param.logit_adjustment": True}
    assert_same(run("fednml", name, **PATIENT, **adjusted), run("fednoro", name, **PATIENT))
