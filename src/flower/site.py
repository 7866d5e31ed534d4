"""A site at its own place: from what the server tells and the node's settings to a Client.

A node is either a part of a simulation (``partition-id``), which builds the very scenario of the
in-process engine and takes its own client of it, or a hospital (``data-dir`` and ``site``), which
reads its own label file as it is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.attacks import Attack
from src.client import Client
from src.config import Config, resolve
from src.flower.own_data import own_labels
from src.job import load_dataset
from src.methods import method_class
from src.methods.base import Method, parse_params
from src.models import FlatModel
from src.simulation import build_clients, build_model, draw_attack
from utils_.augment import Augmenter
from utils_.datasets.base import ImageDataset
from utils_.errors import UserError, nearest
from utils_.scenario import Scenario, ScenarioSettings, build_scenario

# What a node decides for itself: settings of a run, and what only a node has.
LOCAL_FORMS = ("ignore_columns", "label_format", "uncertain", "combine")
LOCAL = ("data_dir", "cache_dir", "device", "skip_bad_images", "allow_duplicates")
NODE_KEYS = ("site", "state_dir", "partition_id", "num_partitions")


@dataclass(frozen=True)
class Node:
    """What a node's ``--node-config`` says.

    Attributes:
        partition: its number in a simulation, None at a hospital.
        partitions: how many there are, -1 if nobody said.
        site: the hospital's name.
        settings: settings of a run that the node decides for itself.
        state: where the site's state is kept, None for a place beside the data.
    """

    partition: int | None
    partitions: int
    site: str
    settings: Mapping[str, Any]
    state: Path | None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Node:
        """Check and sort the keys.

        Raises:
            UserError: an unknown key, or neither a partition nor a hospital.
        """
        told = {key.replace("-", "_"): value for key, value in config.items()}
        known = (*NODE_KEYS, *LOCAL, *LOCAL_FORMS)
        for key in told:
            if key not in known:
                raise UserError(f"--node-config {key}: unknown; {nearest(key, known)}")
        settings = {key: told[key] for key in (*LOCAL, *LOCAL_FORMS) if key in told}
        state = Path(str(told["state_dir"])) if "state_dir" in told else None
        if "partition_id" in told:
            number = int(told["partition_id"])
            return cls(number, int(told.get("num_partitions", -1)), "", settings, state)
        if not told.get("site") or "data_dir" not in told:
            raise UserError(
                "--node-config: give this hospital's name and folder, such as "
                '\'site="north" data-dir="/data"\''
            )
        return cls(None, -1, str(told["site"]), settings, state)

    @property
    def name(self) -> str:
        """What the site is called."""
        return self.site if self.partition is None else f"client {self.partition}"


@dataclass(frozen=True)
class Material:
    """What a node needs for any round, costly to make: its settings, images and model.

    Attributes:
        scenario: of a simulation; None at a hospital.
    """

    config: Config
    dataset: ImageDataset
    scenario: Scenario | None
    model: FlatModel
    method: Method
    attack: Attack
    node: Node

    @property
    def state_folder(self) -> Path:
        """Where the states of the node's sites lie."""
        if self.node.state is not None:
            return self.node.state
        if self.scenario is not None:
            return Path(self.config.save_dir) / "sites"
        return Path(str(self.config.data_dir)) / ".fednml"

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
    scenario, attack = None, Attack()
    if node.partition is None:
        dataset = own_labels(load_dataset(config, quiet=True), classes)
    else:
        dataset = load_dataset(config, quiet=True)
        wanted, attack = config.part(ScenarioSettings), draw_attack(config)
        scenario = build_scenario(dataset, wanted, folder=Path(config.save_dir) / "splits")
    kind = method_class(config.method)
    names = classes or dataset.classes
    method = kind(config.plan(len(names)), parse_params(kind, config.param))
    model = build_model(config, classes=len(names), class_names=names)
    return Material(config, dataset, scenario, model, method, attack, node)


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
