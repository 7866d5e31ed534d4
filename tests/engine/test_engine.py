"""The engine: a client's epoch against a bare PyTorch loop, BatchNorm policies, determinism."""

from __future__ import annotations

import copy
import multiprocessing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import float32_tolerance
from tiny import (
    NoLog,
    Trace,
    make_config,
    make_plan,
    make_scenario,
    make_simulation,
    simulate,
)
from tqdm import tqdm

from src import simulation as engine
from src.client import Client, split_batches
from src.interruption import Interrupted
from src.messages import Broadcast
from src.methods import method_class
from src.models import FlatModel, Predictor, build_module
from src.simulation import Simulation
from utils_.augment import STRONG, WEAK, Augmenter, channel_statistics
from utils_.datasets.base import TEST, VAL, ImageDataset
from utils_.labels import LabelState
from utils_.rng import derive_seed

NOISE = 0.2


def flawed_run(dataset: ImageDataset, method: str = "fedavg", **settings: Any) -> Trace:
    scenario = make_scenario(dataset, mask="cells", noise=NOISE)
    return simulate(make_config(method, **settings), dataset, scenario)


# ---- one client against a bare loop


def bare_loop(
    module: torch.nn.Module, dataset: ImageDataset, observed: np.ndarray, *, plan: Any, round: int
) -> float:
    """Train as a reader of the paper would write it; return the mean loss of the steps."""
    augmenter = Augmenter(*channel_statistics(dataset.images, np.arange(len(observed))))
    generator = torch.Generator().manual_seed(derive_seed(plan.seed, "client", 0, round))
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    known = ~torch.isnan(torch.from_numpy(observed))
    losses = []
    module.train()
    for _ in range(plan.local_epochs):
        order = torch.randperm(len(observed), generator=generator)
        for rows in order.split(plan.batch_size):
            pixels = torch.from_numpy(dataset.images[rows.numpy()])
            images = augmenter.view(pixels, generator, strength=WEAK)
            target = torch.from_numpy(observed)[rows]
            chosen = known[rows]
            logits = module(images)[chosen]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses))


@pytest.mark.numerics
@pytest.mark.parametrize("epochs", [1, 2])
def test_local_training_equals_a_bare_loop(epochs: int, dataset: ImageDataset) -> None:
    """Up to a twentieth of each tensor's way: AdamW enlarges the rounding of small gradients."""
    plan = make_plan(clients=1, local_epochs=epochs, seed=3)
    observed = dataset.labels[:24].copy()
    observed[np.random.default_rng(0).random(observed.shape) < 0.4] = np.nan
    module = build_module("small", classes=4, weights="none", seed=1)
    plain = copy.deepcopy(module).to(memory_format=torch.channels_last)
    flat = FlatModel(module)
    start = flat.unpack(flat.snapshot())
    client = make_client(dataset, observed, plan)
    report = client.train(flat, method_class("fedavg")(plan), Broadcast(2, flat.snapshot()))
    loss = bare_loop(plain, dataset, observed, plan=plan, round=2)
    assert report.logs["loss"] == pytest.approx(loss, rel=1e-3)
    assert (report.client, report.samples) == (0, 24)
    trained = flat.unpack(report.model)
    for name, tensor in plain.state_dict().items():
        if tensor.is_floating_point():
            way = (tensor - start[name]).norm()
            assert way > 0, name
            assert (trained[name] - tensor).norm() < way / 20, name


def make_client(dataset: ImageDataset, observed: np.ndarray, plan: Any) -> Client:
    rows = np.arange(len(observed))
    augmenter = Augmenter(*channel_statistics(dataset.images, rows))
    labels = LabelState(observed)
    return Client(
        0, images=dataset.images, rows=rows, labels=labels, augmenter=augmenter, plan=plan
    )


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (5, 4, [5]), (3, 1, [1, 2])],
)
def test_a_last_batch_of_one_joins_the_one_before(
    images: int, size: int, expected: list[int]
) -> None:
    order = np.random.default_rng(0).permutation(images)
    batches = split_batches(order, size)
    assert [len(batch) for batch in batches] == expected
    np.testing.assert_array_equal(np.concatenate(batches), order)


def test_a_method_that_asks_gets_two_views(dataset: ImageDataset) -> None:
    seen = []

    class TwoViews(method_class("fedavg")):
        second_view = "strong"

        def loss(self, client, model, batch, message):
            seen.append(batch)
            return super().loss(client, model, batch, message)

    plan, flat = make_plan(), FlatModel(build_module("small", classes=4, weights="none", seed=1))
    client = make_client(dataset, dataset.labels[:16], plan)
    client.train(flat, TwoViews(plan), Broadcast(0, flat.snapshot()))
    seed = derive_seed(plan.seed, "client", 0, 0)
    generator = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(derive_seed(seed, "second view"))
    order = torch.randperm(16, generator=generator).numpy()
    augmenter = Augmenter(*channel_statistics(dataset.images, np.arange(16)))
    for start, batch in zip((0, 8), seen, strict=True):
        rows = order[start : start + 8]
        np.testing.assert_array_equal(batch.rows, rows)
        pixels = torch.from_numpy(dataset.images[rows])
        assert torch.equal(batch.images, augmenter.view(pixels, generator, strength=WEAK))
        assert torch.equal(batch.second, augmenter.view(pixels, other, strength=STRONG))
        np.testing.assert_array_equal(batch.target, dataset.labels[rows])


def test_training_does_not_touch_the_global_generators(dataset: ImageDataset) -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    flawed_run(dataset, "fednml")
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(np.random.get_state(), numpy_state, strict=True)  # noqa: NPY002
    )


@pytest.mark.numerics
def test_predictions_by_another_vector_leave_the_model_as_it_was(dataset: ImageDataset) -> None:
    plan, flat = make_plan(), FlatModel(build_module("small", classes=4, weights="none", seed=1))
    client = make_client(dataset, dataset.labels[:16], plan)
    own, other = flat.snapshot(), flat.snapshot() + 0.01
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = client.predict_batch(flat, other, images)
    assert torch.equal(flat.vector, own)
    assert flat.module.training
    flat.load(other)
    flat.module.eval()
    assert torch.equal(found, flat.forward(images).sigmoid())


# ---- rounds


@pytest.mark.numerics
def test_the_server_s_model_is_the_weighted_mean_of_the_reports(dataset: ImageDataset) -> None:
    trace = flawed_run(dataset)
    assert [(m.round, len(m.extras)) for m in trace.sent] == [(0, 0), (1, 0), (2, 0)]
    assert [report.client for report in trace.received] == [0, 1, 2] * 3
    assert [report.samples for report in trace.received] == [14, 13, 13] * 3
    later = [*(m.model for m in trace.sent[1:]), trace.vector]
    for round, found in enumerate(later):
        reports = trace.received[3 * round : 3 * round + 3]
        mean = sum(r.samples * r.model.double() for r in reports) / 40
        atol = float32_tolerance(2, mean)
        torch.testing.assert_close(found.double(), mean, rtol=0, atol=atol)


def test_one_client_is_local_training(dataset: ImageDataset) -> None:
    scenario = make_scenario(dataset, clients=1)
    trace = simulate(make_config(clients=1), dataset, scenario)
    plan = make_plan(clients=1)
    flat = FlatModel(build_module("small", classes=4, weights="none", seed=1))
    client = make_client(dataset, dataset.labels[:40], plan)
    vector = flat.snapshot()
    for round in range(3):
        message = Broadcast(round, vector)
        vector = client.train(flat, method_class("fedavg")(plan), message).model
    assert torch.equal(trace.vector, vector)


def test_fednml_that_never_leaves_the_warm_up_is_fedavg(dataset: ImageDataset) -> None:
    fedavg = flawed_run(dataset)
    for warmup in (3, 10):
        fednml = flawed_run(dataset, "fednml", warmup_rounds=warmup, param={"mixup": 0})
        assert torch.equal(fednml.vector, fedavg.vector)
        losses = ([r.logs["loss"] for r in trace.received] for trace in (fednml, fedavg))
        assert next(losses) == next(losses)
    assert not torch.equal(flawed_run(dataset, "fednml").vector, fedavg.vector)


def test_a_share_of_the_clients_takes_part(dataset: ImageDataset) -> None:
    trace = flawed_run(dataset, fraction=0.67, rounds=4)
    chosen = [tuple(r.client for r in trace.received[i : i + 2]) for i in range(0, 8, 2)]
    assert all(pair == tuple(sorted(set(pair))) for pair in chosen)
    assert len(set(chosen)) > 1
    vector = 4 * trace.vector.numel()
    assert [row["bytes_up"] for row in trace.simulation.history] == [2 * vector] * 4
    assert [row["bytes_down"] for row in trace.simulation.history] == [2 * vector] * 4


def test_the_history_has_what_the_table_needs(dataset: ImageDataset) -> None:
    trace = flawed_run(dataset, rounds=8, eval_every=2)
    history = trace.simulation.history
    assert [row["round"] for row in history] == list(range(8))
    tested = [row["round"] for row in history if "test_mAP" in row]
    assert tested == [1, 3, 4, 5, 6, 7]
    assert all(0 <= row["val_mAP"] <= 1 for row in history)
    losses = [r.logs["loss"] for r in trace.received[:3]]
    expected = np.average(losses, weights=[14, 13, 13])
    assert history[0]["train_loss"] == pytest.approx(expected, rel=1e-12)
    last5 = np.mean([row["test_mAP"] for row in history[-5:]])
    assert trace.result["last5"]["mAP"] == pytest.approx(last5, rel=1e-12)
    assert trace.result["last"]["mAP"] == history[-1]["test_mAP"]


def test_the_best_model_is_that_of_the_best_validation_round(dataset: ImageDataset) -> None:
    for seed in range(1, 9):  # which round is the best is up to how a processor rounds
        trace = flawed_run(dataset, rounds=6, lr=0.05, seed=seed)
        best = int(np.argmax([row["val_mAP"] for row in trace.simulation.history]))
        if best < 5:
            break
    assert best < 5, "choose settings where the last round is not the best"
    assert torch.equal(trace.simulation.best, trace.sent[best + 1].model)
    assert trace.result["val_selected"]["round"] == best
    tested = trace.simulation.evaluator.score(trace.sent[best + 1].model, TEST).overall
    assert trace.result["val_selected"]["mAP"] == tested["mAP"]


def test_without_a_validation_part_nothing_is_selected(dataset: ImageDataset) -> None:
    dataset = replace(dataset, part=np.where(dataset.part == VAL, TEST, dataset.part))
    trace = flawed_run(dataset)
    assert trace.result["val_selected"] is None
    assert not any(name.startswith("val_") for name in trace.simulation.history[0])
    assert torch.equal(trace.simulation.best, trace.vector)  # not the untrained model


@pytest.mark.filterwarnings("error")
def test_a_validation_part_without_positives_selects_nothing(dataset: ImageDataset) -> None:
    """Then every val mAP is undefined."""
    labels = dataset.labels.copy()
    labels[dataset.part == VAL] = 0
    trace = flawed_run(replace(dataset, labels=labels, verified=labels))
    assert all(np.isnan(row["val_mAP"]) for row in trace.simulation.history)
    assert trace.result["status"] == "done"
    assert trace.result["val_selected"] is None
    assert torch.equal(trace.simulation.best, trace.vector)


def test_workers_score_too_and_their_memory_counts(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, asked = Predictor.__call__, []  # a worker's own copy of the list is not seen here

    def counted(self: Predictor, vector: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return predict(self, vector, rows)

    monkeypatch.setattr(Predictor, "__call__", counted)
    # the memory of children is known of those that have ended, so none may be left
    monkeypatch.setattr(engine, "peak_rss_mb", lambda: len(multiprocessing.active_children()))
    found = []
    for workers in ("1", "2"):
        asked.clear()
        trace = flawed_run(dataset, workers=workers)
        found.append((trace.scores(), trace.result["last"]))
        assert trace.result["peak_rss_mb"] == 0
        assert bool(asked) == (workers == "1")
        trace.simulation.evaluator.score(trace.vector, TEST)
        assert asked, "after the run this process scores again"
    assert found[0] == found[1]


@pytest.mark.pictures
def test_a_run_draws_four_pictures_at_most(dataset: ImageDataset, tmp_path: Any) -> None:
    simulation = make_simulation(make_config("fedavg", rounds=10), dataset, make_scenario(dataset))
    simulation.evaluator.label_picture = lambda client: "picture"
    drawn = []

    class Pictures(NoLog):
        def figure(self, tag: str, draw: Any, *, step: int) -> None:
            if draw() == "picture":
                drawn.append(step)

    with tqdm(disable=True) as bar:
        simulation.run(tmp_path, Pictures(), stop=lambda: False, progress=bar)
    assert drawn == [2, 5, 8]


def test_stopping_keeps_what_was_done(dataset: ImageDataset, tmp_path: Any) -> None:
    scenario = make_scenario(dataset, mask="cells", noise=NOISE)
    simulation = make_simulation(make_config("fednml", rounds=4), dataset, scenario)
    asked = iter([False, True])

    class Bar:
        def set_postfix(self, values: dict) -> None: ...
        def update(self) -> None: ...

    with pytest.raises(Interrupted):
        simulation.run(tmp_path, NoLog(), stop=lambda: next(asked), progress=Bar())
    assert simulation.server.round == len(simulation.history) == 2
    again = make_simulation(make_config("fednml", rounds=4), dataset, scenario)
    again.resume(tmp_path)
    again.run(tmp_path, NoLog(), stop=lambda: False, progress=Bar())
    whole = flawed_run(dataset, "fednml", rounds=4)
    assert torch.equal(again.server.model, whole.vector)
    assert torch.equal(again.best, whole.simulation.best)
    assert Trace(again).labels() == whole.labels()
    assert Trace(again).scores() == whole.scores()


def test_stopping_in_the_last_round_is_a_finished_run(dataset: ImageDataset, tmp_path: Any) -> None:
    simulation = make_simulation(make_config(rounds=1), dataset, make_scenario(dataset))

    class Bar:
        def set_postfix(self, values: dict) -> None: ...
        def update(self) -> None: ...

    result = simulation.run(tmp_path, NoLog(), stop=lambda: True, progress=Bar())
    assert result["status"] == "done"


# ---- the policies of BatchNorm's statistics


def buffers(simulation: Simulation, vector: torch.Tensor) -> torch.Tensor:
    return vector[simulation.model.parameter_count :]


def received_buffers(dataset: ImageDataset, policy: str, **settings: Any) -> tuple[Trace, list]:
    """A run, and the statistics with which each client started each round."""
    scenario = make_scenario(dataset, mask="cells", noise=NOISE)
    found: list[tuple[int, int, torch.Tensor]] = []

    def spy(simulation: Simulation) -> None:
        def before_local(client: Any, model: FlatModel, message: Broadcast) -> None:
            found.append((message.round, client.index, model.buffers.clone()))

        simulation.method.before_local = before_local

    config = make_config(buffers=policy, **settings)
    return simulate(config, dataset, scenario, prepare=spy), found


@pytest.mark.numerics
def test_average_means_the_statistics_as_it_means_the_weights(dataset: ImageDataset) -> None:
    trace, started = received_buffers(dataset, "average")
    simulation = trace.simulation
    for round, _, given in started:
        assert torch.equal(given, buffers(simulation, trace.sent[round].model))
    mean = sum(r.samples * buffers(simulation, r.model).double() for r in trace.received[-3:]) / 40
    found, atol = buffers(simulation, trace.vector).double(), float32_tolerance(2, mean)
    torch.testing.assert_close(found, mean, rtol=0, atol=atol)
    assert all("buffers" not in client.memory for client in simulation.clients)


def test_server_keeps_the_first_statistics_for_good(dataset: ImageDataset) -> None:
    trace, started = received_buffers(dataset, "server")
    first = buffers(trace.simulation, trace.sent[0].model)
    for _, _, given in started:
        assert torch.equal(given, first)
    for report in trace.received:
        assert torch.equal(buffers(trace.simulation, report.model), first)
    assert torch.equal(buffers(trace.simulation, trace.vector), first)
    first_weights = trace.sent[0].model[: trace.simulation.model.parameter_count]
    assert not torch.equal(trace.received[0].model[: len(first_weights)], first_weights)


def test_local_statistics_stay_with_their_client(dataset: ImageDataset) -> None:
    trace, started = received_buffers(dataset, "local", fraction=0.67, rounds=5)
    simulation, latest, kept = trace.simulation, {}, 0
    reports = iter(trace.received)
    for round, index, given in started:
        expected = latest.get(index, buffers(simulation, trace.sent[round].model))
        kept += index in latest
        assert torch.equal(given, expected)
        latest[index] = buffers(simulation, next(reports).model)
    assert kept >= 5
    for index, expected in latest.items():
        np.testing.assert_array_equal(simulation.clients[index].memory["buffers"], expected)
    assert not torch.equal(latest[0], latest[1])


def test_the_policies_differ_in_the_model(dataset: ImageDataset) -> None:
    vectors = [flawed_run(dataset, buffers=p).vector for p in ("average", "local", "server")]
    assert not any(torch.equal(vectors[i], vectors[j]) for i in range(3) for j in range(i))
