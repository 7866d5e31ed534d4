"""``--attack``: clients that misbehave, to see what each aggregator withstands.

The attackers are drawn from the seed, so every method and aggregator faces the same ones.
``label_flip`` turns their annotated labels around before training. With the other attacks they
train honestly and alter the model where the report leaves the client, so it does not matter which
worker trained it:

- ``nan``: every number is NaN, as after a crash.
- ``sign_flip``: the update times ``-scale`` (Li et al., AAAI 2019).
- ``gaussian``: noise in place of the update, ``scale`` times as long (after Blanchard et al.,
  NeurIPS 2017, where its length is fixed).

Only ``nan`` alters BatchNorm statistics. Turned around, they would be negative variances, which the
server refuses anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.client import Client
from utils_.rng import derive, derive_seed
from utils_.scenario import Scenario

if TYPE_CHECKING:
    from src.messages import Broadcast, Report
    from src.methods.base import Method
    from src.models import FlatModel

ATTACKS = ("none", "nan", "sign_flip", "gaussian", "label_flip")


@dataclass(frozen=True)
class Attack:
    """Who misbehaves and how.

    Attributes:
        kind: one of ``ATTACKS``.
        scale: length of a false update in lengths of the true one.
        attackers: numbers of the clients, ascending.
    """

    kind: str = "none"
    scale: float = 1.0
    attackers: tuple[int, ...] = ()

    @classmethod
    def draw(cls, kind: str, *, scale: float, clients: int, attackers: int, seed: int) -> Attack:
        """Draw the attackers; a larger number of them contains those of a smaller one."""
        order = derive(seed, "attackers").permutation(clients)
        chosen = [] if kind == "none" else order[:attackers].tolist()
        return cls(kind, scale, tuple(sorted(chosen)))

    def labels(self, observed: np.ndarray, client: np.ndarray) -> np.ndarray:
        """What the sites train on: (N, C) labels, turned around at those that flip; NaN stays.

        Args:
            client: (N,) the client that holds the image.
        """
        if self.kind != "label_flip":
            return observed
        return np.where(np.isin(client, self.attackers)[:, None], 1 - observed, observed)

    def scenario(self, scenario: Scenario) -> Scenario:
        """The scenario with the labels that the sites train on, for the diagnostics."""
        noisy = self.labels(scenario.noisy, scenario.client)
        return replace(scenario, noisy=np.where(scenario.annotated, noisy, scenario.noisy))

    def client(self, index: int, **site: Any) -> Client:
        """A client that reports what it trained, or one that does not."""
        if index in self.attackers and self.kind != "label_flip":
            return Attacker(index, attack=self.kind, scale=self.scale, **site)
        return Client(index, **site)


class Attacker(Client):
    """A client whose reports are altered.

    Attributes:
        attack: one of ``nan``, ``sign_flip``, ``gaussian``.
        scale: length of the false update in lengths of the true one.
    """

    def __init__(self, index: int, *, attack: str, scale: float, **site: Any) -> None:
        super().__init__(index, **site)
        self.attack, self.scale = attack, scale

    def train(self, model: FlatModel, method: Method, message: Broadcast) -> Report:
        """Train honestly, then report something else."""
        report = super().train(model, method, message)
        seed = derive_seed(self.plan.seed, "attack", self.index, message.round)
        generator = torch.Generator().manual_seed(seed)
        return replace(report, model=self._alter(report.model, message.model, model, generator))

    def _alter(
        self, trained: Tensor, received: Tensor, model: FlatModel, generator: torch.Generator
    ) -> Tensor:
        if self.attack == "nan":
            return torch.full_like(trained, torch.nan)
        own = slice(model.parameter_count)
        update = trained[own] - received[own]
        if self.attack == "gaussian":
            noise = torch.randn(len(update), generator=generator)
            false = noise * (self.scale * update.norm() / noise.norm())
        else:
            false = -self.scale * update
        altered = trained.clone()
        altered[own] = received[own] + false
        return altered
