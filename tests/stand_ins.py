"""What the methods ask of a client and a model, small enough to compute again by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tiny import make_plan

from src.messages import Broadcast
from src.methods import method_class
from src.methods.base import parse_params
from src.plan import Batch
from src.server import Server
from utils_.labels import LabelState
from utils_.rng import derive

N, C, D = 12, 4, 5
WARMUP, ROUNDS = 10, 100
PRIOR = np.array([0.4, 0.3, 0.2, 0.1], np.float32)  # of all sites, as the server tells it


def make_method(name: str, *, warmup: int = WARMUP, **param: Any) -> Any:
    kind = method_class(name)
    return kind(make_plan(rounds=ROUNDS, warmup_rounds=warmup), parse_params(kind, param))


def make_observed(seed: int = 0) -> np.ndarray:
    """Labels of one client: class 3 is annotated nowhere, others have gaps."""
    draw = derive(seed, "observed")
    observed = (draw.random((N, C)) < 0.4).astype(np.float32)
    observed[draw.random((N, C)) < 0.3] = np.nan
    observed[:, 3] = np.nan
    return observed


class TwoLayers:
    """A net on vectors of D numbers: rectified features, then logits; all in one flat vector."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vector = torch.randn(D * D + C * D + C, generator=generator)
        self.parameters = self.vector.detach().requires_grad_()

    def features(self, images: torch.Tensor, vector: Any = None) -> tuple:
        vector = self.parameters if vector is None else vector
        inner, head = vector[: D * D].view(D, D), vector[D * D : -C].view(C, D)
        features = (images @ inner.T).relu()
        return features, features @ head.T + vector[-C:]

    def forward(self, images: torch.Tensor, vector: Any = None) -> torch.Tensor:
        return self.features(images, vector)[1]

    forward_aside = forward  # there are no statistics to keep


@dataclass
class FakeClient:
    """A site whose answers about its whole data come from tables."""

    labels: LabelState
    index: int = 0
    round: int = 0
    memory: dict = field(default_factory=dict)
    cache: dict = field(default_factory=dict)
    logs: dict = field(default_factory=dict)
    predicted: np.ndarray | None = None
    embedded: np.ndarray | None = None
    hidden: np.ndarray | None = None
    teach: Callable[[torch.Tensor], torch.Tensor] | None = None  # answers predict_batch
    asked: list = field(default_factory=list)  # vectors and images of predict_batch

    def draw(self, name: str, *parts: int) -> np.random.Generator:
        return derive(make_plan().seed, name, self.index, self.round, *parts)

    def predict(self, model: Any) -> np.ndarray:
        return self.predicted

    def embed(self, model: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.embedded, self.predicted

    def predict_batch(self, model: Any, vector: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        self.asked.append((vector.clone(), images))
        if self.teach is not None:
            return self.teach(images)
        return model.forward(images, vector).sigmoid().detach()


def make_client(seed: int = 0, **fields: Any) -> FakeClient:
    return FakeClient(LabelState(make_observed(seed)), **fields)


def make_batch(client: FakeClient, rows: list[int], *, seed: int = 0) -> Batch:
    """Both views of some images; targets and weights are those of the client's labels."""
    generator = torch.Generator().manual_seed(seed)
    weak, strong = torch.randn(2, len(rows), D, generator=generator)
    target = np.where(client.labels.weight > 0, client.labels.target, 0)[rows]
    weight = torch.from_numpy(client.labels.weight[rows])
    return Batch(weak, strong, np.array(rows), torch.from_numpy(target), weight)


def message(round: int, **extras: np.ndarray) -> Broadcast:
    """Shared priors are part of it, since many methods use them."""
    return Broadcast(round, TwoLayers().vector.clone(), {"prior": PRIOR} | extras)


def share_of(client: FakeClient, c: int) -> float:
    """Share of positives of a class: the client's own, or what the message says."""
    known = client.labels.observed[:, c]
    known = known[~np.isnan(known)]
    return float(sum(known)) / len(known) if len(known) else float(PRIOR[c])


def make_server(method: Any, *, round: int = 0, size: int = 6) -> Server:
    """A server before the given round, whose model is ``size`` zeros."""
    server = Server(torch.zeros(size), method)
    server.round = round
    return server


def predictions(seed: int) -> np.ndarray:
    """(N, C) with very small, middling and very large ones."""
    return derive(seed, "predicted").beta(0.4, 0.4, (N, C)).astype(np.float32)
