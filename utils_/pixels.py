"""Where batches of images come from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHARE = 0.5  # resident images take at most this share of a GPU's free memory


class Pixels:
    """Hands out batches of images on a device.

    On a GPU with room for them, all images are copied there once and batches are gathered there.
    Otherwise each batch is gathered from the array, which may be memory-mapped, and on a GPU
    travels through pinned memory while earlier work goes on.
    """

    def __init__(self, device: torch.device, *, room: int | None = None) -> None:
        """Prepare for a device.

        Args:
            device: where batches go.
            room: bytes that images may take there. By default none on a CPU, and half of what is
                free on a GPU.
        """
        self._device, self._room = device, room
        self._source: np.ndarray | None = None
        self._resident: Tensor | None = None

    def batch(self, images: np.ndarray, rows: np.ndarray) -> Tensor:
        """The chosen images on the device.

        Args:
            images: (M, H, W, 3) uint8; the same array from one call to the next.
            rows: (n,) int64.

        Returns:
            (n, H, W, 3) uint8.
        """
        if self._source is not images:
            self._source, self._resident = images, self._settle(images)
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self._device, non_blocking=True)]
        batch = torch.from_numpy(images[rows])
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return batch

    def _settle(self, images: np.ndarray) -> Tensor | None:
        if images.nbytes > self._free():
            return None
        return torch.from_numpy(np.array(images)).to(self._device)

    def _free(self) -> float:
        if self._room is not None:
            return self._room
        if self._device.type != "cuda":
            return -1  # the array itself is in memory already, for all processes
        return SHARE * torch.cuda.mem_get_info(self._device)[0]
