"""Grad-CAM: the map lies where a hand-made model looks, and is the paper's formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.grad_cam import class_maps
from src.models import MODELS, FlatModel, build_module
from utils_.augment import Augmenter
from utils_.errors import UserError
from utils_.rng import derive

PLAIN = Augmenter(torch.zeros(3), torch.ones(3))


class TwoDetectors(nn.Module):
    """Class 0 looks for red, class 1 for blue, and each is put off by the other.

    Maps of 8 by 8 pixels, their mean, and a head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 2, 4, 4, bias=False)
        self.head = nn.Linear(2, 2)
        nn.init.zeros_(self.maps.weight)
        with torch.no_grad():
            self.maps.weight[0, 0] = 1
            self.maps.weight[1, 2] = 1
            self.head.weight.copy_(1.5 * torch.eye(2) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.maps(x).mean((2, 3)))
        return logits


def planted(row: int, column: int, channel: int) -> np.ndarray:
    """A black image of 32 pixels with a bright square of 8."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[row : row + 8, column : column + 8, channel] = 255
    return image


@pytest.mark.parametrize("place", [(0, 0), (16, 8), (24, 24)])
def test_the_map_lies_on_a_planted_square(place: tuple[int, int]) -> None:
    red, blue = planted(*place, 0), planted(*reversed(place), 2)
    images, model = np.stack([red | blue] * 2), FlatModel(TwoDetectors())
    for square, found in zip(
        (red, blue), class_maps(model, images, np.array([0, 1]), augmenter=PLAIN), strict=True
    ):
        inside = square.any(axis=2)
        assert found.shape == (32, 32) and found.max() == 1 and found.min() == 0
        assert found[inside].mean() > 0.7
        assert found[inside].sum() > 0.6 * found.sum()  # the rest is the smooth edge


def test_where_nothing_speaks_for_a_class_the_map_is_empty() -> None:
    image, model = planted(8, 8, 0), FlatModel(TwoDetectors())
    found = class_maps(model, image[None], np.array([1]), augmenter=PLAIN)
    assert (found == 0).all()


def test_it_is_the_formula_of_the_paper() -> None:
    """Before a mean and a linear head the gradients are the head's weights (their section 3.1)."""
    model = FlatModel(build_module("resnet18", classes=3, weights="none", seed=1))
    with torch.no_grad():
        model.head.weight.abs_()  # so that some place speaks for each class,
        model.head.weight[:, ::3] *= -1  # though not every feature
    images = derive(0, "grad cam").integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    found = class_maps(model, images, np.array([2, 0]), augmenter=PLAIN)
    model.module.eval()
    body = nn.Sequential(*list(model.module.children())[:-2])
    with torch.no_grad():
        maps = body(PLAIN.plain(torch.from_numpy(images)))
        weights = model.head.weight[[2, 0]]
        expected = torch.einsum("bd,bdhw->bhw", weights, maps).relu()
        expected = nn.functional.interpolate(
            expected[:, None], (64, 64), mode="bilinear", align_corners=False
        )[:, 0]
        expected = expected / expected.amax((1, 2), keepdim=True)
    assert expected.mean() < 0.9  # it tells places apart
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("resnet34", "resnet50")])
def test_every_backbone_has_maps(name: str) -> None:
    """The two that are left out differ from resnet18 in their number of layers."""
    model = FlatModel(build_module(name, classes=3, weights="none", seed=1))
    before = model.snapshot()
    images = derive(0, "grad cam").integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    each = [class_maps(model, images, np.array([c, c]), augmenter=PLAIN) for c in range(3)]
    assert max(found.max() for found in each) == 1
    for found in each:
        assert np.isfinite(found).all() and found.min() >= 0 and found.shape == (2, 64, 64)
    assert torch.equal(model.snapshot(), before)  # and the statistics of BatchNorm are as before
    assert not model.gradient.any()
    assert not any(layer._forward_hooks for layer in model.module.modules())


def test_images_without_room_for_a_map_are_refused() -> None:
    model = FlatModel(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten(), nn.Linear(2, 2)))
    with pytest.raises(UserError, match="--explain"):
        class_maps(model, np.zeros((1, 8, 8, 3), np.uint8), np.array([0]), augmenter=PLAIN)
