"""The losses of ``--loss``: their parameters, and what some of them remember of each image.

A loss acts in three steps, each of which a class may replace: ``revise`` changes the targets and
weights of a batch, ``values`` gives the losses of its cells, ``reduce`` turns them into a number.
What is remembered lies in ``client.memory`` by the site's own rows, so it is checkpointed and
follows the client to any worker. A pass without gradient only looks, and nothing is remembered of
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from src import losses
from utils_.errors import UserError, nearest
from utils_.params import param, parse_params

if TYPE_CHECKING:
    from src.client import Client
    from src.models import FlatModel
    from src.plan import Batch


@dataclass(frozen=True)
class Cells:
    """The cells of one batch, float32.

    Attributes:
        logits: (B, C).
        target: (B, C) in [0, 1]; 0 where weight is 0.
        weight: (B, C), at least 0.
        rows: (B,) positions in the client's own arrays.
    """

    logits: Tensor
    target: Tensor
    weight: Tensor
    rows: np.ndarray


class Loss:
    """A supervised loss; subclasses say what differs from the mean of :meth:`values`."""

    paper: ClassVar[str]
    summary: ClassVar[str]

    @dataclass(frozen=True)
    class Params:
        """The loss's parameters, set by ``--loss-param``."""

    def __init__(self, params: Any = None) -> None:
        self.params: Any = params if params is not None else self.Params()

    def __call__(
        self, client: Client, logits: Tensor, batch: Batch, *, balance: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            balance: (2, C) factors of negatives and of positives, see ``--class-weights``.
        """
        weight = batch.weight.float()
        target = torch.where(weight > 0, batch.target, 0.0).float()
        cells = self.revise(client, Cells(logits.float(), target, weight, batch.rows))
        values = self.values(client, cells)
        if balance is not None:
            values = values * losses.expected(balance[1], balance[0], cells.target)
        return self.reduce(values, cells.weight)

    def revise(self, client: Client, cells: Cells) -> Cells:
        """The cells with other targets or weights."""
        return cells

    def values(self, client: Client, cells: Cells) -> Tensor:
        """(B, C) losses of the cells; those of weight 0 are not read."""
        return losses.bce(cells.logits, cells.target)

    def reduce(self, values: Tensor, weight: Tensor) -> Tensor:
        """From cells to a scalar."""
        return losses.weighted_mean(values, weight)


class CrossEntropy(Loss):
    """Binary cross-entropy."""

    paper = "the default"
    summary = "binary cross-entropy"


class Focal(Loss):
    """See :func:`src.losses.focal`."""

    paper = "Lin et al., ICCV 2017"
    summary = "cross-entropy that fades for easy cells"

    @dataclass(frozen=True)
    class Params:
        """Published values."""

        gamma: float = param(2.0, "how fast easy cells fade", 0, 10)
        alpha: float = param(0.25, "weight of positives; negatives have 1 - alpha")

    def values(self, client: Client, cells: Cells) -> Tensor:
        params = self.params
        return losses.focal(cells.logits, cells.target, gamma=params.gamma, alpha=params.alpha)


class Asymmetric(Loss):
    """See :func:`src.losses.asymmetric`; a mean where the official code sums."""

    paper = "Ridnik et al., ICCV 2021"
    summary = "focal loss that fades negatives faster and drops easy ones"

    @dataclass(frozen=True)
    class Params:
        """The paper's values; the official code has gamma_positive 1 and detach true."""

        gamma_positive: float = param(0.0, "how fast easy positives fade", 0, 10)
        gamma_negative: float = param(4.0, "how fast easy negatives fade", 0, 10)
        margin: float = param(0.05, "probability below which a negative costs nothing", 0, 0.9)
        detach: bool = param(False, "pass no gradient through the fading factors")

    def values(self, client: Client, cells: Cells) -> Tensor:
        return losses.asymmetric(cells.logits, cells.target, **vars(self.params))


class GeneralisedCrossEntropy(Loss):
    """See :func:`src.losses.generalised_cross_entropy`."""

    paper = "Zhang and Sabuncu, NeurIPS 2018"
    summary = "between cross-entropy and absolute error, robust to wrong labels"

    @dataclass(frozen=True)
    class Params:
        """The published value."""

        q: float = param(0.7, "towards 0 cross-entropy, at 1 absolute error", 1e-3)

    def values(self, client: Client, cells: Cells) -> Tensor:
        return losses.generalised_cross_entropy(cells.logits, cells.target, q=self.params.q)


class SymmetricCrossEntropy(Loss):
    """See :func:`src.losses.symmetric_cross_entropy`."""

    paper = "Wang et al., ICCV 2019"
    summary = "cross-entropy plus its reverse, which wrong labels cannot inflate"

    @dataclass(frozen=True)
    class Params:
        """The paper's values for CIFAR-10; codes that clamp labels at 1e-4 mean log_zero -9.21."""

        alpha: float = param(0.1, "weight of the cross-entropy", 0, 100)
        beta: float = param(1.0, "weight of the reverse cross-entropy", 0, 100)
        log_zero: float = param(-4.0, "what log 0 is taken for", -50, 0)

    def values(self, client: Client, cells: Cells) -> Tensor:
        return losses.symmetric_cross_entropy(cells.logits, cells.target, **vars(self.params))


class EarlyLearning(Loss):
    """ELR: each cell is held to the running mean of its own predictions.

    The binary port keeps the mean of both sides of every cell, as the original keeps one of every
    class, in ``memory["elr_targets"]`` (2, n, C). Cells of weight 0 keep theirs up to date too, so
    that a cell that gets a label later is not held to an old prediction.
    """

    paper = "Liu et al., NeurIPS 2020"
    summary = "cross-entropy held to what was predicted before"

    @dataclass(frozen=True)
    class Params:
        """Published for CIFAR-10; 0.9 with 7 for CIFAR-100, 0.9 with 1 for asymmetric noise."""

        beta: float = param(0.7, "share of the past in the running mean", 0, 0.9999)
        strength: float = param(3.0, "weight of the penalty", 0, 100)

    def values(self, client: Client, cells: Cells) -> Tensor:
        remembered = self._remember(client, cells)
        penalty = losses.early_learning_penalty(cells.logits, remembered)
        strength: float = self.params.strength
        return losses.bce(cells.logits, cells.target) + strength * penalty

    def _remember(self, client: Client, cells: Cells) -> Tensor:
        shape = (2, len(client.labels.observed), cells.logits.shape[1])
        table = client.memory.setdefault("elr_targets", np.zeros(shape, np.float32))
        past = torch.from_numpy(table[:, cells.rows]).to(cells.logits.device)
        if not cells.logits.requires_grad:
            return past
        now = losses.both_sides(cells.logits.detach())
        beta: float = self.params.beta
        mean = beta * past + (1 - beta) * now
        table[:, cells.rows] = mean.cpu().numpy()
        return mean


class PartialCrossEntropy(Loss):
    """See :func:`src.losses.partial_mean`."""

    paper = "Durand et al., CVPR 2019"
    summary = "cross-entropy in which images with few known labels weigh more a label"

    @dataclass(frozen=True)
    class Params:
        """Published: gamma 1 or -1, and five times the weight where a tenth is known."""

        gamma: float = param(1.0, "exponent of the share of known labels", -5, 5)
        tenth: float = param(5.0, "weight where a tenth of the labels is known", 0, 100)

    def reduce(self, values: Tensor, weight: Tensor) -> Tensor:
        return losses.partial_mean(values, weight, **vars(self.params))


class LargeLoss(Loss):
    """Among the negatives of a batch, those of largest loss are taken for false ones.

    The paper assumes every missing label negative and suspects those alone. Here a missing cell
    has weight 0 and no label, so by default the suspects are the cells of positive weight that
    training holds negative (target below 0.5): annotations that may be omissions. ``unobserved``
    restores the paper: missing cells become negatives of weight 1 and the only suspects.

    A round counts as an epoch, the first changes nothing, and the share is one of the cells of
    positive weight. It stops growing after ``epochs``, the length of the published schedule: by
    round 100 half of all cells would be rejected.
    """

    paper = "Kim et al., CVPR 2022"

    @dataclass(frozen=True)
    class Params:
        """Published values of LL-R."""

        delta: float = param(0.5, "percent of the cells that each round adds", 0, 100)
        epochs: int = param(10, "rounds after which the share stays", 1, 1_000_000)
        unobserved: bool = param(False, "suspect missing cells, assumed negative, as published")

    def revise(self, client: Client, cells: Cells) -> Cells:
        suspects = (cells.weight > 0) & (cells.target < 0.5)
        if self.params.unobserved:
            suspects = self._missing(client, cells)
            weight = torch.where(suspects, 1.0, cells.weight)
            cells = replace(cells, weight=weight)  # their targets are 0 already
        return self.modify(client, cells, suspects)

    def _missing(self, client: Client, cells: Cells) -> Tensor:
        annotated = torch.from_numpy(client.labels.annotated[cells.rows])
        return (cells.weight == 0) & ~annotated.to(cells.weight.device)

    def modify(self, client: Client, cells: Cells, suspects: Tensor) -> Cells:
        """The cells with the suspects of largest loss put right."""
        count = self.count(int((cells.weight > 0).sum()), client.round + 1)
        return self.correct(cells, self.worst(cells, suspects, count))

    def count(self, cells: int, epoch: int) -> int:
        """How many cells are false negatives in an epoch, from 1."""
        share: float = (min(epoch, self.params.epochs) - 1) * self.params.delta / 100
        return math.ceil(round(cells * share, 6))  # 5.000000001 is 5

    def worst(self, cells: Cells, suspects: Tensor, count: int) -> Tensor:
        """(B, C) bool: the suspects of largest loss."""
        return losses.largest(losses.bce(cells.logits, cells.target), suspects, count)

    def correct(self, cells: Cells, chosen: Tensor) -> Cells:
        """The cells once the chosen are known to be false negatives."""
        raise NotImplementedError


class LargeLossRejection(LargeLoss):
    """LL-R: leave them out."""

    summary = "negatives of largest loss are left out"

    def correct(self, cells: Cells, chosen: Tensor) -> Cells:
        return replace(cells, weight=torch.where(chosen, 0.0, cells.weight))


class LargeLossTemporary(LargeLoss):
    """LL-Ct: take them for positives in this step."""

    summary = "negatives of largest loss count as positives in that step"

    @dataclass(frozen=True)
    class Params(LargeLoss.Params):
        """Published values of LL-Ct."""

        delta: float = param(0.2, "percent of the cells that each round adds", 0, 100)

    def correct(self, cells: Cells, chosen: Tensor) -> Cells:
        return replace(cells, target=torch.where(chosen, 1 - cells.target, cells.target))


class LargeLossPermanent(LargeLossTemporary):
    """LL-Cp: take them for positives from now on, as ``memory["ll_cp_flips"]`` (n, C) tells.

    Each image is asked once a round, however many local epochs it has. A flip lasts only as long
    as the method holds the cell negative.
    """

    summary = "negatives of largest loss count as positives from then on"

    @dataclass(frozen=True)
    class Params(LargeLoss.Params):
        """Published values of LL-Cp."""

        delta: float = param(0.1, "percent of the cells flipped in a round", 0, 100)
        epochs: int = param(10, "rounds after which nothing more is flipped", 1, 1_000_000)

    def count(self, cells: int, epoch: int) -> int:
        """The same in every epoch but the first and those after the last."""
        share = self.params.delta / 100 if 1 < epoch <= self.params.epochs else 0
        return math.ceil(round(cells * share, 6))

    def modify(self, client: Client, cells: Cells, suspects: Tensor) -> Cells:
        flips = client.memory.setdefault(
            "ll_cp_flips", np.zeros(client.labels.observed.shape, bool)
        )
        asked = client.cache.setdefault("ll_cp_asked", np.zeros(len(flips), bool))
        device, rows = cells.logits.device, cells.rows
        flipped = torch.from_numpy(flips[rows]).to(device) & suspects
        if cells.logits.requires_grad:
            fresh = torch.from_numpy(~asked[rows]).to(device)[:, None]
            count = self.count(int(((cells.weight > 0) & fresh).sum()), client.round + 1)
            flipped |= self.worst(cells, suspects & ~flipped & fresh, count)
            flips[rows] |= flipped.cpu().numpy()
            asked[rows] = True
        return self.correct(cells, flipped)


LOSSES: dict[str, type[Loss]] = {
    "bce": CrossEntropy,
    "focal": Focal,
    "asl": Asymmetric,
    "gce": GeneralisedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "elr": EarlyLearning,
    "partial_bce": PartialCrossEntropy,
    "ll_r": LargeLossRejection,
    "ll_ct": LargeLossTemporary,
    "ll_cp": LargeLossPermanent,
}


def build_loss(name: str, given: dict[str, Any]) -> Loss:
    """The loss of that name with the given parameters.

    Raises:
        UserError: an unknown loss or parameter, or a value that does not fit.
    """
    if name not in LOSSES:
        raise UserError(f"--loss {name}: unknown loss; {nearest(name, LOSSES)}")
    kind = LOSSES[name]
    return kind(parse_params(kind, given, flag="--loss-param", kind="loss"))


def two_view_consistency(model: FlatModel, batch: Batch) -> Tensor:
    """Cross-entropy of the second view to the first view's prediction, over all cells.

    The prediction passes no gradient.
    """
    with torch.no_grad():
        prediction = model.forward_aside(batch.images).sigmoid()
    second = model.forward_aside(batch.second)
    return losses.masked_bce(second, prediction, torch.ones_like(prediction))
