"""No method may see what its sites cannot see: hidden labels, the truth, the test set's labels.

Three ways to look: change what is hidden and compare every bit, fill cells of weight 0 with
garbage, and walk over all objects that training can reach.
"""

from __future__ import annotations

import functools
import gc
import shutil
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    PARAMS,
    VARIANTS,
    Trace,
    call_main,
    command,
    flip,
    make_config,
    make_dataset,
    make_plan,
    make_scenario,
    make_simulation,
    read_table,
    simulate,
    write_table,
)

from src.evaluator import Evaluator
from src.methods import method_class, method_names
from src.methods.base import parse_params
from src.simulation import Simulation
from src.workers import ParallelRunner, SequentialRunner
from utils_.datasets.base import TRAIN, ImageDataset
from utils_.labels import CORRECTED, PSEUDO, LabelState, Oracle
from utils_.scenario import Scenario

NOISE = 0.2
MASKS = pytest.mark.parametrize("mask", ["classes", "cells"])
LEAK = {"hidden_label_leak": True}


def make_method(name: str) -> Any:
    kind = method_class(name)
    return kind(make_plan(), parse_params(kind, PARAMS.get(name, {})))


HONEST = [name for name in method_names() if not make_method(name).true_labels]
EACH_METHOD = pytest.mark.parametrize("method", [*HONEST, *VARIANTS])


def run(method: str, dataset: ImageDataset, scenario: Scenario, **options: Any) -> Trace:
    return simulate(make_config(method, **options), dataset, scenario)


@functools.cache
def flawed(mask: str) -> tuple[ImageDataset, Scenario]:
    dataset = make_dataset()
    return dataset, make_scenario(dataset, mask=mask, noise=NOISE)


@functools.cache
def plain_run(method: str, mask: str) -> Trace:
    """The run that others are compared with."""
    return run(method, *flawed(mask))


def hidden_cells(scenario: Scenario) -> np.ndarray:
    return ~scenario.annotated & (scenario.part == TRAIN)[:, None]


def assert_same(one: Trace, other: Trace) -> None:
    assert torch.equal(one.vector, other.vector)
    assert one.crossed() == other.crossed()
    assert one.labels() == other.labels()
    assert one.scores() == other.scores()


def test_no_method_is_left_out() -> None:
    assert {"fedavg", "fednml"} <= set(HONEST)
    for name in HONEST:
        assert not make_method(name).leak, "a leaky default would escape these tests"


@MASKS
@EACH_METHOD
def test_hidden_labels_change_nothing(method: str, mask: str) -> None:
    dataset, scenario = flawed(mask)
    cells = hidden_cells(scenario)
    assert cells.sum() > 50
    assert_same(plain_run(method, mask), run(method, *flip(dataset, scenario, cells)))


@MASKS
@EACH_METHOD
def test_a_visible_label_changes_the_model(method: str, mask: str) -> None:
    """Without this the test above could pass by looking at nothing."""
    dataset, scenario = flawed(mask)
    cells = np.zeros(dataset.labels.shape, bool)
    cells[tuple(np.argwhere(scenario.annotated & (scenario.part == TRAIN)[:, None])[0])] = True
    other = run(method, *flip(dataset, scenario, cells))
    assert not torch.equal(plain_run(method, mask).vector, other.vector)


@MASKS
@pytest.mark.parametrize("method", ["fednml", "fednml:published"])
def test_fednml_relabels_in_these_tests(method: str, mask: str) -> None:
    """The settings are such that both kinds of change happen."""
    labels = [client.labels for client in plain_run(method, mask).simulation.clients]
    doubted = [(x.status == CORRECTED) | (x.annotated & (x.weight < 1)) for x in labels]
    assert sum(cells.sum() for cells in doubted) > 5
    assert sum((x.status == PSEUDO).sum() for x in labels) > 5


@MASKS
def test_the_marked_leak_is_seen(mask: str) -> None:
    dataset, scenario = flawed(mask)
    changed = flip(dataset, scenario, hidden_cells(scenario))
    one = run("fednml:published", dataset, scenario, param=LEAK)
    other = run("fednml:published", *changed, param=LEAK)
    assert not torch.equal(one.vector, other.vector)
    assert one.result["leaky"] is True
    assert plain_run("fednml:published", mask).result["leaky"] is False


@MASKS
def test_flags_of_the_truth_are_a_marked_leak_and_tell_wrong_images_alone(mask: str) -> None:
    dataset, scenario = flawed(mask)
    plain, flags = plain_run("fednml", mask), {"oracle_flags": True}
    told = run("fednml", dataset, scenario, param=flags)
    assert told.result["leaky"] is True
    assert not torch.equal(told.vector, plain.vector)
    for client in told.simulation.clients:
        rows = scenario.rows(client.index)
        wrong = (scenario.noisy[rows] != dataset.labels[rows]) & client.labels.annotated
        assert client.hidden.tolist() == wrong.any(axis=1).tolist()
    hidden = flip(dataset, scenario, hidden_cells(scenario))
    assert torch.equal(run("fednml", *hidden, param=flags).vector, told.vector)


def test_clean_is_marked_as_a_bound_and_reads_the_truth() -> None:
    dataset, scenario = flawed("cells")
    assert method_class("clean").true_labels
    trace = run("clean", dataset, scenario)
    assert trace.result["bound"] is True
    assert plain_run("fedavg", "cells").result["bound"] is False
    for client in trace.simulation.clients:
        truth = dataset.labels[scenario.rows(client.index)]
        np.testing.assert_array_equal(client.labels.observed, truth)


@EACH_METHOD
def test_labels_of_the_validation_and_test_part_change_no_model(method: str) -> None:
    dataset, scenario = flawed("cells")
    cells = np.zeros(dataset.labels.shape, bool)
    cells[scenario.part != TRAIN] = True
    one, other = plain_run(method, "cells"), run(method, *flip(dataset, scenario, cells))
    assert one.crossed() == other.crossed()
    assert one.labels() == other.labels()
    assert one.scores() != other.scores()


def fill_weightless(labels: LabelState, garbage: float) -> int:
    """Write into every target of weight 0, past the checks; return how many there are."""
    cells = labels._weight == 0
    labels._target[cells] = garbage
    return int(cells.sum())


@pytest.mark.parametrize("garbage", [np.nan, 1e30])
@MASKS
@EACH_METHOD
def test_targets_of_weight_zero_are_never_read(method: str, mask: str, garbage: float) -> None:
    filled = []

    def fill(simulation: Simulation) -> None:
        filled.append(sum(fill_weightless(c.labels, garbage) for c in simulation.clients))

    other = simulate(make_config(method), *flawed(mask), before_round=fill)
    assert filled[0] > 50
    assert_same(plain_run(method, mask), other)


# ---- what can be reached from what trains


def referents(thing: Any) -> list[Any]:
    """What ``thing`` refers to, but for modules, the globals of functions and foreign classes."""
    if isinstance(thing, types.ModuleType):
        return []
    if isinstance(thing, types.FunctionType):
        parts = (thing.__closure__, thing.__defaults__, thing.__kwdefaults__, vars(thing))
        return [part for part in parts if part]
    if isinstance(thing, type):
        own = thing.__module__.split(".")[0] in ("src", "utils_")
        return [*vars(thing).values(), *thing.__bases__] if own else []
    found = gc.get_referents(thing)
    if isinstance(thing, np.ndarray):  # NumPy does not tell the collector of its bases
        found += [thing.base] + (thing.ravel().tolist() if thing.dtype == object else [])
    if isinstance(thing, torch.Tensor):
        found += [thing.grad, thing.grad_fn, thing._base]
    return found


def reachable(roots: Iterable[Any]) -> Iterator[Any]:
    stack, seen, kept = list(roots), set(), []
    while stack:
        thing = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        kept.append(thing)  # so that no id is given twice
        yield thing
        stack.extend(referents(thing))


def leaks(roots: Iterable[Any], dataset: ImageDataset, scenario: Scenario) -> set[str]:
    """Names of the forbidden things that can be reached, or whose memory or content can."""
    secrets = {"true": dataset.labels, "noisy": scenario.noisy, "annotated": scenario.annotated}
    forbidden = (Oracle, Evaluator, Scenario, ImageDataset, Simulation)
    found = set()
    for thing in reachable(roots):
        if isinstance(thing, forbidden):
            found.add(type(thing).__name__)
        if isinstance(thing, torch.Tensor):
            thing = thing.detach().cpu().numpy()
        if not isinstance(thing, np.ndarray):
            continue
        for name, secret in secrets.items():
            if np.may_share_memory(thing, secret):
                found.add(f"memory of {name}")
            if name != "annotated" and holds(thing, secret, scenario):
                found.add(f"content of {name}")
    return found


def holds(array: np.ndarray, secret: np.ndarray, scenario: Scenario) -> bool:
    """Whether the array is a copy of a client's part of the secret, or of the whole."""
    rows = [scenario.rows(k) for k in range(scenario.client.max() + 1)]
    return any(
        array.shape == part.shape and np.array_equal(array, part)
        for part in (secret, *(secret[r] for r in rows))
    )


def roots(simulation: Simulation, runner: Any) -> list[Any]:
    return [*simulation.clients, simulation.server, simulation.method, simulation.model, runner]


@EACH_METHOD
def test_the_truth_is_out_of_reach(method: str) -> None:
    dataset, scenario = flawed("cells")
    simulation = make_simulation(make_config(method), dataset, scenario)
    parts = simulation.clients, simulation.method, simulation.predictor
    assert leaks(roots(simulation, SequentialRunner(*parts)), dataset, scenario) == set()
    parallel = ParallelRunner(*parts, workers=2)
    try:
        assert leaks(roots(simulation, parallel), dataset, scenario) == set()
    finally:
        parallel.close()


# The walk passes by the globals of functions, so what the spy keeps here is out of its own sight.
spied: dict[str, Any] = {}


def spy(self: Any, client: Any, model: Any, message: Any) -> None:
    spied["before_local"](self, client, model, message)
    spied["found"].append(leaks([self, client, model, message], *flawed("cells")))


@EACH_METHOD
def test_the_truth_is_out_of_reach_in_the_midst_of_training(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = method_class(method.partition(":")[0])
    spied.update(before_local=kind.before_local, found=[])
    monkeypatch.setattr(kind, "before_local", spy)
    run(method, *flawed("cells"), rounds=2)
    assert len(spied["found"]) > 3  # some methods leave sites out of some rounds
    assert not any(spied["found"])


@EACH_METHOD
def test_the_truth_is_out_of_reach_after_training(method: str) -> None:
    # Not the server: the test has wrapped two of its methods to record the messages.
    simulation = plain_run(method, "cells").simulation
    left = [*simulation.clients, simulation.method, simulation.model, simulation.server.memory]
    assert leaks(left, *flawed("cells")) == set()


def test_the_walk_finds_what_there_is() -> None:
    dataset, scenario = flawed("cells")
    simulation = make_simulation(make_config(), dataset, scenario)
    found = leaks([simulation], dataset, scenario)
    assert {"Simulation", "ImageDataset", "Evaluator", "Oracle", "memory of true"} <= found

    class Holder:
        __slots__ = ("hold",)

    holder, view = Holder(), scenario.noisy[3:].reshape(-1)
    holder.hold = lambda: view
    simulation.clients[1].memory["x"] = holder
    found = leaks(roots(simulation, None), dataset, scenario)
    assert found == {"memory of noisy", "content of noisy"}


def test_the_walk_finds_the_marked_leak() -> None:
    dataset, scenario = flawed("cells")
    simulation = make_simulation(make_config("fednml:published", param=LEAK), dataset, scenario)
    assert leaks(roots(simulation, None), dataset, scenario) == {"content of noisy"}
    simulation = make_simulation(make_config("clean"), dataset, scenario)
    assert leaks(roots(simulation, None), dataset, scenario) == {"content of true"}


# ---- through the files, as a user would check it


def flip_in_file(data: Path, cells: Iterable[tuple[str, str]]) -> int:
    """Flip the labels of the given (image, class) in train_data.csv; return how many."""
    path, cells = data / "train_data.csv", set(cells)
    header, *rows = read_table(path)
    count = 0
    for row in rows:
        for column, name in enumerate(header):
            if (row[0], name) in cells:
                row[column] = str(1 - int(row[column]))
                count += 1
    write_table(path, [header, *rows])
    return count


def cells_of_clients(run_folder: Path, *, hidden: bool) -> list[tuple[str, str]]:
    """(image, class) of training images whose client does not (or does) annotate the class."""
    header, *clients = read_table(run_folder / "clients.csv")
    name_column = header.index("annotated")
    annotated = {row[header.index("client")]: row[name_column].split(";") for row in clients}
    _, *images = read_table(run_folder / "assignments.csv")
    classes = [f"class{c}" for c in range(4)]
    return [
        (image, name)
        for image, part, client in images
        if part == "train"
        for name in classes
        if (name not in annotated[client]) == hidden
    ]


@pytest.mark.parametrize("method", HONEST)
def test_flipping_hidden_cells_in_the_files_gives_the_same_model_file(
    method: str, csv_data: Path, tmp_path: Path
) -> None:
    data, save = tmp_path / "data", tmp_path / "save"
    shutil.copytree(csv_data, data)

    def model_file(name: str) -> bytes:
        options = command(data, save, name=name, method=method, missing=0.5, rounds=2)
        assert call_main(options) == 0
        return (save / "runs" / name / "model.safetensors").read_bytes()

    before = model_file("before")
    folder = save / "runs" / "before"
    assert flip_in_file(data, cells_of_clients(folder, hidden=True)) > 50
    assert model_file("hidden") == before
    assert flip_in_file(data, cells_of_clients(folder, hidden=False)[:1]) == 1
    assert model_file("visible") != before
    tables = [(save / "runs" / n / "assignments.csv").read_bytes() for n in ("before", "visible")]
    assert tables[0] == tables[1]
