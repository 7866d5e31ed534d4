"""FixMatch under FedAvg: sure predictions on the weak view label the strong view.

Sohn et al., NeurIPS 2020; docs/methods.md 11.

Differences from the paper:

- A cell, not an image, is labelled: a missing cell whose probability on the weak view is sure
  enough becomes a hard label of the strong view.
- An absence is sure relative to the class's share of positives, which the sites share from the
  first round on. Every plain prediction of a rare class is small, and labels made from it would
  all say absent (``balanced=false`` does that).
- ``confident`` is 0.99 here and 0.95 in the paper.
- FedMLP's port takes an image only where all its missing cells are sure (``all_classes`` with
  ``confident`` 0.8, not balanced). Of many missing classes that hardly ever happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.losses import masked_bce
from src.methods.base import Arrays, SharedPriors, param
from utils_.pseudo_labels import absence

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast
    from src.models import FlatModel
    from src.plan import Batch


class FixMatch(SharedPriors):
    """Pseudo-labels between two views."""

    paper = "Sohn et al., NeurIPS 2020"
    summary = "sure predictions on a weak view label missing cells of a strong view"
    second_view = "strong"

    @dataclass(frozen=True)
    class Params:
        """Every constant of the method."""

        confident: float = param(0.99, "a label is used from this probability of it on", 0.5)
        unlabelled: float = param(1.0, "weight of the term on missing cells", 0, 100)
        balanced: bool = param(True, "sure of an absence: relative to the share of positives")
        all_classes: bool = param(False, "use an image only where all missing cells are sure")

    params: Params

    def before_local(self, client: Client, model: FlatModel, message: Broadcast) -> None:
        client.cache["used"] = torch.zeros(2, device=model.device)
        share = self.share_for_absence(client, message, balanced=self.params.balanced)
        client.cache["share"] = torch.from_numpy(share).to(model.device)

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        missing = torch.from_numpy(~client.labels.annotated[batch.rows]).to(batch.images.device)
        weak, strong = model.forward(batch.images), model.forward_aside(batch.second)
        label, sure = self.pseudo_labels(weak.detach().sigmoid(), client.cache["share"], missing)
        used = torch.stack([sure.sum(), missing.sum()]).float()
        client.cache["used"] += used
        # As in the paper the term is divided by all missing cells, not by the chosen ones, so it
        # grows with what is sure.
        unlabelled = masked_bce(strong, label, sure.float()) * used[0] / used[1].clamp_min(1)
        return self.supervised(client, weak, batch) + self.params.unlabelled * unlabelled

    def pseudo_labels(
        self, probability: Tensor, share: Tensor, missing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hard labels (B, C) float32 and the missing cells (B, C) that are sure enough of them."""
        sure = torch.maximum(probability, absence(probability, share)) >= self.params.confident
        if self.params.all_classes:
            sure = (sure | ~missing).all(dim=1, keepdim=True)
        return (probability > 0.5).float(), sure & missing

    def after_local(self, client: Client, model: FlatModel, message: Broadcast) -> Arrays:
        used, missing = client.cache["used"].tolist()
        client.logs["pseudo_share"] = used / max(missing, 1)
        return super().after_local(client, model, message)
