"""Grad-CAM (Selvaraju et al., ICCV 2017): where in an image the evidence for a class lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models import FlatModel
from utils_.augment import Augmenter
from utils_.errors import UserError


def class_maps(
    model: FlatModel, images: np.ndarray, classes: np.ndarray, *, augmenter: Augmenter
) -> np.ndarray:
    """Where each image speaks for a class: the last feature maps, weighted by their gradients.

    Args:
        model: any whose features are maps up to its last pooling.
        images: (n, H, W, 3) uint8; all are held with their features at once.
        classes: (n,) int, the logit of each image.
        augmenter: normalises the images.

    Returns:
        (n, H, W) float32 in [0, 1], the most telling place of each image being 1; all 0 where no
        place speaks for the class.

    Raises:
        UserError: the images are too small to leave maps of more than one pixel.
    """
    batch = augmenter.plain(torch.from_numpy(images).to(model.device))
    with _in_evaluation(model), _last_maps(model.module) as found:
        logits = model.forward(batch)
        if not found:
            raise UserError("--explain: the model's images are too small for maps of places")
        chosen = logits[torch.arange(len(images)), torch.from_numpy(classes)].sum()
        (gradient,) = torch.autograd.grad(chosen, found[-1])
    maps = _weighted(found[-1].detach().float(), gradient.float())
    maps = F.interpolate(maps[:, None], images.shape[1:3], mode="bilinear", align_corners=False)
    top = maps.amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    shares: np.ndarray = (maps / top)[:, 0].cpu().numpy()
    return shares


def _weighted(maps: Tensor, gradient: Tensor) -> Tensor:
    """(B, D, h, w) maps and their gradients to (B, h, w): the positive part of the weighted sum."""
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * maps).sum(dim=1).relu()


@contextmanager
def _in_evaluation(model: FlatModel) -> Iterator[None]:
    model.module.eval()
    try:
        yield
    finally:
        model.train()


@contextmanager
def _last_maps(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the last output of a layer that is a map of more than one pixel."""
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            found[:] = [output]

    hooks = [layer.register_forward_hook(keep) for layer in module.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
