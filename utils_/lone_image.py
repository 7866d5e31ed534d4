"""Training on a batch of one image, which leaves BatchNorm without a spread to divide by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def spread_from_before(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers that see one value a channel use their running statistics.

    A batch of one image has such layers where the maps have shrunk to one pixel. PyTorch refuses
    them: one value has no variance. Layers that see more are left as they are.
    """
    changed: list[nn.Module] = []

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        values: torch.Tensor = inputs[0]
        if layer.training and values.numel() == values.shape[1]:
            layer.eval()
            changed.append(layer)

    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in changed:
            layer.train()
