"""How much work a round does, counted rather than timed, so that slow code cannot creep in.

Counts are exact where the method fixes them (passes, steps) and upper bounds where only waste would
raise them (vectors as long as the model, copies between host and device).
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import (
    TESTING,
    VALIDATION,
    load,
    make_config,
    make_dataset,
    make_scenario,
    make_simulation,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.models import FlatAdamW
from src.simulation import Simulation
from src.workers import SequentialRunner
from utils_.datasets.base import TEST, VAL

METHODS = ("fedavg", "fednml")
TRAINED, BATCH, EPOCHS = 48, 8, 2  # images of all clients; whole batches for 2, 3 and 6 clients
STEPS = TRAINED // BATCH * EPOCHS

# What is done now. Lower them where the code gets better; a higher one needs a reason.
COPIES_A_CLIENT, COPIES_A_ROUND, ALIVE_AT_ONCE = 11, 2, 8  # tensors as long as the model
# Places of the labels of a batch, draws of the augmentation; and the prior.
MOVES_A_STEP = {"fedavg": 2, "fednml": 3}
MOVES_TO_HOST_A_CLIENT = {"fedavg": 4, "fednml": 6}  # two tell whether a model is finite


class Vectors(TorchDispatchMode):
    """Counts new tensors as long as the model, and how many of them live at once.

    Attributes:
        made: how many came to be.
        peak: the most that were alive together.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._lengths = {model.vector.numel(), model.parameter_count}
        self._alive: dict[int, weakref.finalize] = {}
        self.made = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() in self._lengths:
                owns = tensor.untyped_storage().data_ptr() == tensor.data_ptr()
                if owns and tensor.data_ptr() not in given:
                    self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        self.made += 1
        key = self.made
        self._alive[key] = weakref.finalize(tensor, self._alive.pop, key, None)
        self.peak = max(self.peak, len(self._alive))


@contextmanager
def counted() -> Iterator[Counter]:
    """Count what a round calls: passes, steps, copies of models, moves between devices."""
    counts: Counter = Counter()

    def counting(name: str, owner: Any, attribute: str, when: Callable = lambda *a: True) -> None:
        original = getattr(owner, attribute)

        def call(*args: Any, **options: Any) -> Any:
            counts[name] += when(*args, *options.values())
            return original(*args, **options)

        patch.setattr(owner, attribute, call)

    def note_pass(module: torch.nn.Module, inputs: tuple) -> None:
        if type(module).__name__ == "SmallNet":
            kind = "trained" if module.training else "scored"
            counts[f"{kind} batches"] += 1
            counts[f"{kind} images"] += len(inputs[0])
            modules.add(module)

    def names_a_device(tensor: Any, *given: Any) -> bool:
        return any(isinstance(value, str | torch.device) for value in given)

    modules: set = set()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note_pass)
    with pytest.MonkeyPatch.context() as patch:
        counting("backward passes", torch.Tensor, "backward")
        counting("optimisers", FlatAdamW, "__init__")
        counting("optimisers", torch.optim.Optimizer, "__init__")
        counting("modules built", torch.nn.Module, "__init__")
        counting("state dicts", torch.nn.Module, "state_dict")
        counting("state dicts", torch.nn.Module, "load_state_dict")
        counting("deep copies", copy, "deepcopy")
        counting("images opened", PIL.Image, "open")
        counting("to device", torch.Tensor, "to", names_a_device)
        counting("to host", torch.Tensor, "cpu")
        counting("to host", torch.Tensor, "item")
        counting("to host", torch.Tensor, "tolist")
        counting("to host", torch.Tensor, "__float__")
        try:
            yield counts
        finally:
            hook.remove()
            counts["networks"] = len(modules)


def make_engine(method: str, *, clients: int = 3, epochs: int = EPOCHS) -> Simulation:
    """Every round of FedNML refines and refreshes its labels."""
    config = make_config(
        method, clients=clients, local_epochs=epochs, batch_size=BATCH, warmup_rounds=0, rounds=9
    )
    dataset = make_dataset()
    scenario = make_scenario(dataset, clients=clients, mask="classes")
    client = np.where(np.arange(len(dataset.part)) < TRAINED, np.arange(60) % clients, -1)
    part = np.where(client >= 0, 0, np.where(np.arange(60) < TRAINED + 4, VAL, TEST))
    scenario = type(scenario)(
        part.astype(np.uint8), client.astype(np.int32), scenario.noisy, scenario.annotated, "tiny"
    )
    return make_simulation(config, dataset, scenario)


def train_round(simulation: Simulation) -> None:
    server = simulation.server
    runner = SequentialRunner(simulation.clients, simulation.method, simulation.predictor)
    server.finish_round(runner.run(server.broadcast(), server.select()))


def counts_of(method: str, **settings: Any) -> tuple[Counter, Vectors]:
    """What the second round does; the first may prepare things that last."""
    simulation = make_engine(method, **settings)
    train_round(simulation)
    with counted() as counts, Vectors(simulation.model) as vectors:
        train_round(simulation)
    return counts, vectors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clients", [2, 3, 6])
def test_passes_of_a_round(method: str, clients: int) -> None:
    """One forward and one backward pass a step; FedNML's teacher scores each image once."""
    counts, _ = counts_of(method, clients=clients)
    assert counts["trained batches"] == counts["backward passes"] == STEPS
    assert counts["trained images"] == TRAINED * EPOCHS
    scored = method == "fednml"
    assert counts["scored images"] == TRAINED * scored
    assert counts["scored batches"] == clients * scored


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clients", [2, 6])
def test_one_network_serves_all_clients(method: str, clients: int) -> None:
    counts, _ = counts_of(method, clients=clients)
    assert counts["networks"] == 1
    assert counts["modules built"] == counts["state dicts"] == counts["deep copies"] == 0
    assert counts["optimisers"] == clients


@pytest.mark.parametrize("method", METHODS)
def test_model_copies_depend_on_clients_and_not_on_steps(method: str) -> None:
    """A step works in place. A client costs its report, two moments of AdamW, and the folding."""
    made = {
        (clients, epochs): counts_of(method, clients=clients, epochs=epochs)[1].made
        for clients in (2, 3, 6)
        for epochs in (1, 3)
    }
    for clients in (2, 3, 6):
        assert made[clients, 1] == made[clients, 3]
    per_client = made[3, 1] - made[2, 1]
    assert made[6, 1] - made[3, 1] == 3 * per_client
    assert per_client <= COPIES_A_CLIENT
    assert made[2, 1] - 2 * per_client <= COPIES_A_ROUND


@pytest.mark.parametrize("method", METHODS)
def test_reports_are_folded_as_they_arrive(method: str) -> None:
    """So the vectors that are alive at once do not grow with the clients."""
    few, many = (counts_of(method, clients=clients)[1].peak for clients in (2, 6))
    assert 0 < many <= few + 1
    assert many <= ALIVE_AT_ONCE


@pytest.mark.parametrize("method", METHODS)
def test_copies_between_host_and_device(method: str) -> None:
    """On a GPU each of these costs a transfer, those to the host a wait for all that is queued."""
    moves = {epochs: counts_of(method, epochs=epochs)[0] for epochs in (1, 3)}
    steps = TRAINED // BATCH
    a_step = (moves[3]["to device"] - moves[1]["to device"]) / (2 * steps)
    assert a_step <= MOVES_A_STEP[method]
    assert moves[3]["to host"] == moves[1]["to host"], "a step must not wait for the device"
    at_server = method == "fednml"  # its mean over rounds is kept as an array
    at_server += 1  # whether the new global model is finite
    assert moves[1]["to host"] <= 3 * MOVES_TO_HOST_A_CLIENT[method] + at_server


def test_evaluation_scores_each_image_once_and_only_when_due() -> None:
    simulation = make_engine("fedavg")
    with counted() as counts:
        simulation.evaluator.score(simulation.server.model, VAL)
    assert (counts["scored images"], counts["scored batches"]) == (4, 1)
    with counted() as counts:
        scores = simulation._evaluate(0)  # round 0 of 9: the test set is not due before round 4
    assert counts["scored images"] == 4
    assert list(scores) == [VAL]
    with counted() as counts:
        simulation._evaluate(4)
    assert counts["scored images"] == 4 + 8
    assert counts["backward passes"] == counts["modules built"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_images_are_decoded_once_and_never_in_a_round(
    method: str, csv_data: Path, tmp_path: Path
) -> None:
    options = {"data_dir": csv_data, "image_size": 16, "cache_dir": tmp_path / "cache"}
    with counted() as cold:
        load("csv", quiet=True, **options)
    assert cold["images opened"] == TESTING + VALIDATION + 40
    with counted() as warm:
        dataset = load("csv", quiet=True, **options)
    assert warm["images opened"] == 0
    config = make_config(method, warmup_rounds=0)
    simulation = make_simulation(config, dataset, make_scenario(make_dataset()))
    with counted() as counts:
        train_round(simulation)
    assert counts["trained images"] == 40 and counts["images opened"] == 0


def test_the_counters_see_what_they_count() -> None:
    simulation = make_engine("fedavg")
    model = simulation.model
    with counted() as counts, Vectors(model) as vectors:
        first = model.vector.clone()
        second = model.vector + first
        model.vector.add_(0.0)  # in place, and a view: nothing new
        first.view(-1)
        del second
        third = model.vector.double()
        copy.deepcopy({})
        model.module.state_dict()
        first.to("cpu")
        float(first.sum())
    assert (vectors.made, vectors.peak) == (3, 2)
    assert third.dtype == torch.float64
    assert counts["deep copies"] == 1 and counts["state dicts"] >= 1
    assert counts["to device"] == 1 and counts["to host"] == 1
