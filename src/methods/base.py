"""FedAvg, and the hooks by which every other method differs from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from src.aggregation import AGGREGATORS
from src.losses import masked_bce
from utils_.errors import UserError, nearest
from utils_.rng import derive

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.server import Server


@dataclass(frozen=True)
class Plan:
    """What all methods of a comparison share: the schedule and the local optimiser."""

    clients: int
    classes: int
    rounds: int
    warmup_rounds: int
    local_epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    fraction: float
    aggregator: str
    buffers: str
    seed: int

    @property
    def clients_per_round(self) -> int:
        """At least one; the small term is for shares such as 0.29, whose product is 28.99..."""
        return max(1, int(self.fraction * self.clients + 1e-9))


@dataclass(frozen=True)
class Batch:
    """One step's data, on the device.

    Attributes:
        images: (B, 3, H, W) float32, normalised, weakly augmented.
        strong: a second, strongly augmented view of the same images; None unless ``views`` is 2.
        rows: (B,) int64 positions in the client's own arrays (CPU).
        target: (B, C) float32 in [0, 1]; 0 where weight is 0.
        weight: (B, C) float32 in [0, 1].
    """

    images: Tensor
    strong: Tensor | None
    rows: np.ndarray
    target: Tensor
    weight: Tensor


class Method:
    """FedAvg (McMahan et al., AISTATS 2017): masked BCE at the sites, their weighted mean after it.

    A method keeps no state of its own: what must last lies in ``client.memory`` and
    ``server.memory`` (arrays, checkpointed), what serves one round in ``client.cache``.
    """

    paper: ClassVar[str] = "McMahan et al., AISTATS 2017"
    summary: ClassVar[str] = "weighted mean of locally trained models"
    views: ClassVar[int] = 1
    true_labels: ClassVar[bool] = False  # a bound: its sites are given true, complete labels

    @dataclass(frozen=True)
    class Params:
        """The method's parameters; each field carries its meaning in ``metadata['help']``."""

    def __init__(self, plan: Plan, params: Any = None) -> None:
        self.plan = plan
        self.params = params if params is not None else self.Params()

    @property
    def hidden_labels(self) -> bool:
        """Whether the sites must be handed labels that are hidden from them (a marked leak)."""
        return False

    def select(self, server: Server) -> list[int]:
        """Clients of this round, in ascending order."""
        draw = derive(self.plan.seed, "select", server.round)
        chosen = draw.choice(self.plan.clients, self.plan.clients_per_round, replace=False)
        return sorted(chosen.tolist())

    def extras(self, server: Server) -> dict[str, np.ndarray]:
        """Arrays sent to the clients beside the model."""
        return {}

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        """Runs once with the received model: relabelling, priors, a teacher's predictions."""

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        """The objective on one batch, a scalar."""
        return self.supervised(client, model.forward(batch.images), batch)

    def supervised(self, client: Client, logits: Tensor, batch: Batch) -> Tensor:
        """The supervised term: the chosen loss on the cells of positive weight, a scalar."""
        return masked_bce(logits, batch.target, batch.weight)

    def after_backward(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        """Change ``model.gradient`` before the step."""

    def after_local(
        self, client: Client, model: FlatModel, message: Broadcast
    ) -> dict[str, np.ndarray]:
        """Arrays reported to the server beside the model."""
        return {}

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        """The next global vector. ``reports`` may be read once, one at a time."""
        return AGGREGATORS[self.plan.aggregator](reports)

    def after_round(self, server: Server, reports: list[Report]) -> None:
        """Bookkeeping at the server; the reports' models are gone by now."""


def param(default: float | bool, help: str, low: float = 0.0, high: float = 1.0) -> Any:
    """A parameter of a method: default, meaning and closed range."""
    return field(default=default, metadata={"help": help, "range": (low, high)})


def parse_params(method: type[Method], given: dict[str, Any]) -> Any:
    """Build the method's ``Params`` from key=value pairs, checked by the fields' types and ranges.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of range.
    """
    known = {entry.name: entry for entry in fields(method.Params)}
    params = method.Params()
    for key, value in given.items():
        if key not in known:
            hint = nearest(key, known) if known else "it has none"
            raise UserError(f"--param {key}: unknown parameter of this method; {hint}")
        params = replace(params, **{key: _convert(known[key], value)})
    return params


def _convert(entry: Any, value: Any) -> Any:
    kind = {"bool": bool, "int": int, "float": float}[str(entry.type)]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {bool: isinstance(value, bool), int: number and float(value).is_integer(), float: number}
    if not fits[kind]:
        raise UserError(f"--param {entry.name}={value}: give a value of type {entry.type}")
    low, high = entry.metadata.get("range", (-np.inf, np.inf))
    if kind is not bool and not low <= value <= high:
        raise UserError(f"--param {entry.name}={value}: give a number from {low:g} to {high:g}")
    return kind(value)
