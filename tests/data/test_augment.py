"""Augmentation: identities, known points, exact flips, colours, statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import float32_tolerance
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bench.work import plain_view
from utils_.augment import (
    GREY,
    PUBLISHED,
    STRONG,
    WEAK,
    Augmenter,
    Strength,
    affine_grid,
    channel_statistics,
    jitter_colour,
    warp,
)
from utils_.rng import derive

pytestmark = pytest.mark.numerics

NONE = Strength(rotation=0, translation=0)
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
ANGLE, SHEAR, SCALE, FLIP_X, FLIP_Y, SHIFT_X, SHIFT_Y = range(7)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def pixels(images: int = 4, size: int = 16, seed: int = 0) -> torch.Tensor:
    draw = derive(seed, "pixels")
    return torch.from_numpy(draw.integers(0, 256, (images, size, size, 3), dtype=np.uint8))


def floats(images: int = 4, size: int = 16) -> torch.Tensor:
    return pixels(images, size).permute(0, 3, 1, 2).float() / 255


def draws(images: int = 4, **chosen: float) -> torch.Tensor:
    """Draws of no effect (0.5 is the middle, and flips happen below it) but for the chosen ones."""
    table = torch.full((images, 8), 0.5)
    for name, value in chosen.items():
        table[:, globals()[name.upper()]] = value
    return table


def warp_tolerance(side: int, *, span: float = 1) -> float:
    """Of an image sampled at pixels that rounding moves; ``span`` is its largest step.

    Far below one grey level, which is ``span`` / 255.
    """
    return float32_tolerance(20, side / 2 * span)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the rounding of the sampling grid."""
    torch.testing.assert_close(found, expected, rtol=0, atol=warp_tolerance(found.shape[-1]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_plain_is_the_normalised_image_in_channels_last() -> None:
    images = pixels()
    found = Augmenter(MEAN, STD).plain(images)
    expected = (images.permute(0, 3, 1, 2) / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=float32_tolerance(8, expected))
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, pixels())  # the given batch is left alone


@pytest.mark.parametrize("size", [15, 16, 33, 64])
def test_without_strength_and_flip_nothing_moves(size: int) -> None:
    batch = floats(size=size)
    for strength in (NONE, WEAK, PUBLISHED):
        assert_same(warp(batch, draws(), strength), batch)


@pytest.mark.parametrize("size", [15, 16, 64])
def test_flips_are_exact_mirrors(size: int) -> None:
    batch = floats(size=size)
    assert_same(warp(batch, draws(flip_x=0), NONE), batch.flip(3))
    both = warp(batch, draws(flip_x=0, flip_y=0), replace(NONE, vertical_flip=True))
    assert_same(both, batch.flip(2, 3))


def test_vertical_flips_happen_where_asked_only() -> None:
    batch = floats()
    assert_same(warp(batch, draws(flip_y=0), NONE), batch)
    flipping = replace(NONE, vertical_flip=True)
    assert_same(warp(batch, draws(flip_y=0), flipping), batch.flip(2))


def test_each_image_of_a_batch_is_flipped_on_its_own() -> None:
    batch = floats(2)
    table = draws(2)
    table[1, FLIP_X] = 0
    moved = warp(batch, table, NONE)
    assert_same(moved[0], batch[0])
    assert_same(moved[1], batch[1].flip(2))


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    batch = floats()
    for draw, turns in ((1.0, 1), (0.0, -1)):
        moved = warp(batch, draws(angle=draw), replace(NONE, rotation=90))
        assert_same(moved, torch.rot90(batch, turns, (2, 3)))


@pytest.mark.parametrize(("name", "axis"), [("shift_x", 3), ("shift_y", 2)])
@pytest.mark.parametrize(("draw", "step"), [(1.0, 4), (0.0, -4), (0.75, 2)])
def test_a_shift_is_a_share_of_the_side_and_repeats_the_border(
    name: str, axis: int, draw: float, step: int
) -> None:
    batch = floats()
    moved = warp(batch, draws(**{name: draw}), replace(NONE, translation=0.25))
    index = (torch.arange(16) + step).clamp(0, 15)
    expected = batch.index_select(axis, index)
    assert_same(moved, expected)


@pytest.mark.parametrize(("draw", "edge"), [(1.0, 8), (0.5, 4), (0.25, 2)])
def test_scaling_changes_the_size_of_what_is_seen(draw: float, edge: int) -> None:
    """A square of half-edge 4 about the centre; the scale runs from 0 to 2 here, 1 midway."""
    batch = torch.zeros(1, 3, 32, 32)
    batch[:, :, 12:20, 12:20] = 1
    moved = warp(batch, draws(1, scale=draw), replace(NONE, scale=1.0))
    assert moved.sum().item() == pytest.approx(3 * (2 * edge) ** 2, rel=0.05)
    assert moved[0, 0, [15, 16], [15, 16]].tolist() == pytest.approx([1, 1])


def test_shear_moves_rows_by_their_height() -> None:
    """tan(45 degrees) = 1: the row r below the centre takes its pixels from r to the right."""
    batch = floats(1)
    moved = warp(batch, draws(1, shear=1.0), replace(NONE, shear=45))
    for row in range(16):
        offset = row - 7.5
        columns = torch.arange(16) + offset
        low = columns.floor().clamp(0, 15).long()
        high = columns.ceil().clamp(0, 15).long()
        expected = (batch[0, :, row, low] + batch[0, :, row, high]) / 2
        assert_same(moved[0, :, row], expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=7, max_size=7))
def test_a_known_point_moves_as_the_matrix_says(values: list[float]) -> None:
    """The linear picture x + 2y is sampled at A (x, y) + t, whatever the transform (no border)."""
    size = 64
    table = torch.tensor([[*values, 0.5]])
    centre = (torch.arange(size) * 2 + 1) / size - 1
    x, y = centre.view(1, -1), centre.view(-1, 1)
    batch = (x + 2 * y).expand(1, 3, size, size)
    moved = warp(batch, table, PUBLISHED)
    signed = [2 * v - 1 for v in values]
    angle, shear = math.radians(50) * signed[0], math.tan(math.radians(10) * signed[1])
    scale, mirror_x = 1 + 0.2 * signed[2], -1 if values[3] < 0.5 else 1
    mirror_y = -1 if values[4] < 0.5 else 1
    rotate = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.diag([mirror_x, mirror_y]) @ rotate @ np.array([[1, shear], [0, 1]]) / scale
    # The shear term is divided by the scale together with the rotation it belongs to.
    shift = np.array([0.2 * signed[5], 0.2 * signed[6]])
    for row, column in ((32, 32), (25, 40), (40, 27)):
        source = matrix @ np.array([centre[column], centre[row]]) + shift
        expected = source[0] + 2 * source[1]
        assert moved[0, 0, row, column].item() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("strength", [WEAK, STRONG, PUBLISHED])
def test_views_are_finite_different_and_repeatable(strength: Strength) -> None:
    augmenter = Augmenter(MEAN, STD)
    same = pixels(1).expand(8, -1, -1, -1)
    view = augmenter.view(same, generator(), strength=strength)
    assert torch.isfinite(view).all()
    assert view.shape == (8, 3, 16, 16)
    assert view.is_contiguous(memory_format=torch.channels_last)
    for i in range(8):
        for j in range(i):
            assert not torch.equal(view[i], view[j])
    assert torch.equal(view, augmenter.view(same, generator(), strength=strength))
    assert not torch.equal(view, augmenter.view(same, generator(1), strength=strength))


def test_view_normalises_before_the_warp() -> None:
    """A grey picture stays one value a channel: the border adds no colour of its own."""
    grey = torch.full((16, 16, 16, 3), 100, dtype=torch.uint8)
    view = Augmenter(MEAN, STD).view(grey, generator(), strength=WEAK)
    expected = ((100 / 255 - MEAN) / STD).view(1, 3, 1, 1).expand_as(view)
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 70), st.integers(2, 70), st.integers(0, 99))
def test_the_grid_is_that_of_torch(images: int, height: int, width: int, seed: int) -> None:
    rows = torch.randn(images, 2, 3, generator=generator(seed))
    expected = F.affine_grid(rows, [images, 3, height, width], align_corners=False)
    # The largest sum of a map: of three products of numbers up to 1.
    atol = float32_tolerance(8, rows.abs().sum(dim=2))
    torch.testing.assert_close(affine_grid(rows, height, width), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_a_weak_view_is_that_of_plain_torch(size: int) -> None:
    augmenter, images = Augmenter(MEAN, STD), pixels(5, size)
    found = augmenter.view(images, generator(), strength=WEAK)
    expected = plain_view(augmenter, images, generator(), strength=WEAK)
    atol = warp_tolerance(size, span=1 / STD.min().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_half_the_weak_views_are_mirrored_and_none_is_upside_down() -> None:
    images = torch.zeros(400, 16, 16, 3, dtype=torch.uint8)
    images[:, :4, :4] = 255  # bright top left corner
    view = Augmenter(torch.zeros(3), torch.ones(3)).view(images, generator(), strength=WEAK)
    left = view[:, :, :8, :8].sum(dim=(1, 2, 3)) > view[:, :, :8, 8:].sum(dim=(1, 2, 3))
    assert 150 < left.sum() < 250
    assert (view[:, :, :8].sum(dim=(1, 2, 3)) > view[:, :, 8:].sum(dim=(1, 2, 3))).all()


def colours(images: int = 4, **chosen: float) -> torch.Tensor:
    table = torch.full((images, 4), 0.5)
    for name, value in chosen.items():
        table[:, globals()[name.upper()]] = value
    return table


def test_colours_in_the_middle_stay() -> None:
    batch = floats()
    moved = jitter_colour(batch, colours(), PUBLISHED)
    torch.testing.assert_close(moved, batch, rtol=0, atol=float32_tolerance(20))


def test_colours_of_no_strength_stay() -> None:
    batch, table = floats(), torch.rand(4, 4, generator=generator())
    moved = jitter_colour(batch, table, NONE)
    torch.testing.assert_close(moved, batch, rtol=0, atol=float32_tolerance(20))


def test_colours_against_a_loop() -> None:
    batch, table = floats() * 0.5 + 0.2, torch.rand(4, 4, generator=generator())
    found = jitter_colour(batch, table, replace(PUBLISHED, hue=0.0))
    for i, image in enumerate(batch.double().numpy()):
        bright, contrast, saturation, _ = (1 + (2 * d - 1) * 0.5 for d in table[i].tolist())
        image = image * bright
        level = np.tensordot(GREY, image, 1).mean()
        image = level + contrast * (image - level)
        grey = np.tensordot(GREY, image, 1)
        image = (grey + saturation * (image - grey)).clip(0, 1)
        np.testing.assert_allclose(found[i].numpy(), image, atol=1e-5)


def test_hue_by_a_third_of_a_turn_exchanges_the_channels() -> None:
    batch = floats()
    moved = jitter_colour(batch, colours(hue=1.0), replace(NONE, hue=1 / 3))
    torch.testing.assert_close(moved, batch.roll(1, dims=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("hue", [0.0, 0.2, 0.9, 1.0])
def test_hue_keeps_grey_pixels_grey(hue: float) -> None:
    grey = floats()[:, :1].expand(-1, 3, -1, -1)
    moved = jitter_colour(grey, colours(hue=hue), PUBLISHED)
    torch.testing.assert_close(moved, grey, rtol=0, atol=1e-5)


def test_colours_stay_in_range() -> None:
    table = torch.rand(64, 4, generator=generator())
    moved = jitter_colour(floats(64), table, PUBLISHED)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved == 1).any()  # so the limit was reached


def test_chances_leave_some_images_as_they_are() -> None:
    """Of 2,000 images 15 % are not warped and 25 % keep their colours; the others as without."""
    images, augmenter = pixels(1).expand(2000, -1, -1, -1), Augmenter(MEAN, STD)
    plain = augmenter.plain(pixels(1))[0]
    warped = replace(NONE, rotation=20, translation=0.2, warped=0.85)
    coloured = replace(NONE, brightness=0.3, coloured=0.75)
    for strength, share in ((warped, 0.15), (coloured, 0.25)):
        view = augmenter.view(images, generator(), strength=strength)
        mirrored = torch.stack([plain, plain.flip(2)])  # left to right, half of them
        apart = (view[:, None] - mirrored).abs().amax(dim=(2, 3, 4)).amin(dim=1)
        assert float((apart < 1e-3).float().mean()) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_setting_alone_has_an_effect(name: str) -> None:
    images, augmenter = pixels(), Augmenter(MEAN, STD)
    still = augmenter.view(images, generator(), strength=NONE)
    moved = augmenter.view(images, generator(), strength=replace(NONE, **{name: 0.5}))
    assert not torch.allclose(still, moved, atol=1e-3)


def test_statistics_are_those_of_the_chosen_rows() -> None:
    images = pixels(2100, 4).numpy()  # more than two chunks
    rows = np.flatnonzero(np.arange(2100) % 3)
    mean, std = channel_statistics(images, rows)
    chosen = images[rows].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, chosen.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, chosen.std(0), atol=1e-6)
    assert mean.dtype == std.dtype == torch.float32


def test_a_constant_channel_has_deviation_one() -> None:
    images = pixels(8).numpy()
    images[..., 1] = 77
    mean, std = channel_statistics(images, np.arange(8))
    assert std[1] == 1
    assert mean[1].item() == pytest.approx(77 / 255)
    assert torch.isfinite(Augmenter(mean, std).plain(torch.from_numpy(images))).all()
