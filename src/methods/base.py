"""FedAvg, and the hooks by which every other method differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from src.aggregation import AGGREGATORS
from src.losses import ramp
from src.messages import Arrays
from src.plan import Batch, Plan
from src.supervision import build_loss, two_view_consistency
from utils_.arrays import Expected
from utils_.params import param, parse_params
from utils_.priors import capped_prior, class_counts, class_prior
from utils_.rng import derive

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast, Report
    from src.models import FlatModel
    from src.server import Server

__all__ = ["Arrays", "Method", "SharedPriors", "param", "parse_params"]
CONSISTENCY_RAMP, CONSISTENCY_KAPPA = 0.3, 5.0  # about Laine and Aila's 80 epochs of 300


class Method:
    """FedAvg (McMahan et al., AISTATS 2017): masked BCE at the sites, their weighted mean after it.

    A method keeps no state of its own. What must last lies in ``client.memory`` and
    ``server.memory`` (arrays, checkpointed), what serves one round in ``client.cache``. Random
    draws at a site come from ``client.draw(name)``, at the server from
    ``derive(plan.seed, name, server.round)``.

    These keys are read by the engine, so a method uses them for nothing else. Losses that remember
    keep ``elr_targets`` and ``ll_cp_flips`` in ``client.memory``, ``ll_cp_asked`` in its cache.

    ====================================== ====================================================
    ``client.memory["noise_score"]``       (n,) in [0, 1], how suspect the method finds each
                                           image, NaN without an opinion. The evaluator scores
                                           it; above 0.5 an image counts as flagged.
    ``sample_weight`` in memory or cache   (n,) from 0, multiplies the weights of an image's
                                           labels in every batch; that of the cache comes first.
    ``client.cache["class_weights"]``      (2, C) factors of negatives and positives, set by the
                                           client where ``--class-weights`` asks for them.
    ``client.memory["buffers"]``           a site's own BatchNorm statistics, ``--buffers local``.
    ``extras["class_counts"]``             (2, C), sent where ``--class-weights`` asks for it; kept
                                           in ``server.memory`` under the same name.
    ``extras["annotated_cells"]``          (C,), reported where the aggregator needs it.
    ====================================== ====================================================
    """

    paper: ClassVar[str] = "McMahan et al., AISTATS 2017"
    summary: ClassVar[str] = "weighted mean of locally trained models"
    first_phase: ClassVar[bool] = False  # its own part starts after --warmup-rounds
    second_view: ClassVar[str] = ""  # "weak" or "strong" asks for another view of every batch
    true_labels: ClassVar[bool] = False  # a bound: its sites are given true, complete labels
    exchange: ClassVar[bool] = True  # False in a bound whose sites send and receive nothing
    sees_each: ClassVar[str] = ""  # what the server compares of single sites; empty: it only sums
    # What after_local returns. A report whose arrays are otherwise is left out; of an array that is
    # not named here, one that holds more than finite numbers.
    reported: ClassVar[Mapping[str, Expected]] = {}

    @dataclass(frozen=True)
    class Params:
        """The method's parameters; each field carries its meaning in ``metadata['help']``."""

    def __init__(self, plan: Plan, params: Any = None) -> None:
        self.plan = plan
        self.params = params if params is not None else self.Params()
        self.supervision = build_loss(plan.loss, plan.loss_param)

    @property
    def leak(self) -> str:
        """What is handed to the sites though it is hidden from them, a marked leak: nothing,
        all ``"labels"``, or the ``"flags"`` of images that have a wrong one.
        """
        return ""

    @property
    def report_needs(self) -> tuple[str, ...]:
        """Facts of a site that every report carries, for the aggregator."""
        return AGGREGATORS[self.plan.aggregator].needs

    # ---- what runs at the server before a round

    def extras(self, server: Server) -> Arrays:
        """Arrays sent to the clients beside the model."""
        return {}

    def select(self, server: Server) -> list[int]:
        """Clients of this round, in ascending order."""
        draw = derive(self.plan.seed, "select", server.round)
        chosen = draw.choice(self.plan.clients, self.plan.clients_per_round, replace=False)
        return sorted(chosen.tolist())

    # ---- what runs at a site

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        """Runs once with the received model: relabelling, priors, a teacher's predictions."""

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        """The objective on one batch, a scalar."""
        return self.supervised(client, model.forward(batch.images), batch)

    def supervised(self, client: Client, logits: Tensor, batch: Batch) -> Tensor:
        """The supervised term: the chosen loss on the cells of positive weight, a scalar.

        Call it once a step, with the logits of ``batch.rows``: some losses remember what each
        image was predicted. ``--class-weights`` apply to it and to nothing else.
        """
        balance = None
        if self.plan.class_weights != "none":
            balance = torch.from_numpy(client.cache["class_weights"]).to(logits.device)
        return self.supervision(client, logits, batch, balance=balance)

    def consistency(self, client: Client, model: FlatModel, batch: Batch) -> Tensor:
        """The term of ``--consistency``, added to any method's loss: agreement of two views."""
        end = CONSISTENCY_RAMP * self.plan.rounds
        growth = ramp(client.round, begin=0, end=end, kappa=CONSISTENCY_KAPPA)
        return self.plan.consistency * growth * two_view_consistency(model, batch)

    def after_backward(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        """Runs in every step; may change ``model.gradient`` before the optimiser moves."""

    def after_step(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        """Runs in every step once the optimiser has moved: a teacher that follows the model."""

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        """Arrays reported to the server beside the model."""
        return {}

    # ---- what runs at the server after a round

    def aggregate(self, server: Server, reports: Iterable[Report]) -> Tensor:
        """The next global vector. ``reports`` may be read once, one at a time."""
        return AGGREGATORS[self.plan.aggregator](reports, server.frame)

    def after_round(self, server: Server, reports: list[Report]) -> None:
        """Bookkeeping at the server; the reports' models are gone by now."""

    def evaluated(self, server: Server, clients: Sequence[Client]) -> Tensor:
        """(P,) vector that is scored; or (K, P), one a site, whose metrics are averaged."""
        return server.model


class SharedPriors(Method):
    """FedAvg whose sites share class priors: each tells its counts, the prior of all comes back.

    Counts are of annotated cells alone, as labelled now; a site that does not take part counts
    with its latest report.
    """

    reported: ClassVar = {
        "positives": Expected(("classes",), meaning="positive cells of each class"),
        "annotated": Expected(("classes",), meaning="annotated cells of each class"),
    }

    def prior(self, client: Client, message: Broadcast) -> np.ndarray:
        """(C,) share of positives: own annotated cells, else the other sites', NaN if nobody's."""
        own = class_prior(**class_counts(client.labels))
        return np.where(np.isnan(own), message.extras["prior"], own)

    def share_for_absence(
        self, client: Client, message: Broadcast, *, balanced: bool
    ) -> np.ndarray:
        """(C,) float32 for :func:`utils_.pseudo_labels.absence`: 0.5 unless ``balanced``."""
        share = capped_prior(self.prior(client, message))
        return share if balanced else np.full_like(share, 0.5)

    def extras(self, server: Server) -> Arrays:
        unknown = np.full(self.plan.classes, np.nan, np.float32)
        return {"prior": server.memory.get("prior", unknown)}

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        return class_counts(client.labels)

    def after_round(self, server: Server, reports: list[Report]) -> None:
        shape = (2, self.plan.clients, self.plan.classes)
        counts = server.memory.setdefault("counts", np.zeros(shape, np.float32))
        for report in reports:
            counts[:, report.client] = report.extras["positives"], report.extras["annotated"]
        server.memory["prior"] = class_prior(*counts.sum(axis=1))
