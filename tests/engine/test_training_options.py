"""``--loss``, ``--class-weights``, ``--consistency``, ``--augment``, optimisers, biases."""

from __future__ import annotations

import functools
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Trace, flip, make_config, make_dataset, make_plan, make_scenario, simulate

from src.client import Client
from src.losses import masked_bce
from src.messages import Broadcast
from src.methods import method_class
from src.methods.base import Batch, Method
from src.models import FlatModel, build_module
from src.simulation import Simulation
from src.supervision import LOSSES
from utils_.augment import STRONG, WEAK, Augmenter, channel_statistics
from utils_.datasets.base import TRAIN
from utils_.labels import LabelState
from utils_.priors import balance_factors
from utils_.rng import derive_seed

OPTIONS: dict[str, dict[str, Any]] = {
    **{f"loss {name}": {"loss": name} for name in LOSSES if name != "bce"},
    "class weights inverse": {"class_weights": "inverse"},
    "class weights effective": {"class_weights": "effective"},
    "consistency": {"consistency": 2.0},
    "augment none": {"augment": "none"},
    "augment strong": {"augment": "strong"},
    "freeze": {"freeze_rounds": 2},
    "sgd": {"optimizer": "sgd", "lr": 0.02},
    "cosine": {"lr_schedule": "cosine"},
    "biases": {"head_bias": "prior"},
    "ll_cp as published": {"loss": "ll_cp", "loss_param": {"unobserved": True, "delta": 5}},
    "all at once": {
        "loss": "elr",
        "class_weights": "effective",
        "consistency": 1.0,
        "augment": "strong",
        "freeze_rounds": 1,
    },
}
EACH_OPTION = pytest.mark.parametrize("option", OPTIONS)
METHODS = pytest.mark.parametrize("method", ["fedavg", "fednml"])
ROUNDS_BEFORE_THE_BREAK = 2


@functools.cache
def flawed(mask: str) -> tuple:
    dataset = make_dataset()
    return dataset, make_scenario(dataset, mask=mask, noise=0.2)


def run(method: str, mask: str = "cells", **settings: Any) -> Trace:
    return simulate(make_config(method, **settings), *flawed(mask))


def assert_same(one: Trace, other: Trace) -> None:
    assert torch.equal(one.vector, other.vector)
    assert one.labels() == other.labels()
    assert one.scores() == other.scores()


@functools.cache
def plain_run(method: str, mask: str) -> Trace:
    return run(method, mask)


@EACH_OPTION
@METHODS
def test_trains_and_resumes_to_the_same_bits(method: str, option: str, tmp_path: Path) -> None:
    def copy(simulation: Simulation) -> None:
        if simulation.server.round == ROUNDS_BEFORE_THE_BREAK:
            shutil.copytree(tmp_path / "whole", tmp_path / "broken off")

    config, data = make_config(method, **OPTIONS[option]), flawed("cells")
    whole = simulate(config, *data, folder=tmp_path / "whole", before_round=copy)
    assert torch.isfinite(whole.vector).all()
    assert all(math.isfinite(row["train_loss"]) for row in whole.simulation.history)
    assert not torch.equal(whole.vector, plain_run(method, "cells").vector), "it does something"
    config = make_config(method, workers="2", **OPTIONS[option])
    rest = simulate(config, *data, prepare=lambda s: s.resume(tmp_path / "broken off"))
    assert len(rest.sent) == config.rounds - ROUNDS_BEFORE_THE_BREAK
    assert_same(whole, rest)


@pytest.mark.parametrize(("method", "mask"), [("fedavg", "cells"), ("fednml", "classes")])
@EACH_OPTION
def test_hidden_labels_change_nothing(method: str, option: str, mask: str) -> None:
    dataset, scenario = flawed(mask)
    cells = ~scenario.annotated & (scenario.part == TRAIN)[:, None]
    config = make_config(method, **OPTIONS[option])
    one = simulate(config, dataset, scenario)
    other = simulate(config, *flip(dataset, scenario, cells))
    assert_same(one, other)
    assert one.crossed() == other.crossed()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_site_that_annotates_nothing_or_nothing_positive(loss: str) -> None:
    dataset, scenario = flawed("cells")
    mine = [scenario.rows(k) for k in range(2)]
    annotated, noisy = scenario.annotated.copy(), scenario.noisy.copy()
    annotated[mine[0]], noisy[mine[1]] = False, 0
    changed = replace(scenario, noisy=noisy, annotated=annotated)
    options = {"class_weights": "inverse", "consistency": 1.0}
    trace = simulate(make_config("fedavg", loss=loss, **options), dataset, changed)
    assert torch.isfinite(trace.vector).all()


# ---- class weights


@pytest.mark.numerics
@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_class_weights_by_hand(kind: str) -> None:
    """Mean 1 over the annotated cells; nothing to balance where a side is absent."""
    counts = np.array([[10, 50, 0, 30, 0], [100, 100, 40, 30, 0]], np.float32)
    found = balance_factors(counts, kind)

    def size(n: float) -> float:
        return n if kind == "inverse" else (1 - 0.999**n) / 0.001

    negative, positive = 1 / size(90), 1 / size(10)
    scale = 100 / (90 * negative + 10 * positive)
    assert found[:, 0] == pytest.approx([negative * scale, positive * scale], rel=1e-5)
    assert found[:, 1:] == pytest.approx(1)
    if kind == "inverse":
        assert found[:, 0] == pytest.approx([100 / 180, 5])
    many = balance_factors(np.array([[1e5], [1e6]]), "effective")
    assert many == pytest.approx(1), "beyond a thousand of each, no side is rare"


def test_class_counts_are_shared_once_and_counted() -> None:
    plain, balanced = plain_run("fedavg", "cells"), run("fedavg", class_weights="inverse")
    _, scenario = flawed("cells")
    seen = scenario.annotated & (scenario.part == TRAIN)[:, None]
    expected = [(seen & (scenario.noisy == 1)).sum(axis=0), seen.sum(axis=0)]
    for message in balanced.sent:
        np.testing.assert_array_equal(message.extras["class_counts"], expected)
    array = 2 * 4 * 4  # counts of two kinds, classes, bytes of a number
    rows = zip(plain.simulation.history, balanced.simulation.history, strict=True)
    for round, (before, after) in enumerate(rows):
        assert after["bytes_down"] - before["bytes_down"] == 3 * array
        assert after["bytes_up"] - before["bytes_up"] == (3 * array if round == 0 else 0)


def test_class_counts_of_sites_that_are_not_selected_count_too() -> None:
    some, every = (run("fedavg", class_weights="inverse", fraction=f) for f in (0.34, 1.0))
    for one, other in zip(some.sent, every.sent, strict=True):
        np.testing.assert_array_equal(one.extras["class_counts"], other.extras["class_counts"])
    assert len(some.received) == 3


@pytest.mark.numerics
def test_balance_reaches_the_loss_of_a_step() -> None:
    client, _ = make_client(class_weights="inverse")
    client.cache["class_weights"] = np.array([[0.5] * 4, [3.0] * 4], np.float32)
    method = method_class("fedavg")(client.plan)
    logits = torch.linspace(-2, 2, 8).view(2, 4)
    target = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 0.25]])
    batch = Batch(logits, None, np.arange(2), target, torch.ones(2, 4))
    expected = np.mean(
        [
            (3 * t + 0.5 * (1 - t)) * (math.log1p(math.exp(z)) - t * z)
            for z, t in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)
        ]
    )
    assert method.supervised(client, logits, batch).item() == pytest.approx(expected, rel=1e-5)


# ---- one client


def make_client(images: int = 16, **settings: Any) -> tuple[Client, FlatModel]:
    dataset = make_dataset()
    augmenter = Augmenter(*channel_statistics(dataset.images, np.arange(images)))
    labels = LabelState(dataset.labels[:images])
    rest = {"augmenter": augmenter, "plan": make_plan(**settings)}
    client = Client(0, images=dataset.images, rows=np.arange(images), labels=labels, **rest)
    return client, FlatModel(build_module("small", classes=4, weights="none", seed=1))


class Watched(method_class("fedavg")):
    """FedAvg that keeps the batches it sees and the gradients before the step."""

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.batches: list[Batch] = []
        self.gradients: list[torch.Tensor] = []

    def loss(self, client: Any, model: Any, batch: Batch, message: Any) -> torch.Tensor:
        self.batches.append(batch)
        return super().loss(client, model, batch, message)

    def after_backward(self, client: Any, model: Any, message: Any) -> None:
        self.gradients.append(model.gradient.clone())


@pytest.mark.parametrize(
    ("augment", "consistency"), [("none", 0), ("weak", 0), ("strong", 0), ("weak", 1), ("none", 1)]
)
def test_the_views_that_are_asked_for(augment: str, consistency: float) -> None:
    client, flat = make_client(augment=augment, consistency=consistency)
    method = Watched(client.plan)
    client.train(flat, method, Broadcast(0, flat.snapshot()))
    seed = derive_seed(client.plan.seed, "client", 0, 0)
    generator = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(derive_seed(seed, "second view"))
    order = torch.randperm(16, generator=generator).numpy()
    augmenter, images = client._augmenter, make_dataset().images
    for start, batch in zip((0, 8), method.batches, strict=True):
        pixels = torch.from_numpy(images[order[start : start + 8]])
        if augment == "none":
            first = augmenter.plain(pixels)
        else:
            strength = WEAK if augment == "weak" else STRONG
            first = augmenter.view(pixels, generator, strength=strength)
        assert torch.equal(batch.images, first)
        if consistency:
            strong = augmenter.view(pixels, other, strength=STRONG)
            assert torch.equal(batch.second, strong)
        else:
            assert not batch.second.numel()


def make_step(round: int = 0, **settings: Any) -> tuple[Method, Client, FlatModel, Batch]:
    client, flat = make_client(**settings)
    client.round = round
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 6, 3, 16, 16, generator=generator)
    weight = torch.zeros(6, 4)  # nothing is annotated, and all images take part
    batch = Batch(images[0], images[1], np.arange(6), torch.zeros(6, 4), weight)
    return method_class("fedavg")(client.plan), client, flat, batch


@pytest.mark.numerics
def test_consistency_against_its_definition() -> None:
    method, client, flat, batch = make_step(consistency=3.0, rounds=10)
    method.consistency(client, flat, batch).backward()
    found, buffers = flat.gradient.clone(), flat.buffers.clone()
    same = FlatModel(build_module("small", classes=4, weights="none", seed=1))
    assert torch.equal(buffers, same.buffers), "the running statistics are those of the first view"
    target = same.forward(batch.images).sigmoid().detach()
    loss = masked_bce(same.forward(batch.second), target, torch.ones(6, 4))
    (3.0 * math.exp(-5) * loss).backward()
    torch.testing.assert_close(found, same.gradient)
    assert found.any()


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("round", "share"), [(0, math.exp(-5)), (1, math.exp(-20 / 9)), (3, 1), (8, 1)]
)
def test_consistency_is_ramped_over_the_first_rounds(round: int, share: float) -> None:
    values = []
    for time in (round, 9):
        method, client, flat, batch = make_step(time, consistency=3.0, rounds=10)
        values.append(method.consistency(client, flat, batch).item())
    assert values[0] / values[1] == pytest.approx(share, rel=1e-5)


# ---- sample weights


@pytest.mark.parametrize("place", ["cache", "memory"])
def test_an_image_of_weight_zero_is_an_image_without_labels(place: str) -> None:
    """And equal weights are no weights."""

    def trained(weight: np.ndarray | None, hidden: np.ndarray) -> torch.Tensor:
        class Weighing(method_class("fedavg")):
            def before_local(self, client: Any, model: Any, message: Any) -> None:
                if weight is not None:
                    getattr(client, place)["sample_weight"] = weight

        client, flat = make_client()
        observed = np.where(hidden[:, None], np.nan, client.labels.observed)
        client.labels = LabelState(observed)
        return client.train(flat, Weighing(client.plan), Broadcast(0, flat.snapshot())).model

    nobody, some = np.zeros(16, bool), np.arange(16) % 3 == 0
    assert torch.equal(trained((~some).astype(np.float32), nobody), trained(None, some))
    assert torch.equal(trained(np.ones(16), nobody), trained(None, nobody))
    halves = trained(np.where(some, 0.5, 1), nobody)
    assert not torch.equal(halves, trained(None, nobody))


@pytest.mark.parametrize(
    "wrong", [np.ones(15), -np.ones(16), np.full(16, np.nan), np.ones((16, 4))]
)
def test_wrong_sample_weights_are_refused(wrong: np.ndarray) -> None:
    client, flat = make_client()
    client.memory["sample_weight"] = wrong
    with pytest.raises(ValueError, match="sample_weight"):
        client.train(flat, method_class("fedavg")(client.plan), Broadcast(0, flat.snapshot()))


# ---- frozen backbone


def outside_head(flat: FlatModel, vector: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(len(vector), dtype=torch.bool)
    for piece in flat.head_slices:
        mask[piece.start : piece.stop] = False
    return vector[mask]


class Stubborn(Watched):
    """Moves all weights by a gradient of its own, and predicts amid training."""

    def loss(self, client: Any, model: Any, batch: Batch, message: Any) -> torch.Tensor:
        client.predict_batch(model, message.model, batch.images)
        client.predict(model)
        return super().loss(client, model, batch, message)

    def after_backward(self, client: Any, model: Any, message: Any) -> None:
        super().after_backward(client, model, message)
        model.gradient.add_(1)


@pytest.mark.parametrize("consistency", [0, 1])
@pytest.mark.parametrize("kind", [Watched, Stubborn])
def test_a_frozen_backbone_keeps_every_bit(kind: type[Watched], consistency: float) -> None:
    """Weights and BatchNorm statistics, in spite of decay, own gradients and predictions."""
    settings = {"freeze_rounds": 2, "weight_decay": 0.1, "consistency": consistency}
    client, flat = make_client(local_epochs=2, **settings)
    method, start = kind(client.plan), flat.snapshot()
    for round in range(3):
        before = flat.snapshot()
        vector = client.train(flat, method, Broadcast(round, before)).model
        head = flat.head_slices[0].view(vector)
        assert not torch.equal(head, flat.head_slices[0].view(before))
        moved = not torch.equal(outside_head(flat, vector), outside_head(flat, before))
        assert moved == (round == 2)
    steps = len(method.gradients) // 3
    for step, gradient in enumerate(method.gradients):
        rest = outside_head(flat, torch.cat([gradient, torch.zeros(flat.buffers.numel())]))
        assert bool(rest.any()) == (step >= 2 * steps)
    assert not torch.equal(start, flat.snapshot())
    assert all(p.requires_grad for p in flat.module.parameters())
    assert all(module.training for module in flat.module.modules())


@pytest.mark.numerics
def test_a_frozen_backbone_computes_as_in_an_evaluation() -> None:
    """The head learns on the features it is judged on."""
    client, flat = make_client(freeze_rounds=1, augment="none", rounds=1)
    seen = []

    class Looking(method_class("fedavg")):
        def loss(self, client: Any, model: Any, batch: Batch, message: Any) -> torch.Tensor:
            features, _ = model.features(batch.images)
            seen.append((batch.rows, features.detach()))
            return super().loss(client, model, batch, message)

    client.train(flat, Looking(client.plan), Broadcast(0, flat.snapshot()))
    features, _ = client.embed(flat)
    for rows, found in seen:
        expected = torch.from_numpy(features[rows])  # of another batch, so other sums
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_frozen_run_is_thawed() -> None:
    trace = run("fedavg", freeze_rounds=2)
    flat = trace.simulation.model
    sent = [outside_head(flat, message.model) for message in trace.sent]
    torch.testing.assert_close(sent[0], sent[2], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(sent[2], outside_head(flat, trace.vector), rtol=1e-4, atol=1e-5)


# ---- optimisers, learning rates, biases


def test_sgd_and_adamw_differ_and_both_learn() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset)
    runs = {
        kind: simulate(make_config(optimizer=kind, lr=lr, rounds=6), dataset, scenario)
        for kind, lr in (("adamw", 0.01), ("sgd", 0.05))
    }
    assert not torch.equal(runs["adamw"].vector, runs["sgd"].vector)
    for trace in runs.values():
        losses = [row["train_loss"] for row in trace.simulation.history]
        assert losses[-1] < losses[0] - 0.05


def test_the_cosine_slows_the_last_rounds_down() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset)
    found = {}
    for schedule in ("constant", "cosine"):
        trace = simulate(make_config(lr_schedule=schedule, rounds=6), dataset, scenario)
        own = slice(trace.simulation.server.layout.parameters)  # statistics know no rate
        vectors = [message.model[own] for message in trace.sent] + [trace.vector[own]]
        found[schedule] = [float((b - a).norm()) for a, b in pairwise(vectors)]
    assert found["constant"][0] == found["cosine"][0], "the first round has the whole rate"
    assert found["cosine"][-1] < 0.3 * found["constant"][-1]


def test_biases_start_at_the_shared_log_odds() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="classes", noise=0.2)
    trace = simulate(make_config(head_bias="prior"), dataset, scenario)
    bias = trace.simulation.server.layout.bias
    observed = np.where(scenario.client[:, None] >= 0, scenario.observed, np.nan)
    positives, known = np.nansum(observed, axis=0), (~np.isnan(observed)).sum(axis=0)
    expected = np.log((positives + 0.5) / (known - positives + 0.5))
    np.testing.assert_allclose(trace.sent[0].model[bias], expected, rtol=1e-5)
    plain = simulate(make_config(), dataset, scenario)
    assert "class_counts" not in trace.sent[0].extras, "what is asked for once is not sent again"
    rest = torch.ones(len(plain.vector), dtype=torch.bool)
    rest[bias] = False
    assert torch.equal(trace.sent[0].model[rest], plain.sent[0].model[rest])
    counted = trace.simulation.history[0]["bytes_up"] - plain.simulation.history[0]["bytes_up"]
    assert counted == 3 * 2 * 4 * 4, "three sites tell two counts of four classes"
