"""A site at its own place: from what the server tells and the node's settings to a Client.

A node is either a part of a simulation (``partition-id``), which builds the very scenario of the
in-process engine and takes its own client of it, or a hospital (``data-dir`` and ``site``), which
reads its own label file as it is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.attacks import Attack
from src.client import Client
from src.config import Config, resolve
from src.flower.node import Node
from src.flower.own_data import own_held_out, own_labels
from src.job import load_dataset
from src.methods import method_class
from src.methods.base import Method, parse_params
from src.models import FlatModel
from src.simulation import build_clients, build_model, draw_attack
from utils_.augment import Augmenter
from utils_.datasets.base import ImageDataset
from utils_.scenario import Scenario, ScenarioSettings, build_scenario


@dataclass(frozen=True)
class Material:
    """What a node needs for any round, costly to make: its settings, images and model.

    Attributes:
        scenario: of a simulation; None at a hospital.
        held_out: a hospital's own images to evaluate on, by part.
    """

    config: Config
    dataset: ImageDataset
    scenario: Scenario | None
    model: FlatModel
    method: Method
    attack: Attack
    node: Node
    held_out: Mapping[int, ImageDataset] = field(default_factory=dict)

    @property
    def state_folder(self) -> Path:
        """Where the states of the node's sites lie."""
        return self.node.state_root(self.config.save_dir)

    def client(self, index: int, statistics: tuple[torch.Tensor, torch.Tensor]) -> Client:
        """The site's client, with labels as its annotators wrote them.

        Args:
            index: its number in the run.
            statistics: mean and deviation of each channel, of all sites.
        """
        scenario = self.scenario or self._own_scenario(index)
        (client,) = build_clients(
            self.dataset,
            scenario,
            self.method,
            Augmenter(*statistics),
            attack=self.attack,
            only=[index],
        )
        client.called = f"client {index} ({self.node.name})" if self.node.site else self.node.name
        return client

    def _own_scenario(self, index: int) -> Scenario:
        labels = self.dataset.labels
        part = np.zeros(len(labels), np.uint8)
        holder = np.full(len(labels), index, np.int32)
        soft = self.dataset.uncertain
        soft = np.zeros(labels.shape, bool) if soft is None else soft
        return Scenario(part, holder, labels, ~np.isnan(labels), self.node.site, soft=soft)


def material(told: str, classes: tuple[str, ...], node: Node) -> Material:
    """What a node needs, kept for the next message to this process.

    Args:
        told: the run's settings as the server sends them, JSON.
        classes: of the run, in their order; none in a simulation.
    """
    shared = replace(node, partition=None if node.partition is None else 0)
    text = json.dumps([*map(str, (shared.partition, node.partitions, node.site))])
    return _material(told, classes, _Keyed(shared, text + repr(sorted(node.settings.items()))))


@dataclass(frozen=True)
class _Keyed:
    """A node that a cache can compare."""

    node: Node
    key: str

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and self.key == other.key


@functools.lru_cache(maxsize=2)
def _material(told: str, classes: tuple[str, ...], keyed: _Keyed) -> Material:
    node = keyed.node
    torch.set_num_threads(1)  # as in src/simulation.py: results must not depend on the cores
    config = site_config(json.loads(told), node)
    scenario, attack, held_out = None, Attack(), {}
    dataset = load_dataset(config, quiet=True)
    if node.partition is None:
        dataset, held_out = own_labels(dataset, classes), own_held_out(dataset, classes)
    else:
        wanted, attack = config.part(ScenarioSettings), draw_attack(config)
        scenario = build_scenario(dataset, wanted, folder=Path(config.save_dir) / "splits")
    kind = method_class(config.method)
    names = classes or dataset.classes
    method = kind(config.plan(len(names)), parse_params(kind, config.param))
    model = build_model(config, classes=len(names), class_names=names)
    return Material(config, dataset, scenario, model, method, attack, node, held_out)


def site_config(told: Mapping[str, Any], node: Node) -> Config:
    """The run's settings as they hold at a node; what is the node's own is not the server's.

    Raises:
        UserError: the server's settings, or the node's, are none.
    """
    own: dict[str, Any] = {"weights": "none", "workers": "1", "name": None, "device": "auto"}
    if node.partition is None:
        own |= {"dataset": "csv", "classes": None, "split": "iid"}
        own |= dict.fromkeys(("cache_dir", "split_file"))
        own |= {"ignore_columns": None, "label_format": "auto", "uncertain": None, "combine": None}
        own |= {"skip_bad_images": False, "allow_duplicates": False, "save_dir": "save"}
    return resolve(dict(told) | own | dict(node.settings))
