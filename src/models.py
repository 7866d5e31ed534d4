"""Backbones, and the flat view of a model that makes loading and averaging one vector operation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from src.weights import load_weights
from utils_.augment import Augmenter
from utils_.errors import Diverged, UserError
from utils_.lone_image import spread_from_before
from utils_.pixels import Pixels
from utils_.rng import derive_seed

if TYPE_CHECKING:
    from src.plan import Plan

TORCHVISION = ("resnet18", "resnet34", "resnet50", "densenet121", "efficientnet_b0")
MODELS = ("small", *TORCHVISION)
OPTIMIZERS = ("adamw", "sgd")
PREDICT_BATCH = 256


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu_(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(inner)).add_(self.shortcut(x)))


class SmallNet(nn.Module):
    """A residual net of about 75 thousand parameters that trains on a laptop's processor.

    The head reads the mean and the maximum of each feature map: a lesion covers a few per cent
    of an image, and the mean alone learns it several times more slowly.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(
            ResidualBlock(16, 32, stride=2), ResidualBlock(32, 64, stride=2)
        )
        self.head = nn.Linear(2 * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(self.stem(x))
        logits: Tensor = self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))
        return logits


@dataclass(frozen=True)
class Slice:
    """Where one named tensor lies in the flat vector."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]

    def view(self, vector: Tensor) -> Tensor:
        """The tensor inside ``vector``; convolution kernels lie there in channels-last order."""
        flat = vector[self.start : self.stop]
        if len(self.shape) != 4:
            return flat.view(self.shape)
        out, channels, height, width = self.shape
        return flat.view(out, height, width, channels).permute(0, 3, 1, 2)


class FlatAdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019) on one tensor: torch's fused kernel, bare.

    The same bits as ``torch.optim.AdamW(..., fused=True)``, whose class imports the compiler (some
    seconds, in every process) and spends more on bookkeeping than this kernel takes.
    """

    def __init__(self, parameters: Tensor, *, lr: float, weight_decay: float) -> None:
        if parameters.grad is None:
            raise ValueError("the parameters need room for their gradient")
        self._state: tuple[list[Tensor], ...] = (
            [parameters],
            [parameters.grad],
            [torch.zeros_like(parameters)],  # mean of the gradients
            [torch.zeros_like(parameters)],  # mean of their squares
            [],  # of AMSGrad
            [torch.zeros((), device=parameters.device)],  # steps taken
        )
        self._options: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "amsgrad": False,
            "maximize": False,
            "fused": True,
        }

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradient."""
        parameters, gradients, means, squares, largest, steps = self._state
        adamw(parameters, gradients, means, squares, largest, steps, **self._options)


class FlatSGD:
    """Stochastic gradient descent with momentum on one tensor, as ``torch.optim.SGD``."""

    def __init__(
        self, parameters: Tensor, *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        if parameters.grad is None:
            raise ValueError("the parameters need room for their gradient")
        self._parameters, self._gradient = parameters, parameters.grad
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._velocity = torch.zeros_like(parameters)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradient."""
        self._velocity.mul_(self._momentum).add_(self._gradient)
        self._velocity.add_(self._parameters, alpha=self._weight_decay)
        self._parameters.sub_(self._velocity, alpha=self._lr)


class FlatModel:
    """A module whose float parameters and buffers are views of one vector.

    Attributes:
        module: the network; its tensors share memory with ``vector``.
        vector: (P,) float32, parameters first, then float buffers (BatchNorm statistics).
            Integer buffers are left out: they are never sent or averaged.
        parameters: the first part of ``vector`` as one leaf tensor, for the optimiser.
        gradient: (parameter_count,) its gradient.
        slices: where each named tensor lies.
        pixels: where batches of images come from.
        head: the last linear layer; row c of its weight and bias makes the logit of class c.
    """

    def __init__(self, module: nn.Module, *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.pixels = Pixels(self.device)
        self.module = module.to(self.device)
        named: list[tuple[str, Tensor]] = list(module.named_parameters())
        self.parameter_count = sum(p.numel() for _, p in named)
        named += [(n, b) for n, b in module.named_buffers() if b.is_floating_point()]
        self.slices: list[Slice] = []
        start = 0
        for name, tensor in named:
            self.slices.append(Slice(name, start, start + tensor.numel(), tuple(tensor.shape)))
            start += tensor.numel()
        self.vector = torch.zeros(start, device=self.device)
        self.parameters = self.vector[: self.parameter_count].detach().requires_grad_()
        self.gradient = torch.zeros_like(self.parameters)
        self.parameters.grad = self.gradient
        for piece, (_, tensor) in zip(self.slices, named, strict=True):
            view = piece.view(self.vector)
            view.copy_(tensor.detach())
            tensor.data = view
            if isinstance(tensor, nn.Parameter):
                tensor.grad = piece.view(self.gradient)
        self.head = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
        self._captured = torch.empty(0)
        self.head.register_forward_pre_hook(self._capture)

    def _capture(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._captured = inputs[0]

    @property
    def head_slices(self) -> tuple[Slice, Slice]:
        """Where the head's (C, D) weight and (C,) bias lie in the vector."""
        names = {id(p): n for n, p in self.module.named_parameters()}
        found = {piece.name: piece for piece in self.slices}
        return found[names[id(self.head.weight)]], found[names[id(self.head.bias)]]

    @property
    def buffers(self) -> Tensor:
        """The float buffers as a slice of ``vector``."""
        return self.vector[self.parameter_count :]

    def train(self) -> None:
        """Go to training mode; a walk through all layers is spared where nothing has left it."""
        if not self.module.training:
            self.module.train()

    def load(self, vector: Tensor) -> None:
        """Copy a (P,) vector into the model."""
        self.vector.copy_(vector)

    def snapshot(self) -> Tensor:
        """Return a copy of ``vector`` on the CPU."""
        return self.vector.detach().to("cpu", copy=True)

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """Return ``vector`` as a state dict of contiguous tensors, ready for a file."""
        return {piece.name: piece.view(vector).contiguous() for piece in self.slices}

    def pack(self, state: dict[str, Tensor]) -> Tensor:
        """Inverse of :meth:`unpack`; raises KeyError where a tensor is absent."""
        vector = torch.empty(self.vector.numel())
        for piece in self.slices:
            piece.view(vector).copy_(state[piece.name])
        return vector

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a normalised batch, in bf16 autocast where the device is a GPU."""
        alone = len(images) == 1 and self.module.training
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            with spread_from_before(self.module) if alone else nullcontext():
                logits: Tensor = self.module(images)
            return logits.float()

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features (B, D), the input of the head, and logits (B, C); both float32."""
        logits = self.forward(images)
        features, self._captured = self._captured, torch.empty(0)
        return features.float(), logits

    def predict(self, images: np.ndarray, rows: np.ndarray, *, augmenter: Augmenter) -> np.ndarray:
        """Probabilities of un-augmented images, in evaluation mode.

        Args:
            images: (M, H, W, 3) uint8 array, memory-mapped or not.
            rows: (n,) the images to score.

        Returns:
            (n, C) float32 in [0, 1].

        Raises:
            Diverged: a prediction is not finite.
        """
        return self.embed(images, rows, augmenter=augmenter)[1]

    @torch.no_grad()
    def embed(
        self, images: np.ndarray, rows: np.ndarray, *, augmenter: Augmenter
    ) -> tuple[np.ndarray, np.ndarray]:
        """Penultimate features (n, D) and probabilities (n, C) as :meth:`predict`.

        Raises:
            Diverged: one of them is not finite.
        """
        self.module.eval()
        parts = []
        for start in range(0, len(rows), PREDICT_BATCH):
            batch = self.pixels.batch(images, rows[start : start + PREDICT_BATCH])
            inputs, logits = self.features(augmenter.plain(batch))
            parts.append((inputs, logits.sigmoid()))
        self.train()
        features, probability = (torch.cat(table) for table in zip(*parts, strict=True))
        if not (features.isfinite().all() and probability.isfinite().all()):
            raise Diverged("what the model predicts is not finite")
        return features.cpu().numpy(), probability.cpu().numpy()

    def forward_aside(self, images: Tensor) -> Tensor:
        """Logits of another view; its BatchNorm statistics are used for it and not kept.

        So the running statistics stay those of the first view, the nearest to the plain images of
        an evaluation.
        """
        kept = self.buffers.clone()
        logits = self.forward(images)
        self.buffers.copy_(kept)
        return logits

    def optimizer(self, plan: Plan, round: int) -> FlatAdamW | FlatSGD:
        """The plan's optimiser over the flat parameters, fresh, at the round's learning rate."""
        lr, weight_decay = plan.lr_at(round), plan.weight_decay
        if plan.optimizer == "adamw":
            return FlatAdamW(self.parameters, lr=lr, weight_decay=weight_decay)
        return FlatSGD(self.parameters, lr=lr, momentum=plan.momentum, weight_decay=weight_decay)


@dataclass(frozen=True)
class Predictor:
    """A model and the images it can be shown, without their labels."""

    model: FlatModel
    images: np.ndarray
    augmenter: Augmenter

    def __call__(self, vector: Tensor, rows: np.ndarray) -> np.ndarray:
        """(n, C) probabilities of the chosen images by a (P,) vector, which the model keeps."""
        self.model.load(vector)
        return self.model.predict(self.images, rows, augmenter=self.augmenter)


def build_module(
    name: str,
    *,
    classes: int,
    weights: str,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> nn.Module:
    """Build a backbone with a linear head of ``classes`` logits.

    Args:
        name: one of :data:`MODELS`.
        classes: how many logits.
        weights: ``none``, ``imagenet`` (torchvision only) or a .safetensors/.pt file.
        seed: initial weights depend on it and on nothing else.
        class_names: what the logits mean, so that a file's head is taken only if it means the same;
            None takes any of the right shape.

    Raises:
        UserError: the weights cannot be fetched, read or matched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model", name))
        module: nn.Module
        if name == "small":
            module = SmallNet(classes)
        else:
            module = _torchvision(name, classes, weights == "imagenet")
    if weights == "imagenet" and name == "small":
        raise UserError("--weights imagenet: model 'small' has no such weights; use --weights none")
    if weights not in ("none", "imagenet"):
        load_weights(
            module, Path(weights), classes=class_names, others=lambda: _all_models(classes)
        )
    return module


def _all_models(classes: int) -> dict[str, nn.Module]:
    """Every model without its numbers, to compare shapes."""
    with torch.device("meta"):
        others = {name: _torchvision(name, classes, False) for name in TORCHVISION}
        return {"small": SmallNet(classes), **others}


def _torchvision(name: str, classes: int, pretrained: bool) -> nn.Module:
    import torchvision.models

    try:
        build = getattr(torchvision.models, name)
        module: nn.Module = build(weights="DEFAULT" if pretrained else None)
    except Exception as error:  # no network, a folder that cannot be written, a damaged file
        if not pretrained:
            raise
        raise _imagenet_error(name, error) from error
    place = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    width = module.get_parameter(f"{place}.weight").shape[1]
    parent, _, layer = place.rpartition(".")
    setattr(module.get_submodule(parent), layer, nn.Linear(width, classes))
    return module


def _imagenet_error(name: str, error: Exception) -> UserError:
    import torchvision.models

    url = torchvision.models.get_model_weights(name)["DEFAULT"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if file.exists():
        return UserError(
            f"--weights imagenet: {file} is damaged, perhaps by a download that broke off; "
            "delete it and run again"
        )
    reason = " ".join(str(error).split())[:120]
    return UserError(
        f"--weights imagenet: cannot fetch the weights of {name} ({reason}); "
        f"download {url} by hand and pass it as --weights FILE, or use --weights none"
    )
