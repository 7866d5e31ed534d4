"""The lower bound: sites that train alone, and the mean of their metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    Trace,
    call_main,
    command,
    flip,
    make_config,
    make_plan,
    make_scenario,
    make_simulation,
    simulate,
)

from src.evaluator import mean_metrics
from src.messages import Broadcast
from src.methods import method_class
from utils_.datasets.base import TEST, VAL, ImageDataset
from utils_.metrics import Metrics, multilabel_metrics
from utils_.scenario import Scenario


def flawed(dataset: ImageDataset, mask: str = "classes") -> Scenario:
    return make_scenario(dataset, mask=mask, noise=0.2)


def run(dataset: ImageDataset, mask: str = "classes", **settings: Any) -> Trace:
    return simulate(make_config("local", **settings), dataset, flawed(dataset, mask))


def own_vectors(trace: Trace) -> list[torch.Tensor]:
    return [torch.from_numpy(client.memory["vector"]) for client in trace.simulation.clients]


@pytest.mark.parametrize("weights", ["none", "inverse"])
def test_a_site_s_model_is_that_of_fedavg_on_this_site_alone(
    weights: str, dataset: ImageDataset
) -> None:
    trace = run(dataset, class_weights=weights)
    plan = make_plan(class_weights=weights)
    for k in range(3):
        alone = make_simulation(make_config("local"), dataset, flawed(dataset))
        client, model = alone.clients[k], alone.model
        client.plan = plan
        counts = client.introduce().extras
        vector = model.snapshot()
        for round in range(3):
            message = Broadcast(round, vector, counts)
            vector = client.train(model, method_class("fedavg")(plan), message).model
        assert torch.equal(own_vectors(trace)[k], vector)


def test_other_sites_do_not_matter(dataset: ImageDataset) -> None:
    scenario = flawed(dataset)
    cells = scenario.annotated & (scenario.client == 1)[:, None]
    other = simulate(make_config("local"), *flip(dataset, scenario, cells))
    changed = own_vectors(other)
    same = [torch.equal(*pair) for pair in zip(own_vectors(run(dataset)), changed, strict=True)]
    assert same == [True, False, True]


def test_a_site_selected_late_starts_from_the_initial_model(dataset: ImageDataset) -> None:
    """Not from the mean of the others, which the server holds by then."""
    trace = run(dataset, fraction=0.34, rounds=6)
    order = [report.client for report in trace.received]
    round = next(r for r, client in enumerate(order) if client != order[0])
    start = trace.sent[0].model
    assert not torch.equal(trace.sent[round].model, start)
    simulation = make_simulation(make_config("local"), dataset, flawed(dataset))
    fedavg = method_class("fedavg")(make_plan())
    site = simulation.clients[order[round]]
    report = site.train(simulation.model, fedavg, Broadcast(round, start))
    assert torch.equal(trace.received[round].model, report.model)


def test_a_site_that_never_trained_is_scored_as_it_started(dataset: ImageDataset) -> None:
    trace = run(dataset, fraction=0.34, rounds=1)
    trained = trace.received[0].client
    for k, vector in enumerate(trace.simulation.scored):
        assert torch.equal(vector, trace.sent[0].model) == (k != trained)


# ---- what is reported


def reference_score(trace: Trace, vectors: list[torch.Tensor], part: int) -> dict[str, float]:
    """Mean of the sites' metrics; of the classes that a site annotates, and of the others."""
    evaluator = trace.simulation.evaluator
    scores = []
    for k, vector in enumerate(vectors):
        metrics = multilabel_metrics(*evaluator.predict(vector, part))
        own = evaluator.annotated[k] & ~np.isnan(metrics.per_class["ap"])
        other = ~evaluator.annotated[k] & ~np.isnan(metrics.per_class["ap"])
        apart = {
            "mAP_annotated": metrics.per_class["ap"][own].mean(),
            "mAP_missing": metrics.per_class["ap"][other].mean(),
        }
        scores.append(metrics.overall | apart)
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def test_the_metrics_are_the_mean_over_the_sites(dataset: ImageDataset) -> None:
    trace = run(dataset)
    vectors, last = own_vectors(trace), trace.simulation.history[-1]
    assert not torch.equal(vectors[0], vectors[1])
    for part, prefix in ((VAL, "val_"), (TEST, "test_")):
        expected = reference_score(trace, vectors, part)
        assert len(expected) > 10
        for name, value in expected.items():
            assert last[prefix + name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    ap = [entry["ap"] for entry in trace.result["per_class"].values()]
    assert np.mean(ap) == pytest.approx(trace.result["last"]["mAP"], abs=1e-9)


def test_the_selected_round_is_scored_with_the_sites_models_of_that_round(
    dataset: ImageDataset,
) -> None:
    for seed in range(1, 9):  # which round is the best is up to how a processor rounds
        trace = run(dataset, rounds=6, lr=0.05, seed=seed)
        best = int(np.argmax([row["val_mAP"] for row in trace.simulation.history]))
        if best < 5:
            break
    assert best < 5, "choose settings where the last round is not the best"
    vectors = [trace.received[3 * best + k].model for k in range(3)]
    assert torch.equal(trace.simulation.best, torch.stack(vectors))
    expected = reference_score(trace, vectors, TEST)["mAP"]
    assert trace.result["val_selected"]["mAP"] == pytest.approx(expected, abs=1e-9)


def test_nothing_is_exchanged(dataset: ImageDataset) -> None:
    trace = run(dataset, class_weights="inverse")
    assert trace.result["bytes_up"] == trace.result["bytes_down"] == 0
    fedavg = simulate(make_config("fedavg"), dataset, flawed(dataset))
    assert fedavg.result["bytes_up"] == fedavg.result["bytes_down"] == 36 * fedavg.vector.numel()


def test_figures_that_a_site_lacks_are_left_out_of_the_mean() -> None:
    columns = {"ap": np.array([0.5, np.nan]), "positives": np.array([3, 0])}
    other = {"ap": np.array([0.7, np.nan]), "positives": np.array([3, 0])}
    mean = mean_metrics([Metrics({"a": 1.0}, columns), Metrics({"a": 2.0, "b": 5.0}, other)])
    assert mean.overall == {"a": 1.5, "b": 5.0}
    np.testing.assert_allclose(mean.per_class["ap"], [0.6, np.nan])
    np.testing.assert_array_equal(mean.per_class["positives"], [3, 0])


def test_for_all_others_the_global_model_is_scored(dataset: ImageDataset) -> None:
    simulation = make_simulation(make_config(), dataset, flawed(dataset))
    assert simulation.scored is simulation.server.model
    score = simulation.evaluator.score(simulation.server.model, TEST)
    metrics = multilabel_metrics(*simulation.evaluator.predict(simulation.server.model, TEST))
    assert metrics.overall.items() <= score.overall.items()


def test_the_model_file_is_the_mean_of_the_sites(csv_data: Path, tmp_path: Path) -> None:
    options = command(csv_data, tmp_path, name="alone", method="local", missing=0.5)
    assert call_main(options) == 0
    folder = tmp_path / "runs" / "alone"
    (checkpoint,) = (folder / "checkpoint").iterdir()
    state = load_file(checkpoint)
    vectors = torch.stack([state[f"client.{k}.memory.vector"] for k in range(3)])
    model = load_file(folder / "model.safetensors")
    total = sum(tensor.double().sum() for tensor in model.values())
    assert float(total) == pytest.approx(float(vectors.double().mean(dim=0).sum()), abs=1e-3)
    assert state["best"].shape == vectors.shape
