"""Augmentation of whole batches: a random transform for every image, and MixUp of two images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)
CHUNK = 64  # images whose statistics are taken at once; more would only take more memory


@dataclass(frozen=True)
class Strength:
    """Half-widths of the uniform draws. Images are also flipped left to right, half of them.

    Attributes:
        rotation, shear: degrees.
        translation: share of the image side.
        scale, brightness, contrast, saturation: of factors around 1.
        vertical_flip: whether half of the images are flipped upside down, too.
        hue: share of a full turn.
        warped: chance of an image to be rotated, moved, scaled and sheared at all.
        coloured: chance of an image to have its colours changed at all.
    """

    rotation: float
    translation: float
    scale: float = 0.0
    shear: float = 0.0
    vertical_flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    warped: float = 1.0
    coloured: float = 1.0


# FedNML's weak view (docs/methods.md 1.1).
WEAK = Strength(rotation=10, translation=0.02)
# FedLSM's view (docs/methods.md 5) with the chances of its release, but without its blur and noise,
# which on images of this size would hide what the release, at 320 pixels, shows.
STRONG = Strength(
    15, 0.1, scale=0.1, vertical_flip=True, brightness=0.2, warped=0.85, coloured=0.75
)
# FedNML's strong view (docs/methods.md 1.1); its two rotations are drawn as one. It turns hues by
# up to 72 degrees: a fundus becomes green, and FedAvg learns next to nothing from it.
PUBLISHED = Strength(50, 0.1, 0.2, 10, True, 0.5, 0.5, 0.5, 0.2)
AUGMENT = {"none": None, "weak": WEAK, "strong": STRONG, "published": PUBLISHED}


class Augmenter:
    """Turns uint8 batches into normalised float batches, plain or augmented."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """Take the channel statistics of images scaled to [0, 1], each (3,)."""
        self.mean, self.std = mean, std
        self._repeated: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def plain(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) normalised float32 in channels-last memory."""
        return self._normalise(images.permute(0, 3, 1, 2).float().div_(255))

    def view(
        self, images: Tensor, generator: torch.Generator, *, strength: Strength | None
    ) -> Tensor:
        """Augment a (B, H, W, 3) uint8 batch; the draws come from ``generator`` (CPU).

        A strength of None draws nothing and gives the plain images.
        """
        if strength is None:
            return self.plain(images)
        draws = torch.rand(len(images), 12, generator=generator)
        draws = draws.to(images.device, non_blocking=True)
        batch = images.permute(0, 3, 1, 2).float().div_(255)
        if any((strength.brightness, strength.contrast, strength.saturation, strength.hue)):
            changes = draws[:, 8:]
            if strength.coloured < 1:  # the middle of a draw's range changes nothing
                chance = torch.rand(len(images), 1, generator=generator).to(images.device)
                changes = torch.where(chance < strength.coloured, changes, 0.5)
            batch = jitter_colour(batch, changes, strength)
        # Normalised before the warp: the border mode repeats edge pixels, so no colour is added.
        return warp(self._normalise(batch), draws[:, :8], strength)

    def _normalise(self, batch: Tensor) -> Tensor:
        """Normalise in place, whole pixel rows at a time: a loop over three channels is slow."""
        mean, std = self._statistics(batch.device, batch.shape[3])
        rows = batch.permute(0, 2, 3, 1).view(len(batch), batch.shape[2], -1)  # of channels-last
        rows.sub_(mean).div_(std)
        return batch

    def _statistics(self, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each number in a pixel row, (3 W,), on the device."""
        if (device, width) not in self._repeated:
            mean, std = (t.to(device).repeat(width) for t in (self.mean, self.std))
            self._repeated[device, width] = (mean, std)
        return self._repeated[device, width]


def warp(batch: Tensor, draws: Tensor, strength: Strength) -> Tensor:
    """Rotate, shift, scale, shear and flip images (B, 3, H, W) by one affine grid.

    Args:
        batch: the images.
        draws: (B, 8) in [0, 1).
        strength: the half-widths of the draws.
    """
    grid = affine_grid(affine_rows(draws, strength), *batch.shape[2:])
    moved = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def affine_rows(draws: Tensor, strength: Strength) -> Tensor:
    """The maps (B, 2, 3) from a view's pixels to the image's, from draws (B, 8) in [0, 1)."""
    signed = draws * 2 - 1
    if strength.warped < 1:
        signed = torch.where(draws[:, 7:] < strength.warped, signed, 0.0)
    angle = signed[:, 0] * math.radians(strength.rotation)
    shear = torch.tan(signed[:, 1] * math.radians(strength.shear))
    scale = 1 + signed[:, 2] * strength.scale
    flip_x = torch.where(draws[:, 3] < 0.5, -1.0, 1.0)
    flip_y = torch.where((draws[:, 4] < 0.5) & strength.vertical_flip, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # The grid spans [-1, 1], so a shift by a share of the side is twice that share.
    shift = signed[:, 5:7] * 2 * strength.translation
    return torch.stack(
        (
            *(flip_x * cos, flip_x * (cos * shear - sin), shift[:, 0]),
            *(flip_y * sin, flip_y * (sin * shear + cos), shift[:, 1]),
        ),
        dim=1,
    ).view(-1, 2, 3)


def affine_grid(rows: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel comes from under the maps (B, 2, 3), as torch's ``affine_grid`` says.

    It takes a tenth of the time on a CPU: torch multiplies a matrix of ones and coordinates for
    each image, while here a row and a column of products are added. The numbers are torch's but
    for float32 rounding, since how a matrix product rounds depends on the processor.

    Returns:
        (B, H, W, 2): x and y in [-1, 1] over the image.
    """
    x, y = (
        torch.linspace(-1, 1, side, device=rows.device) * (side - 1) / side
        for side in (width, height)
    )
    grid = rows.new_empty(len(rows), 2, height, width)
    torch.add(rows[:, :, 0, None, None] * x, rows[:, :, 1, None, None] * y[:, None], out=grid)
    return grid.add_(rows[:, :, 2, None, None]).permute(0, 2, 3, 1)


def jitter_colour(batch: Tensor, draws: Tensor, strength: Strength) -> Tensor:
    """Change brightness, contrast, saturation and hue of images (B, 3, H, W) in [0, 1].

    Hue is a rotation of the colour plane about the grey axis. This linear map is close to the HSV
    shift of the original pipeline and needs no conversion per pixel.

    Args:
        batch: the images.
        draws: (B, 4) in [0, 1).
        strength: the half-widths of the draws.
    """
    signed = (draws * 2 - 1).view(-1, 4, 1, 1, 1)
    batch = batch * (1 + signed[:, 0] * strength.brightness)
    if strength.contrast or strength.saturation:
        grey = (batch * batch.new_tensor(GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        level = grey.mean(dim=(2, 3), keepdim=True)
        batch = level + (batch - level) * (1 + signed[:, 1] * strength.contrast)
        grey = level + (grey - level) * (1 + signed[:, 1] * strength.contrast)
        batch = grey + (batch - grey) * (1 + signed[:, 2] * strength.saturation)
    if strength.hue:
        angle = signed[:, 3].view(-1) * strength.hue * 2 * math.pi
        batch = torch.einsum("bij,bjhw->bihw", _hue_rotation(angle), batch)
    return batch.clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def _hue_rotation(angle: Tensor) -> Tensor:
    """(B,) angles to (B, 3, 3) rotations about the axis (1, 1, 1) (Rodrigues)."""
    cos, sin = torch.cos(angle).view(-1, 1, 1), torch.sin(angle).view(-1, 1, 1)
    axis = 1 / math.sqrt(3)
    cross = angle.new_tensor([[0, -axis, axis], [axis, 0, -axis], [-axis, axis, 0]])
    outer = angle.new_full((3, 3), 1 / 3)
    return cos * torch.eye(3, device=angle.device) + sin * cross + (1 - cos) * outer


def channel_statistics(images: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the given images, scaled to [0, 1].

    Args:
        images: (N, H, W, 3) uint8, read in chunks.
        rows: indices of the images to use.

    Returns:
        Two (3,) float32 tensors; a constant channel gets a deviation of 1.
    """
    return statistics_of(channel_sums(images, rows))


def channel_sums(images: np.ndarray, rows: np.ndarray) -> Tensor:
    """(3, 3) float64: number of pixels, sum and sum of squares of each channel; add them freely."""
    total = torch.zeros(3, dtype=torch.float64)
    square = torch.zeros(3, dtype=torch.float64)
    count = 0
    for start in range(0, len(rows), CHUNK):  # sums of whole numbers: exact, whatever the chunks
        chunk = torch.from_numpy(images[rows[start : start + CHUNK]]).view(-1, 3).double()
        total += chunk.sum(0)
        square += (chunk**2).sum(0)
        count += len(chunk)
    return torch.stack([torch.full_like(total, count), total, square])


def statistics_of(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel from its sums, as :func:`channel_statistics`."""
    count, total, square = sums
    mean = total / count / 255
    std = (square / count / 255**2 - mean**2).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 1e-3, std, 1.0).float()


def mix_up(batch: Any, *, alpha: float, draw: np.random.Generator) -> Any:
    """MixUp (Zhang et al., ICLR 2018): mix each image with another, in shares that add up to 1.

    - A label enters with its image's share of the weight. So a cell that only one of the images
      knows keeps that image's label at less weight, and a loss that is linear in the target is the
      mixture of the two labels' losses.
    - An image's own share is the larger one. Over a random order that is the same distribution,
      and what is remembered by rows stays with the image that rules the mixture.

    Args:
        batch: a dataclass with ``images`` (B, ...), ``target`` (B, C) in [0, 1], 0 where the
            weight is 0, and ``weight`` (B, C) at least 0.
        alpha: both parameters of the Beta distribution; 0 changes nothing.
        draw: where the share and the order come from.

    Returns:
        The batch with the three fields replaced.
    """
    if alpha == 0:
        return batch
    share = draw.beta(alpha, alpha)
    share = max(share, 1 - share)
    other = torch.from_numpy(draw.permutation(len(batch.images))).to(batch.images.device)
    images = share * batch.images + (1 - share) * batch.images[other]
    own, lent = share * batch.weight, (1 - share) * batch.weight[other]
    target = own * batch.target + lent * batch.target[other]
    target = (target / (own + lent).clamp_min(1e-12)).clamp(0, 1)
    return replace(batch, images=images, target=target, weight=own + lent)
