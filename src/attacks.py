"""``--attack``: clients that misbehave, to see what each aggregator withstands.

The attackers are drawn from the seed, so every method and aggregator faces the same ones. What
``--attack-scale`` means is in brackets.

- ``nan``: every number of the model is NaN, as after a crash.
- ``nan_extras``: the model is honest, every array beside it is NaN; one where there is none.
- ``sign_flip``: the update times ``-scale`` (Li et al., AAAI 2019) [lengths of the true update].
- ``gaussian``: noise in place of the update, ``scale`` times as long (after Blanchard et al.,
  NeurIPS 2017, where its length is fixed) [lengths of the true update].
- ``label_flip``: annotated labels are turned around before training.
- ``backdoor``: half of the site's images bear a patch, and their labels name the first class. The
  update is sent ``scale`` times (Bagdasaryan et al., AISTATS 2020) [lengths of the true update].
- ``collude``: all attackers send the same model, the mean of what they have honestly trained less
  ``scale`` of its standard deviations ("a little is enough", Baruch et al., NeurIPS 2019) [standard
  deviations; 1.5 in the paper]. They know each other's models and nobody else's.
- ``free_ride``: the model that was received is sent back (Fraboni et al., AISTATS 2021).

But for labels and patches the attackers train honestly and alter the model where the report leaves
the client, or where those of a round come in (``collude``), so it does not matter which worker
trained it. Only ``nan``, ``collude`` and ``free_ride`` alter BatchNorm statistics. Turned around,
they would be negative variances, which the server refuses anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.client import Client
from utils_.backdoor import POISONED, TARGET, patched
from utils_.rng import derive, derive_seed
from utils_.scenario import Scenario

if TYPE_CHECKING:
    from src.aggregation import Layout
    from src.messages import Arrays, Broadcast, Report
    from src.methods.base import Method
    from src.models import FlatModel

ATTACKS = (
    *("none", "nan", "nan_extras", "sign_flip", "gaussian", "label_flip"),
    *("backdoor", "collude", "free_ride"),
)
ON_LABELS = ("label_flip", "backdoor")  # make labels wrong on purpose
AT_THE_CLIENT = ("nan", "nan_extras", "sign_flip", "gaussian", "backdoor", "free_ride")


@dataclass(frozen=True)
class Attack:
    """Who misbehaves and how.

    Attributes:
        kind: one of ``ATTACKS``.
        scale: length of a false update in lengths of the true one, or in deviations.
        attackers: numbers of the clients, ascending.
        seed: of which images bear a patch.
    """

    kind: str = "none"
    scale: float = 1.0
    attackers: tuple[int, ...] = ()
    seed: int = 0

    @classmethod
    def draw(cls, kind: str, *, scale: float, clients: int, attackers: int, seed: int) -> Attack:
        """Draw the attackers; a larger number of them contains those of a smaller one."""
        order = derive(seed, "attackers").permutation(clients)
        chosen = [] if kind == "none" else order[:attackers].tolist()
        return cls(kind, scale, tuple(sorted(chosen)), seed)

    def labels(self, observed: np.ndarray, client: np.ndarray) -> np.ndarray:
        """What the sites train on: (N, C) labels, of which attackers have changed their own.

        Where an attacker turns labels around, NaN stays.

        Args:
            client: (N,) the client that holds the image.
        """
        if self.kind == "label_flip":
            own = np.isin(client, self.attackers)[:, None]
            return np.where(own, 1 - observed, observed)
        if self.kind == "backdoor":
            observed = observed.copy()
            for attacker in self.attackers:
                rows = np.flatnonzero(client == attacker)
                observed[rows[self._poisoned(attacker, len(rows))], TARGET] = 1
        return observed

    def scenario(self, scenario: Scenario) -> Scenario:
        """The scenario with the labels that the sites train on, for the diagnostics."""
        trained = self.labels(scenario.observed, scenario.client)
        return replace(scenario, noisy=np.where(np.isnan(trained), scenario.noisy, trained))

    def client(self, index: int, **site: Any) -> Client:
        """A client that reports what it trained, or one that does not."""
        if index not in self.attackers or self.kind not in AT_THE_CLIENT:
            return Client(index, **site)
        if self.kind == "backdoor":
            images = np.array(site["images"][site["rows"]])
            bearing = self._poisoned(index, len(images))
            images[bearing] = patched(images[bearing])
            site |= {"images": images, "rows": np.arange(len(images))}
        return Attacker(index, attack=self.kind, scale=self.scale, **site)

    def _poisoned(self, attacker: int, images: int) -> np.ndarray:
        """Which of an attacker's images bear the patch."""
        order = derive(self.seed, "patched images", attacker).permutation(images)
        return np.sort(order[: round(POISONED * images)])

    def together(self, reports: Iterable[Report], layout: Layout) -> Iterator[Report]:
        """The reports of a round, those of colluding attackers last and made alike."""
        if self.kind != "collude":
            yield from reports
            return
        held = []
        for report in reports:
            if report.client in self.attackers:
                held.append(report)
            else:
                yield report
        yield from a_little(held, scale=self.scale, layout=layout)


def a_little(reports: Sequence[Report], *, scale: float, layout: Layout) -> list[Report]:
    """Models moved together, each coordinate by ``scale`` of the attackers' own deviations.

    Statistics are their mean; a lone attacker knows no deviation and stays honest.
    """
    if not reports:
        return []
    models = torch.stack([report.model for report in reports]).double()
    deviation = models.std(dim=0, correction=0)
    deviation[layout.parameters :] = 0
    false = (models.mean(dim=0) - scale * deviation).float()
    return [replace(report, model=false.clone()) for report in reports]


class Attacker(Client):
    """A client whose reports are altered.

    Attributes:
        attack: one of ``AT_THE_CLIENT``.
        scale: length of the false update in lengths of the true one.
    """

    def __init__(self, index: int, *, attack: str, scale: float, **site: Any) -> None:
        super().__init__(index, **site)
        self.attack, self.scale = attack, scale

    def train(self, model: FlatModel, method: Method, message: Broadcast) -> Report:
        """Train honestly, then report something else."""
        report = super().train(model, method, message)
        if self.attack == "nan_extras":
            return replace(report, extras=_spoilt(report.extras))
        return replace(report, model=self._alter(report.model, message, model))

    def _alter(self, trained: Tensor, message: Broadcast, model: FlatModel) -> Tensor:
        if self.attack == "nan":
            return torch.full_like(trained, torch.nan)
        if self.attack == "free_ride":
            return message.model.clone()
        own = slice(model.parameter_count)
        altered, received = trained.clone(), message.model[own]
        altered[own] = received + self._false(trained[own] - received, message.round)
        return altered

    def _false(self, update: Tensor, round: int) -> Tensor:
        """What is sent in place of an update."""
        if self.attack == "gaussian":
            seed = derive_seed(self.plan.seed, "attack", self.index, round)
            noise = torch.randn(len(update), generator=torch.Generator().manual_seed(seed))
            false: Tensor = noise * (self.scale * update.norm() / noise.norm())
            return false
        return update * (self.scale if self.attack == "backdoor" else -self.scale)


def _spoilt(extras: Arrays) -> Arrays:
    """Arrays of the same shapes that hold NaN alone; one where there are none."""
    names: Arrays = extras or {"nothing": np.zeros(1)}
    return {name: np.full(np.shape(array), np.nan, np.float32) for name, array in names.items()}
