"""FedProx against plain loops written from docs/methods.md 2 and its docstring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import Trace, make_config, make_plan, make_scenario, simulate

from src.client import Client
from src.messages import Broadcast, Report
from src.methods.fedavg import FedAvg
from src.methods.fedprox import FedProx
from src.models import FlatModel, build_module
from src.server import Server
from utils_.augment import Augmenter, channel_statistics
from utils_.datasets.base import ImageDataset
from utils_.labels import LabelState
from utils_.rng import derive

MUS = pytest.mark.parametrize("mu", [0, 0.01, 1, 30])


class Step:
    """A method's loss and gradient after each backward pass."""

    def __init__(self, kind: type, **params: float) -> None:
        plan = make_plan(clients=1, lr=0.01)
        self.method, self.plan = kind(plan, kind.Params(**params)), plan
        self.losses: list[float] = []
        self.gradients: list[np.ndarray] = []
        self.vectors: list[np.ndarray] = []

    def run(self, dataset: ImageDataset, force: list[np.ndarray] | None = None) -> Step:
        """One round of one client; ``force`` puts the given vectors in the place of its own."""
        flat = FlatModel(build_module("small", classes=4, weights="none", seed=1))
        rows = np.arange(24)
        augmenter = Augmenter(*channel_statistics(dataset.images, rows))
        client = Client(
            0,
            images=dataset.images,
            rows=rows,
            labels=LabelState(dataset.labels[rows]),
            augmenter=augmenter,
            plan=self.plan,
        )
        self.received = flat.snapshot()
        loss = self.method.loss

        def looked_at(client: Client, model: FlatModel, batch: Any, message: Broadcast) -> Any:
            if force:
                model.load(torch.from_numpy(force[len(self.losses)]))
            self.vectors.append(model.snapshot().numpy())
            value = loss(client, model, batch, message)
            self.losses.append(value.item())
            return value

        def after_backward(client: Client, model: FlatModel, message: Broadcast) -> None:
            self.gradients.append(model.gradient.numpy().copy())

        self.method.loss, self.method.after_backward = looked_at, after_backward
        client.train(flat, self.method, Broadcast(1, self.received))
        self.count = flat.parameter_count
        return self


@pytest.mark.numerics
@MUS
def test_the_objective_and_its_gradient_against_the_reference(
    mu: float, dataset: ImageDataset
) -> None:
    """On the way that FedProx takes, FedAvg's loss plus mu / 2 times the sum of squares."""
    prox = Step(FedProx, mu=mu).run(dataset)
    plain = Step(FedAvg).run(dataset, force=prox.vectors)
    received = prox.received.numpy().astype(np.float64)
    assert len(prox.losses) == 3
    for step, vector in enumerate(prox.vectors):
        way = [float(vector[i]) - float(received[i]) for i in range(prox.count)]
        squares = sum(d * d for d in way)
        assert (squares > 0) == (step > 0)
        assert not np.array_equal(vector[prox.count :], received[prox.count :]) or step == 0
        expected = plain.losses[step] + mu / 2 * squares
        # The sum of many thousand squares in float32, which is added up in blocks.
        assert prox.losses[step] == pytest.approx(expected, rel=1e-5)
        gradient = plain.gradients[step] + mu * np.array(way)
        np.testing.assert_allclose(prox.gradients[step], gradient, atol=1e-5, rtol=1e-5)


def test_the_start_has_no_gradient_of_its_own(dataset: ImageDataset) -> None:
    """Trap: the norm that is not squared is 0/0 there."""
    prox, plain = Step(FedProx, mu=1000).run(dataset), Step(FedAvg).run(dataset)
    assert prox.losses[0] == plain.losses[0]
    np.testing.assert_array_equal(prox.gradients[0], plain.gradients[0])


@pytest.mark.numerics
def test_the_server_takes_the_mean_weighted_by_images() -> None:
    server = Server(torch.zeros(5), FedProx(make_plan()))
    models = derive(0, "models").normal(size=(3, 5)).astype(np.float32)
    sizes = (7, 20, 3)
    reports = [Report(k, sizes[k], torch.from_numpy(models[k])) for k in range(3)]
    server.finish_round(reports)
    for i in range(5):
        expected = sum(sizes[k] * float(models[k, i]) for k in range(3)) / 30
        assert float(server.model[i]) == pytest.approx(expected, abs=1e-6)


def test_a_stronger_pull_keeps_models_nearer(dataset: ImageDataset) -> None:
    scenario = make_scenario(dataset, mask="cells", noise=0.2)

    def longest(mu: float) -> float:
        config = make_config("fedprox", param={"mu": mu}, local_epochs=3)
        trace: Trace = simulate(config, dataset, scenario)
        count = trace.simulation.model.parameter_count
        start = trace.sent[0].model[:count]
        return max(float(torch.dist(r.model[:count], start)) for r in trace.received[:3])

    free, weak, strong = (longest(mu) for mu in (0, 1, 100))
    assert strong < weak < free
