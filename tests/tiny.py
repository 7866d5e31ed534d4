"""A tiny federation for tests: 60 images of 16 pixels, 4 classes, in memory or as files."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from src import main_fednml
from src.config import Config, resolve
from src.messages import Broadcast, Report
from src.plan import Plan
from src.simulation import Simulation, build_model
from utils_ import datasets
from utils_.datasets.base import TEST, TRAIN, VAL, ImageDataset
from utils_.datasets.listing import DataOptions
from utils_.rng import derive
from utils_.scenario import Scenario

ROOT = Path(__file__).resolve().parents[1]
MAIN = ROOT / "src" / "main_fednml.py"
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
TRAINING, VALIDATION, TESTING = 40, 8, 12
# Three clients, three rounds, of which the last two refine: enough for every branch.
SETTINGS: dict[str, Any] = {
    "noise": 0,
    "missing": 0,
    "clients": 3,
    "image_size": 16,
    "rounds": 3,
    "warmup_rounds": 1,
    "local_epochs": 1,
    "batch_size": 8,
    "device": "cpu",
    "workers": "1",
}
# Parameters that make a method do at this size what it does at full size.
PARAMS: dict[str, dict[str, Any]] = {
    "fednml": {"judge_from": 1, "min_noise": 0, "doubted_weight": 1, "mixup_epochs": 0},
    "fednml:published": {"refresh_every": 1, "confident": 0.5},
    "fedmlp": {"negative_rate": 0.5, "positive_rate": 0.5, "upper": 0.51, "lower": 0.49},
    "fedlsm": {"uncertain": 0.3, "confident": 0.4, "ema": 0.5, "high": 0.52, "low": 0.48}
    | {"uncertain_high": 0.51, "uncertain_low": 0.49, "balance": True},
    "fixmatch": {"confident": 0.75},
    "cbafed": {"low": 0.5, "high": 0.52, "residual_every": 1},
    "rscfed": {"groups": 4, "ema": 0.8},
    "rofl": {"drop_rounds": 1},
    "fednoro": {"min_cells": 1, "alpha": 1},
    "fedelc": {"min_cells": 1, "alpha": 1},
    "fedcorr": {"neighbours": 3, "confidence": 0.52, "relabel": 1.0, "clean": 0.0, "alpha": 1}
    | {"preprocessing": 0.34, "finetuning": 0.34},
}
VARIANTS = ("fednml:published",)  # methods whose parameters switch to other code


def make_labels(images: int, classes: int, *, seed: int = 0) -> np.ndarray:
    """(images, classes) float32 of 0 and 1; every class has positives and negatives."""
    labels = (derive(seed, "labels").random((images, classes)) < 0.4).astype(np.float32)
    labels[::7] = np.arange(classes) % 2
    labels[1::7] = 1 - np.arange(classes) % 2
    return labels


def make_images(labels: np.ndarray, *, size: int = 16, seed: int = 0) -> np.ndarray:
    """(N, size, size, 3) uint8: noise, and a bright or dark band for each positive class."""
    images = derive(seed, "images").integers(60, 180, (len(labels), size, size, 3))
    band = size // labels.shape[1]
    for c in range(labels.shape[1]):
        shift = np.where(labels[:, c] > 0, 70, -40)[:, None, None]
        images[:, c * band : (c + 1) * band, :, c % 3] += shift
    return images.clip(0, 255).astype(np.uint8)


def make_dataset(*, classes: int = 4, size: int = 16, seed: int = 0) -> ImageDataset:
    """40 training, 8 validation and 12 test images."""
    counts = (TRAINING, VALIDATION, TESTING)
    labels = make_labels(sum(counts), classes, seed=seed)
    return ImageDataset(
        name="tiny",
        images=make_images(labels, size=size, seed=seed),
        labels=labels,
        classes=tuple(f"class{c}" for c in range(classes)),
        files=tuple(f"image{i}.png" for i in range(sum(counts))),
        part=np.repeat(np.array([TRAIN, VAL, TEST], np.uint8), counts),
        groups=None,
        sites=None,
        image_key="tiny",
        verified=labels,
    )


def make_scenario(
    dataset: ImageDataset,
    *,
    clients: int = 3,
    mask: str = "none",
    noise: float = 0.0,
    seed: int = 0,
) -> Scenario:
    """Deal the training images in turn; ``mask``: none, classes or cells, half of them hidden."""
    client = np.where(dataset.part == TRAIN, np.arange(len(dataset.part)) % clients, -1)
    draw = derive(seed, "scenario")
    flips = (draw.random(dataset.labels.shape) < noise) & (client >= 0)[:, None]
    visible = np.ones(dataset.labels.shape, bool)
    if mask == "cells":
        visible = draw.random(visible.shape) < 0.5
    if mask == "classes":
        # Every client misses half the classes, another half each; client -1 is overwritten below.
        classes = np.arange(visible.shape[1])
        visible = (classes + client[:, None]) % 2 == 0
    visible[client < 0] = True
    noisy = np.where(flips, 1 - dataset.labels, dataset.labels).astype(np.float32)
    return Scenario(dataset.part, client.astype(np.int32), noisy, visible, "tiny")


def flip(dataset: ImageDataset, scenario: Scenario, cells: np.ndarray) -> tuple:
    """The same federation with other true and noisy labels in the given cells."""
    true = np.where(cells, 1 - dataset.labels, dataset.labels)
    noisy = np.where(cells, 1 - scenario.noisy, scenario.noisy)
    return replace(dataset, labels=true, verified=true), replace(scenario, noisy=noisy)


def make_config(method: str = "fedavg", **settings: Any) -> Config:
    """The tiny settings with the given ones on top; ``fednml:published`` sets that parameter."""
    param = PARAMS.get(method, {})
    method, _, switch = method.partition(":")
    param = param | ({switch: True} if switch else {})
    settings["param"] = param | settings.get("param", {})
    return resolve(SETTINGS | {"method": method} | settings)


def load(name: str, **settings: Any) -> ImageDataset:
    """A data set with the defaults of the main job; nothing checks the settings but the loader."""
    practical = {"workers": 1, "quiet": False, "labels_only": False}
    options = {key: settings.pop(key, value) for key, value in practical.items()}
    return datasets.load(name, replace(Config(), **settings).part(DataOptions, **options))


def make_plan(**settings: Any) -> Plan:
    """A plan for three clients and four classes."""
    return make_config(**settings).plan(4)


class NoLog:
    """Takes what a run log takes and keeps nothing."""

    def row(self, scalars: dict) -> None: ...
    def scalars(self, group: str, values: dict, *, step: int) -> None: ...
    def figure(self, tag: str, draw: Any, *, step: int) -> None: ...
    def doubt(self, tag: str, scores: Any, *, step: int) -> None: ...
    def pr_curves(self, *arguments: Any, **options: Any) -> None: ...


@dataclass
class Trace:
    """All that a run did: the simulation afterwards, every message, and its result."""

    simulation: Simulation
    sent: list[Broadcast] = field(default_factory=list)
    received: list[Report] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def vector(self) -> torch.Tensor:
        return self.simulation.server.model

    def crossed(self) -> list[tuple]:
        """Everything that crossed a site's boundary, as bytes."""
        down = [(m.round, _bits(m.model), _extras(m)) for m in self.sent]
        up = [(r.client, r.samples, _bits(r.model), _extras(r), r.logs) for r in self.received]
        return down + up

    def labels(self) -> list[tuple]:
        """Label states and memories of the sites, as bytes; targets only where they count."""
        return [
            (
                _bits(np.where(client.labels.weight > 0, client.labels.target, 0)),
                _bits(client.labels.weight),
                _bits(client.labels.status),
                {name: _bits(array) for name, array in client.memory.items()},
            )
            for client in self.simulation.clients
        ]

    def scores(self) -> list[dict]:
        """The rows of the history without what needs the Oracle or the clock."""
        skip = ("labels_", "seconds")
        return [
            {k: repr(v) for k, v in row.items() if not k.startswith(skip)}
            for row in self.simulation.history
        ]


def _bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _extras(message: Broadcast | Report) -> dict[str, bytes]:
    return {name: _bits(array) for name, array in message.extras.items()}


def make_simulation(config: Config, dataset: ImageDataset, scenario: Scenario) -> Simulation:
    """A simulation before its first round."""
    model = build_model(config, classes=len(dataset.classes))
    return Simulation(config, dataset, scenario, model)


def simulate(
    config: Config,
    dataset: ImageDataset,
    scenario: Scenario,
    *,
    before_round: Callable[[Simulation], None] = lambda simulation: None,
    prepare: Callable[[Simulation], None] = lambda simulation: None,
    folder: Path | None = None,
) -> Trace:
    """Run a whole simulation in this process and record its messages.

    Args:
        before_round: called before each broadcast.
        prepare: called once before the first round.
        folder: where checkpoints go; None writes none.
    """
    simulation = make_simulation(config, dataset, scenario)
    trace, server = Trace(simulation), simulation.server
    broadcast, finish_round = server.broadcast, server.finish_round

    def recorded_broadcast() -> Broadcast:
        before_round(simulation)
        message = broadcast()
        extras = {name: array.copy() for name, array in message.extras.items()}
        trace.sent.append(replace(message, model=message.model.clone(), extras=extras))
        return message

    def recorded(reports: Iterable[Report]) -> Iterator[Report]:
        for report in reports:
            trace.received.append(replace(report, model=report.model.clone()))
            yield report

    server.broadcast = recorded_broadcast
    server.finish_round = lambda reports: finish_round(recorded(reports))
    if folder is None:
        simulation.save = lambda folder: None
    prepare(simulation)
    with tqdm(disable=True) as bar:
        trace.result = simulation.run(folder or Path(), NoLog(), stop=lambda: False, progress=bar)
    return trace


def write_csv_dataset(folder: Path, *, size: int = 16, seed: int = 0) -> Path:
    """The tiny data as PNG files in the csv layout: 48 training and 12 test images."""
    dataset = make_dataset(size=size, seed=seed)
    (folder / "images").mkdir(parents=True)
    for name, pixels in zip(dataset.files, dataset.images, strict=True):
        Image.fromarray(pixels).save(folder / "images" / name)
    first_test = TRAINING + VALIDATION
    for part, rows in (
        ("train", range(first_test)),
        ("test", range(first_test, len(dataset.files))),
    ):
        table = [[dataset.files[r], *dataset.labels[r].astype(int).tolist()] for r in rows]
        write_table(folder / f"{part}_data.csv", [["ID", *dataset.classes], *table])
    return folder


def read_table(path: Path) -> list[list[str]]:
    """The cells of a CSV file, header first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_table(path: Path, rows: Sequence[Sequence]) -> None:
    """Write the cells of a CSV file, header first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def command(data: Path, save: Path, **settings: Any) -> list[str]:
    """The options of a tiny run on files; ``name`` is among the settings."""
    param = PARAMS.get(settings.get("method", "fednml"), {}) | settings.pop("param", {})
    table = SETTINGS | {"dataset": "csv", "data_dir": data, "save_dir": save} | settings
    options = [f"--{key.replace('_', '-')}={value}" for key, value in table.items()]
    return [*options, *(f"--param={k}={v}" for k, v in param.items()), "--quiet"]


def call_main(arguments: Sequence[Any]) -> int:
    """Run the main job in this process and put the signal handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return main_fednml.main([str(argument) for argument in arguments])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_main(arguments: Sequence[Any]) -> forked.Captured:
    """Start the main job as a process of its own, in a session of its own."""
    return forked.start([MAIN, *arguments])
