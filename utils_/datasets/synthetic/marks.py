"""Soft elliptic marks drawn into a stack of images with array operations alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

LARGEST_OPACITY = 0.97
WINDOW_BUDGET = 1 << 20  # pixels of all windows evaluated at once; bounds memory


@dataclass
class Marks:
    """M marks; every attribute is an array of length M, lengths in half image widths.

    Attributes:
        image: index of the image in the stack.
        x, y: centre, 0 in the middle of the image, x to the right, y down.
        along, across: semi-axes.
        angle: direction of ``along`` in radians.
        edge: width of the soft border, relative to the semi-axes, above 0.
        rough: how far the image's own texture displaces the border, relative to the semi-axes.
        hollow: 0 for a filled mark, towards 1 for an ever thinner ring.
        stripes: waves across the mark's surface per unit length; 0 for none.
        red, green, blue: reflectance in [0, 1].
        opacity: in [0, 1].
    """

    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    along: np.ndarray
    across: np.ndarray
    angle: np.ndarray
    edge: np.ndarray
    rough: np.ndarray
    hollow: np.ndarray
    stripes: np.ndarray
    red: np.ndarray
    green: np.ndarray
    blue: np.ndarray
    opacity: np.ndarray

    def take(self, rows: np.ndarray) -> Marks:
        """Return the marks ``rows``."""
        return Marks(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def join(parts: list[Marks]) -> Marks:
        """Return the marks of all parts, in turn."""
        names = [field.name for field in fields(Marks)]
        return Marks(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def draw_marks(images: np.ndarray, marks: Marks, texture: np.ndarray) -> None:
    """Blend ``marks`` into ``images`` in place; their order does not matter.

    Where marks overlap, the transparencies multiply and the colours mix in proportion to opacity.

    Args:
        images: (B, S, S, 3) float32 reflectance.
        marks: the marks; those outside the image are cut off.
        texture: (B, S, S) float32 of about unit variance.
    """
    drawn = [_cells(marks, rows, half, texture) for rows, half in _windows(marks, images.shape[1])]
    if not drawn:
        return
    cell, mark, opacity = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    flat = images.reshape(-1, 3)
    total = np.bincount(cell, opacity, len(flat))
    touched = np.flatnonzero(total)
    cover = -np.expm1(np.bincount(cell, np.log1p(-opacity), len(flat))[touched])
    for channel, colour in enumerate((marks.red, marks.green, marks.blue)):
        mixed = np.bincount(cell, opacity * colour[mark], len(flat))[touched] / total[touched]
        flat[touched, channel] += (cover * (mixed - flat[touched, channel])).astype(np.float32)


def _windows(marks: Marks, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (rows, half): marks that fit into windows of ``2 * half + 1`` pixels, few at a time."""
    reach = np.maximum(marks.along, marks.across) * (1 + marks.edge / 2 + 2.2 * marks.rough)
    needed = np.minimum(reach * size / 2 + 1.5, size)
    halves = 2 ** np.ceil(np.log2(np.maximum(needed, 2))).astype(int)
    for half in np.unique(halves):
        rows = np.flatnonzero(halves == half)
        step = max(1, WINDOW_BUDGET // (2 * int(half) + 1) ** 2)
        for start in range(0, len(rows), step):
            yield rows[start : start + step], int(half)


def _cells(
    marks: Marks, rows: np.ndarray, half: int, texture: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the marks ``rows`` cover: flat pixel indices, mark numbers, opacities."""
    cell, opacity = _profile(marks.take(rows), half, texture)
    seen = opacity > 1e-3
    mark = np.broadcast_to(rows[:, None, None], seen.shape)
    return cell[seen], mark[seen], opacity[seen]


def _profile(marks: Marks, half: int, texture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat pixel index and opacity in the window of each mark, both (M, W, W)."""
    size = texture.shape[1]
    pixel = 2.0 / size
    offset = np.arange(-half, half + 1)
    column = np.floor((marks.x + 1) / pixel).astype(np.int64)[:, None] + offset
    row = np.floor((marks.y + 1) / pixel).astype(np.int64)[:, None] + offset
    dx = ((column + 0.5) * pixel - 1 - marks.x[:, None]).astype(np.float32)[:, None, :]
    dy = ((row + 0.5) * pixel - 1 - marks.y[:, None]).astype(np.float32)[:, :, None]
    inside = ((row >= 0) & (row < size))[:, :, None] & ((column >= 0) & (column < size))[:, None, :]
    row, column = np.clip(row, 0, size - 1), np.clip(column, 0, size - 1)
    cell = (marks.image[:, None, None] * size + row[:, :, None]) * size + column[:, None, :]
    shape = _shape(marks, dx, dy, texture.ravel()[cell], pixel)
    return cell, np.where(inside, np.minimum(shape, LARGEST_OPACITY), 0)


def _shape(
    marks: Marks, dx: np.ndarray, dy: np.ndarray, texture: np.ndarray, pixel: float
) -> np.ndarray:
    """Opacity at the offsets from the centre; a mark below a pixel gets fainter, not smaller."""

    def column(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[:, None, None]

    along, across = (np.maximum(v, 0.6 * pixel) for v in (marks.along, marks.across))
    opacity = marks.opacity * (marks.along / along) * (marks.across / across)
    cos, sin = column(np.cos(marks.angle)), column(np.sin(marks.angle))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    radius = np.sqrt((u / column(along)) ** 2 + (v / column(across)) ** 2)
    radius += column(marks.rough) * texture
    edge = np.maximum(marks.edge, pixel / np.maximum(across, pixel))
    cover = _smooth((1 - radius) / column(edge) + 0.5)
    inner = _smooth((column(marks.hollow) - radius) / column(np.minimum(edge, 0.5)) + 0.5)
    cover *= 1 - inner * (column(marks.hollow) > 0)
    waves = np.sin(v * column(2 * np.pi * marks.stripes) + 2.5 * texture)
    cover *= np.where(column(marks.stripes) > 0, 0.5 + 0.5 * waves, 1)
    covered: np.ndarray = cover * column(opacity)
    return covered


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    y: np.ndarray = x * x * (3 - 2 * x)
    return y
