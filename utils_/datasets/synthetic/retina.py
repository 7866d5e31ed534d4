"""Healthy eyes: optic disc, fovea, vessels and the texture of the background.

Lengths are in half image widths and angles in radians, so an eye is the same at every image size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils_.datasets.synthetic.marks import Marks

OCTAVES = (3, 6, 12, 24, 48)  # cells per side of the random grids behind the texture
TEXTURE_DEVIATION = 0.54  # of the sum of all octaves, as expected
QUADRANTS = 4  # arcades, in the order of TEMPORAL and UPWARD
TEMPORAL = np.array([True, True, False, False] * 2)
UPWARD = np.array([-1.0, 1.0] * QUADRANTS)
ARTERY_WIDTH, VEIN_WIDTH, THINNING = 0.0115, 0.0155, 0.68
WIDEST = 1.15 * VEIN_WIDTH
TRUNK_STEPS = 48
OFFSHOOTS = ((4, 20, 0.5), (2, 14, 0.24))  # children of a vessel, their steps and length
REACH = 2.5  # standard deviations at which the profile of a vessel ends


@dataclass
class Anatomy:
    """The eyes of B images.

    Attributes:
        disc, fovea: (B, 2) centres x, y.
        disc_radius, cup_ratio: (B,); cup diameter over disc diameter in [0, 1].
        pallor, swelling: (B,) in [0, 1], whiteness of the disc and blur of its margin.
        narrowing: (B,) in [0, 1], loss of width of the arteries.
        base: (B, 3) reflectance of the fundus.
        trunks: (B, 8, TRUNK_STEPS, 3) x, y, direction; four arteries, then four veins.
    """

    disc: np.ndarray
    fovea: np.ndarray
    disc_radius: np.ndarray
    cup_ratio: np.ndarray
    pallor: np.ndarray
    swelling: np.ndarray
    narrowing: np.ndarray
    base: np.ndarray
    trunks: np.ndarray


@dataclass
class Vessels:
    """One generation of vessels: paths (B, V, P, 3) with x, y, direction; widths (B, V, P).

    The first half of the V vessels are arteries. ``widest`` bounds the widths.
    """

    paths: np.ndarray
    widths: np.ndarray
    widest: float

    def take(self, images: slice, vessels: slice) -> Vessels:
        """Return some of the vessels of some of the images."""
        return Vessels(self.paths[images, vessels], self.widths[images, vessels], self.widest)


def draw_anatomy(rng: np.random.Generator, count: int) -> Anatomy:
    """Return ``count`` random healthy eyes, left and right, of light to dark pigmentation."""

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, count)

    side = np.where(rng.random(count) < 0.5, 1.0, -1.0)
    disc = np.stack([side * uniform(0.42, 0.64), uniform(-0.09, 0.09)], 1)
    fovea = disc + np.stack([-side * uniform(0.52, 0.62), uniform(0.0, 0.09)], 1)
    pigment, warmth = uniform(0, 1)[:, None], rng.standard_normal((count, 1))
    base = np.array([0.84, 0.43, 0.21]) - pigment * np.array([0.30, 0.20, 0.11])
    return Anatomy(
        disc=disc,
        fovea=fovea,
        disc_radius=uniform(0.125, 0.165),
        cup_ratio=uniform(0.25, 0.5),
        pallor=np.zeros(count),
        swelling=np.zeros(count),
        narrowing=np.zeros(count),
        base=base * (1 + warmth * np.array([0.018, 0.06, 0.096])),
        trunks=_trunks(rng, disc, side),
    )


def _trunks(rng: np.random.Generator, disc: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Vessels that leave the disc up and down; the temporal ones bend around the fovea."""
    shape = (len(disc), 2 * QUADRANTS)
    start = np.where(TEMPORAL, 1.62, 2.25) + rng.normal(0, 0.16, shape)
    bend = np.where(TEMPORAL, -1.75, 0.35) + rng.normal(0, 0.25, shape)
    length = np.where(TEMPORAL, 1.65, 1.0) * rng.uniform(0.85, 1.15, shape)
    wave, phase = rng.uniform(1.5, 4, shape), rng.uniform(0, 2 * np.pi, shape)
    share = np.linspace(0, 1, TRUNK_STEPS)
    angle = start[..., None] + bend[..., None] * share**0.8
    angle += 0.22 * np.sin(2 * np.pi * wave[..., None] * share + phase[..., None])
    right, up = -side[:, None, None] * np.cos(angle), UPWARD[:, None] * np.sin(angle)
    return _path(np.broadcast_to(disc[:, None], (*shape, 2)), np.arctan2(up, right), length)


def _path(start: np.ndarray, direction: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Walk along ``direction`` (..., P) in equal steps; return (..., P, 3) with x, y, direction."""
    step = length[..., None] / direction.shape[-1]
    x = start[..., :1] + np.cumsum(step * np.cos(direction), -1)
    y = start[..., 1:] + np.cumsum(step * np.sin(direction), -1)
    return np.stack([x, y, direction], -1)


def draw_vessels(rng: np.random.Generator, eye: Anatomy) -> list[Vessels]:
    """Return the trunks, their branches, and the branches' twigs."""
    shape = (len(eye.disc), 2 * QUADRANTS)
    width = np.repeat([ARTERY_WIDTH, VEIN_WIDTH], QUADRANTS) * rng.uniform(0.85, 1.15, shape)
    width[:, :QUADRANTS] *= 1 - 0.5 * eye.narrowing[:, None]
    width = width[..., None] * (1 - 0.55 * np.linspace(0, 1, TRUNK_STEPS))
    tree = [Vessels(eye.trunks, width, WIDEST)]
    for children, steps, length in OFFSHOOTS:
        tree.append(_offshoots(rng, tree[-1], children=children, steps=steps, length=length))
    return tree


def _offshoots(
    rng: np.random.Generator, parents: Vessels, *, children: int, steps: int, length: float
) -> Vessels:
    """Let vessels leave every parent, in turn to its left and right."""
    count, vessels, points = parents.widths.shape
    shape = (count, vessels, children)
    share = (np.arange(children) + rng.uniform(0.35, 1, shape)) / children
    index = np.minimum((share * (points - 1)).astype(int), points - 1)
    root = np.take_along_axis(parents.paths, index[..., None], 2)
    width = THINNING * np.take_along_axis(parents.widths, index, 2)
    first = rng.integers(0, 2, (count, vessels, 1))
    sign = np.where((np.arange(children) + first) % 2, 1.0, -1.0)
    turn, bend = sign * rng.uniform(0.45, 1.1, shape), -sign * rng.uniform(-0.3, 0.9, shape)
    along = np.linspace(0, 1, steps)
    wiggle = 0.2 * np.sin(2 * np.pi * (along * 2 + rng.random(shape)[..., None]))
    direction = (root[..., 2] + turn)[..., None] + bend[..., None] * along + wiggle
    path = _path(root[..., :2], direction, length * rng.uniform(0.6, 1.2, shape))
    width = width[..., None] * (1 - 0.5 * along)
    flat = (count, vessels * children, steps)
    return Vessels(path.reshape(*flat, 3), width.reshape(flat), THINNING * parents.widest)


def vessel_density(vessels: Vessels, fovea: np.ndarray, size: int) -> np.ndarray:
    """Return (B, S, S) float32, about 1 on the centre line of a vessel, 0 away from it.

    Each step adds a Gaussian; their sum along a path is a line with a Gaussian profile. Lines below
    a pixel get fainter, not thinner. The fovea (B, 2) is left free.
    """
    pixel, count = 2.0 / size, len(vessels.paths)
    paths, widths = _refine(vessels, -(-size // 64))  # wide steps look like beads
    step = np.linalg.norm(paths[:, :, 1, :2] - paths[:, :, 0, :2], axis=-1)[..., None]
    drawn = np.maximum(widths, 0.45 * pixel)
    amount = step * widths / (drawn * drawn * np.sqrt(2 * np.pi))
    gap = np.linalg.norm(paths[..., :2] - fovea[:, None, None], axis=-1)
    amount = amount * np.clip((gap - 0.10) / 0.12, 0, 1)
    keep = np.flatnonzero(amount)
    image = keep // widths[0].size
    half = int(np.ceil(REACH * max(vessels.widest, 0.45 * pixel) / pixel))
    profiles = []
    for axis in (0, 1):
        place = paths[..., axis].ravel()[keep]
        index = np.floor((place + 1) / pixel).astype(np.int32)[:, None] + np.arange(-half, half + 1)
        distance = (index + 0.5) * pixel - 1 - place[:, None]
        value = np.exp(-0.5 * (distance / drawn.ravel()[keep, None]).astype(np.float32) ** 2)
        inside = (index >= 0) & (index < size)
        profiles.append((np.where(inside, value, 0), np.clip(index, 0, size - 1)))
    (across, column), (down, row) = profiles
    down = down * amount.ravel()[keep, None].astype(np.float32)
    cell = (image[:, None] * size + row)[:, :, None] * size + column[:, None, :]
    weight = down[:, :, None] * across[:, None, :]
    total = np.bincount(cell.ravel(), weight.ravel(), count * size * size)
    return total.reshape(count, size, size).astype(np.float32)


def _refine(vessels: Vessels, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Put ``factor`` points where one was, on straight lines between neighbours."""
    paths, widths = vessels.paths, vessels.widths
    points = widths.shape[-1]
    where = np.linspace(0, points - 1, points * factor)
    low = np.minimum(where.astype(int), points - 2)
    share = where - low
    widths = widths[..., low] * (1 - share) + widths[..., low + 1] * share
    paths = paths[..., low, :] * (1 - share)[:, None] + paths[..., low + 1, :] * share[:, None]
    return paths, widths


def texture_grids(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Random values at the corners of the grids of every octave, (count, n + 1, n + 1) each."""
    return [rng.standard_normal((count, n + 1, n + 1), dtype=np.float32) for n in OCTAVES]


def fractal_texture(grids: list[np.ndarray], size: int) -> np.ndarray:
    """Return (B, S, S) float32 of about unit variance: interpolated grids, coarse ones stronger."""
    total = np.zeros((len(grids[0]), size, size), np.float32)
    for grid in grids:
        scale = np.float32(1 / (TEXTURE_DEVIATION * np.sqrt(grid.shape[1])))
        total += _enlarge(_enlarge(grid * scale, size, axis=1), size, axis=2)
    return total


def _enlarge(grid: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """Interpolate smoothly along one axis of (B, rows, columns)."""
    where = (np.arange(size) + 0.5) * (grid.shape[axis] - 1) / size
    low = where.astype(int)
    share = where - low
    share = (share * share * (3 - 2 * share)).astype(np.float32)
    share = share[:, None] if axis == 1 else share
    first, second = np.take(grid, low, axis), np.take(grid, low + 1, axis)
    between: np.ndarray = first + (second - first) * share
    return between


def disc_marks(eye: Anatomy) -> tuple[Marks, Marks]:
    """Return the disc and, to be drawn upon it, the cup of every eye."""
    healthy, pale = np.array([0.95, 0.66, 0.36]), np.array([0.97, 0.90, 0.76])
    rim = healthy + eye.pallor[:, None] * (pale - healthy)
    rim = rim * (0.80 + 0.24 * eye.base[:, :1])
    floor = np.minimum(rim * np.array([1.04, 1.22, 1.5]), 1)
    radius = eye.disc_radius * (1 + 0.35 * eye.swelling)
    disc = _spots(eye.disc, radius, 0.22 + 0.9 * eye.swelling, colour=rim, opacity=0.92)
    disc.across = 0.9 * disc.across
    depth = radius * eye.cup_ratio * (1 - 0.9 * eye.swelling)
    return disc, _spots(eye.disc, depth, 0.5, colour=floor, opacity=0.85)


def fovea_marks(eye: Anatomy, strength: np.ndarray) -> Marks:
    """Return the dark spot of every eye, wide and faint around a small core; strength (B,)."""
    dark = eye.base * np.array([0.62, 0.5, 0.5])
    wide = _spots(eye.fovea, 0.2, 1.6, colour=dark, opacity=0.6 * strength)
    core = _spots(eye.fovea, 0.06, 1.4, colour=dark, opacity=0.5 * strength)
    return Marks.join([wide, core])


def _spots(
    centre: np.ndarray,
    radius: np.ndarray | float,
    edge: np.ndarray | float,
    *,
    colour: np.ndarray,
    opacity: np.ndarray | float,
) -> Marks:
    """One round mark per image."""
    count = len(centre)
    zero = np.zeros(count)
    red, green, blue = colour.T
    return Marks(
        image=np.arange(count), x=centre[:, 0], y=centre[:, 1], along=radius + zero,
        across=radius + zero, angle=zero, edge=edge + zero, rough=zero + 0.02, hollow=zero,
        stripes=zero, red=red, green=green, blue=blue, opacity=opacity + zero,
    )  # fmt: skip
