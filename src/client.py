"""One site: its images, its labels, and the only epoch loop of the project."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.messages import ANNOTATED_CELLS, CLASS_COUNTS, NO_MODEL, Arrays, Broadcast, Report
from src.plan import Batch, Plan
from utils_.arrays import LARGEST, all_finite
from utils_.augment import AUGMENT, Augmenter
from utils_.errors import Diverged
from utils_.labels import LabelState
from utils_.priors import balance_factors, class_counts
from utils_.rng import derive, derive_seed

if TYPE_CHECKING:
    from src.methods.base import Method
    from src.models import FlatModel

# What an aggregator may need to know of a site beside its model, (C,) each; by name in a report.
SITE_FACTS: dict[str, Callable[[LabelState], np.ndarray]] = {
    ANNOTATED_CELLS: lambda labels: class_counts(labels)["annotated"],
}
NO_VIEW = torch.empty(0)  # the second view of a batch for which none was asked


class Client:
    """A hospital. It holds arrays, never a model: that one is lent for the time of training.

    Attributes:
        index: number of the site, from 0.
        called: what messages call it, ``client 3`` or ``client 3 (north)``.
        labels: its label state.
        round: number of the round it trains or last trained in.
        memory: arrays that last between rounds (checkpointed).
        cache: anything that serves one round.
        logs: scalars of the round for the log.
        hidden: what a method marked as leaky is handed (``Method.leak``), else None: (n, C) labels
            hidden from this site, or (n,) bool, which images have a wrong one.
    """

    def __init__(
        self,
        index: int,
        *,
        images: np.ndarray,
        rows: np.ndarray,
        labels: LabelState,
        augmenter: Augmenter,
        plan: Plan,
        hidden: np.ndarray | None = None,
    ) -> None:
        self.index, self.labels, self.plan, self.hidden = index, labels, plan, hidden
        self.called = f"client {index}"
        self.round = 0
        self.memory: Arrays = {}
        self.cache: dict[str, Any] = {}
        self.logs: dict[str, float] = {}
        self._images, self._rows, self._augmenter = images, rows, augmenter

    def __len__(self) -> int:
        return len(self._rows)

    def introduce(self) -> Report:
        """What the site tells once, before the first round: nothing, or its class counts.

        ``--class-weights`` and ``--head-bias prior`` ask for them.
        """
        extras = {}
        if self.plan.class_weights != "none" or self.plan.head_bias == "prior":
            extras[CLASS_COUNTS] = np.stack([*class_counts(self.labels).values()])
        return Report(self.index, len(self), NO_MODEL, extras)

    def train(self, model: FlatModel, method: Method, message: Broadcast) -> Report:
        """Train the received model on the site's data and report the result.

        A method may weigh whole images: ``sample_weight``, (n,) from 0, in ``cache`` for the
        round or in ``memory`` for good, multiplies the weights of the labels in every batch.

        A site whose training diverges reports NaN, so that it is left out, and keeps the labels and
        the memory that it had before.
        """
        before = {name: array.copy() for name, array in self.state().items()}
        try:
            return self._train(model, method, message)
        except Diverged:
            self.load_state(before)
            nothing = torch.full_like(message.model, torch.nan)
            return Report(self.index, len(self), nothing, logs={"loss": float("nan")})

    def _train(self, model: FlatModel, method: Method, message: Broadcast) -> Report:
        seed = derive_seed(self.plan.seed, "client", self.index, message.round)
        self.round, self.logs, self.cache = message.round, {}, {}
        if self.plan.class_weights != "none":
            counts = message.extras[CLASS_COUNTS]
            self.cache["class_weights"] = balance_factors(counts, self.plan.class_weights)
        with torch.random.fork_rng(devices=_cuda_devices(model)):
            _seed_layers(model, seed)
            self._receive(model, message)
            method.before_local(self, model, message)
            self._epochs(model, method, message, seed)
            if not (all_finite(model.vector, most=LARGEST) and math.isfinite(self.logs["loss"])):
                raise Diverged("the training of the site has diverged")
            extras = method.after_local(self, model, message)
        extras = extras | {name: SITE_FACTS[name](self.labels) for name in method.report_needs}
        self.cache = {}
        vector = self._send(model, message)
        return Report(self.index, len(self), vector, extras, self.logs)

    def draw(self, name: str, *parts: str | int) -> np.random.Generator:
        """A generator for a method's own draws in this round, at this site.

        Args:
            name: what is drawn.
            parts: what else tells draws apart, such as ``batch.step``.
        """
        return derive(self.plan.seed, name, self.index, self.round, *parts)

    def predict(self, model: FlatModel) -> np.ndarray:
        """(n, C) probabilities of the site's own images, un-augmented, in their own order."""
        return model.predict(self._images, self._rows, augmenter=self._augmenter)

    def embed(self, model: FlatModel) -> tuple[np.ndarray, np.ndarray]:
        """Penultimate features (n, D) and probabilities (n, C) of the same images."""
        return model.embed(self._images, self._rows, augmenter=self._augmenter)

    def predict_batch(self, model: FlatModel, vector: Tensor, images: Tensor) -> Tensor:
        """(B, C) probabilities by another vector, such as the received one; ``model`` is kept."""
        own, modes = model.vector.clone(), [(m, m.training) for m in model.module.modules()]
        model.load(vector)
        model.module.eval()
        with torch.no_grad():
            probability = model.forward(images).sigmoid()
        for module, training in modes:
            module.training = training
        model.load(own)
        return probability

    def _epochs(self, model: FlatModel, method: Method, message: Broadcast, seed: int) -> None:
        optimizer = model.optimizer(self.plan, self.round)
        model.train()
        total = torch.zeros((), device=model.device)
        steps = 0
        with frozen_backbone(model, self.round < self.plan.freeze_rounds) as hold:
            for batch in self._batches(model, method, seed):
                model.gradient.zero_()
                loss = self._loss(model, method, batch, message)
                loss.backward()
                method.after_backward(self, model, message)
                optimizer.step()
                hold()
                method.after_step(self, model, message)
                total += loss.detach()
                steps += 1
        self.logs["loss"] = float(total) / max(steps, 1)

    def _loss(self, model: FlatModel, method: Method, batch: Batch, message: Broadcast) -> Tensor:
        loss = method.loss(self, model, batch, message)
        if self.plan.consistency > 0:
            loss = loss + method.consistency(self, model, batch)
        return loss

    def _batches(self, model: FlatModel, method: Method, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        # Its own stream, so that a second view changes neither the first nor the order.
        other = torch.Generator().manual_seed(derive_seed(seed, "second view"))
        known = np.where(self.labels.weight > 0, self.labels.target, 0)
        tables = [torch.from_numpy(t).to(model.device) for t in (known, self._weight())]
        strength = AUGMENT[self.plan.augment]
        kind_of_second = method.second_view or ("strong" if self.plan.consistency > 0 else "")
        step = 0
        for _ in range(self.plan.local_epochs):
            order = torch.randperm(len(self), generator=generator).numpy()
            for rows in split_batches(order, self.plan.batch_size):
                pixels = model.pixels.batch(self._images, self._rows[rows])
                first = self._augmenter.view(pixels, generator, strength=strength)
                second = NO_VIEW
                if kind_of_second:
                    second = self._augmenter.view(pixels, other, strength=AUGMENT[kind_of_second])
                place = torch.from_numpy(rows).to(model.device, non_blocking=True)
                target, weight = (table[place] for table in tables)
                yield Batch(first, second, rows, target, weight, step)
                step += 1

    def _weight(self) -> np.ndarray:
        """(n, C) float32 weights of the labels, times those of the images if a method set any."""
        weight = self.labels.weight.copy()
        image = self.cache.get("sample_weight", self.memory.get("sample_weight"))
        if image is None:
            return weight
        image = np.asarray(image, np.float32)
        if image.shape != (len(self),) or not (np.isfinite(image) & (image >= 0)).all():
            raise ValueError("sample_weight: give one finite number from 0 for each image")
        weight *= image[:, None]
        return weight

    def _receive(self, model: FlatModel, message: Broadcast) -> None:
        model.load(message.model)
        if self.plan.buffers == "local" and "buffers" in self.memory:
            model.buffers.copy_(torch.from_numpy(self.memory["buffers"]))

    def _send(self, model: FlatModel, message: Broadcast) -> Tensor:
        vector = model.snapshot()
        if self.plan.buffers == "local":
            self.memory["buffers"] = vector[model.parameter_count :].numpy().copy()
        if self.plan.buffers == "server":
            vector[model.parameter_count :] = message.model[model.parameter_count :]
        return vector

    def state(self) -> dict[str, np.ndarray]:
        """What must survive between rounds: label state and memory, by name."""
        labels = {f"labels.{name}": array for name, array in self.labels.state().items()}
        return labels | {f"memory.{name}": array for name, array in self.memory.items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Restore what :meth:`state` returned."""
        parts: dict[str, dict[str, np.ndarray]] = {"labels": {}, "memory": {}}
        for name, array in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        self.labels.load_state(parts["labels"])
        self.memory = parts["memory"]


@contextmanager
def frozen_backbone(model: FlatModel, frozen: bool) -> Iterator[Callable[[], None]]:
    """While ``frozen``, only the head learns: call what this yields after each step.

    The backbone computes as in an evaluation and gets no gradient. What it is put back from is
    what acts without one: weight decay, gradients of a method's own, BatchNorm's statistics.
    """
    if not frozen:
        yield lambda: None
        return
    head = {id(parameter) for parameter in model.head.parameters()}
    backbone = [p for p in model.module.parameters() if id(p) not in head]
    kept = model.vector.clone()

    def hold() -> None:
        own = [piece.view(model.vector).clone() for piece in model.head_slices]
        model.load(kept)
        for piece, values in zip(model.head_slices, own, strict=True):
            piece.view(model.vector).copy_(values)
        _evaluate_but_head(model)

    _require_gradient(backbone, False)
    _evaluate_but_head(model)
    try:
        yield hold
    finally:
        _require_gradient(backbone, True)
        model.train()


def _evaluate_but_head(model: FlatModel) -> None:
    model.module.eval()
    model.head.train()


def _require_gradient(parameters: list[torch.nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)


def split_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut ``order`` into batches; a last batch of one image joins the one before it.

    BatchNorm cannot train on a single image where its feature map is a single pixel.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _seed_layers(model: FlatModel, seed: int) -> None:
    """For layers such as dropout, which know no generator.

    Where no GPU is used, ``torch.manual_seed`` would keep a stack trace for each call, for good.
    """
    seeded = torch if model.device.type == "cuda" else torch.default_generator
    seeded.manual_seed(seed)


def _cuda_devices(model: FlatModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
