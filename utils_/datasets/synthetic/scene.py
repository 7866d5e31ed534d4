"""From labels to pictures: eyes with their findings, seen through a fundus camera."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeVar

import numpy as np

from utils_.datasets.synthetic.lesions import (
    CHOROID,
    FINDINGS,
    HARMLESS,
    RETINA,
    VITREOUS,
    change_anatomy,
    place_marks,
)
from utils_.datasets.synthetic.marks import Marks, draw_marks
from utils_.datasets.synthetic.retina import (
    Anatomy,
    Vessels,
    disc_marks,
    draw_anatomy,
    draw_vessels,
    fovea_marks,
    fractal_texture,
    texture_grids,
    vessel_density,
)
from utils_.rng import derive

BLOCK = 64  # images whose random numbers are drawn together
PIXEL_BUDGET = 1 << 18  # pixels drawn together; bounds memory
GRAIN = np.array([0.04, 0.07, 0.08], np.float32)  # texture of the background in red, green, blue
ARTERY_LOSS = np.array([0.24, 0.48, 0.50], np.float32)  # light that a vessel takes away
VEIN_LOSS = np.array([0.38, 0.62, 0.60], np.float32)
DARKNESS = 0.015  # signal of a pixel without light
ArraysOfImages = TypeVar("ArraysOfImages", Anatomy, "Camera")
Stream = Callable[[str], np.random.Generator]  # from its name, among those of one block


@dataclass
class Camera:
    """Lighting, aperture and sensor of B images; every attribute is (B,), tint is (B, 3)."""

    light: np.ndarray
    slope_x: np.ndarray
    slope_y: np.ndarray
    vignette: np.ndarray
    tint: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    cut: np.ndarray
    noise: np.ndarray


@dataclass
class Scene:
    """All that is random about B images but the noise of the sensor; independent of the size."""

    eye: Anatomy
    vessels: list[Vessels]
    marks: dict[int, Marks]
    grids: list[np.ndarray]
    camera: Camera


def render(
    labels: np.ndarray, *, classes: tuple[str, ...], image_size: int, data_seed: int, part: str
) -> Iterator[np.ndarray]:
    """Yield the images in order, a few at a time, each (b, image_size, image_size, 3) uint8.

    An image depends on the labels and numbers of the 64 images of its block, not on later blocks.

    Args:
        labels: (N, C), 1 where a finding is present.
        classes: names of the C columns; those outside ``FINDINGS`` leave no mark of their own.
        part: name of the part of the data; parts share no random number.
    """
    for block, first in enumerate(range(0, len(labels), BLOCK)):
        present = labels[first : first + BLOCK] == 1
        columns = {name: np.flatnonzero(present[:, c]) for c, name in enumerate(classes)}
        stream = partial(derive, data_seed, "synthetic", part, block)
        scene, noise = _draw_scene(columns, stream), stream("sensor")
        step = max(1, PIXEL_BUDGET // image_size**2)
        for start in range(0, len(present), step):
            images = slice(start, min(start + step, len(present)))
            yield _photograph(_take_scene(scene, images), image_size, noise)


def _draw_scene(present: dict[str, np.ndarray], stream: Stream) -> Scene:
    """Draw a block; ``present`` names the images of each finding."""
    eye = draw_anatomy(stream("anatomy"), BLOCK)
    change_anatomy(stream("severity"), eye, present)
    placed: list[tuple[int, Marks]] = []
    for finding, lesions in FINDINGS.items():
        placed += place_marks(stream(finding), lesions, present[finding], eye)
    placed += place_marks(stream("harmless"), HARMLESS, np.arange(BLOCK), eye)
    fovea = fovea_marks(eye, stream("fovea").uniform(0.5, 1, BLOCK))
    placed.append((CHOROID, fovea))
    layers = {
        layer: Marks.join([marks for where, marks in placed if where == layer])
        for layer in (CHOROID, RETINA, VITREOUS)
    }
    return Scene(
        eye=eye,
        vessels=draw_vessels(stream("vessels"), eye),
        marks=layers,
        grids=texture_grids(stream("texture"), BLOCK),
        camera=_draw_camera(stream("camera"), BLOCK),
    )


def _draw_camera(rng: np.random.Generator, count: int) -> Camera:
    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, count).astype(np.float32)

    return Camera(
        light=uniform(0.9, 1.1),
        slope_x=uniform(-0.14, 0.14),
        slope_y=uniform(-0.14, 0.14),
        vignette=uniform(0.05, 0.3),
        tint=1 + 0.06 * rng.standard_normal((count, 3)).astype(np.float32),
        x=uniform(-0.02, 0.02),
        y=uniform(-0.02, 0.02),
        radius=uniform(0.93, 1.0),
        # A third of the cameras cut the circle off above and below.
        cut=np.where(rng.random(count) < 0.35, uniform(0.78, 0.9), np.float32(2)),
        noise=uniform(0.006, 0.022),
    )


def _take(arrays: ArraysOfImages, images: slice) -> ArraysOfImages:
    """Select images from a dataclass of arrays."""
    return type(arrays)(*(getattr(arrays, field.name)[images] for field in fields(arrays)))


def _take_scene(scene: Scene, images: slice) -> Scene:
    marks = {}
    for layer, of_all in scene.marks.items():
        inside = (of_all.image >= images.start) & (of_all.image < images.stop)
        marks[layer] = of_all.take(np.flatnonzero(inside))
        marks[layer].image = marks[layer].image - images.start
    return Scene(
        eye=_take(scene.eye, images),
        vessels=[generation.take(images, slice(None)) for generation in scene.vessels],
        marks=marks,
        grids=[grid[images] for grid in scene.grids],
        camera=_take(scene.camera, images),
    )


def _photograph(scene: Scene, size: int, noise: np.random.Generator) -> np.ndarray:
    """Return the picture of every eye, (B, size, size, 3) uint8."""
    texture = fractal_texture(scene.grids, size)
    image = scene.eye.base[:, None, None].astype(np.float32) * (1 + texture[..., None] * GRAIN)
    draw_marks(image, scene.marks[CHOROID], texture)
    for marks in disc_marks(scene.eye):
        draw_marks(image, marks, texture)
    _draw_blood(image, scene, size)
    for layer in (RETINA, VITREOUS):
        draw_marks(image, scene.marks[layer], texture)
    return _expose(image, scene.camera, noise)


def _draw_blood(image: np.ndarray, scene: Scene, size: int) -> None:
    """Darken ``image`` (B, S, S, 3) in place along arteries and veins."""
    for vein, loss in enumerate((ARTERY_LOSS, VEIN_LOSS)):
        density = np.zeros(image.shape[:3], np.float32)
        for generation in scene.vessels:
            half = generation.widths.shape[1] // 2
            vessels = generation.take(slice(None), slice(vein * half, (vein + 1) * half))
            density += vessel_density(vessels, scene.eye.fovea, size)
        image *= 1 - np.minimum(density, 1)[..., None] * loss


def _expose(image: np.ndarray, camera: Camera, noise: np.random.Generator) -> np.ndarray:
    """Light the reflectance (B, S, S, 3), cut it by the aperture, add noise, round to uint8."""
    count, size = image.shape[:2]

    def column(values: np.ndarray) -> np.ndarray:
        return values[:, None, None]

    axis = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = axis - column(camera.x), axis[:, None] - column(camera.y)
    distance = np.sqrt(x * x + y * y)
    light = column(camera.light) + column(camera.slope_x) * x + column(camera.slope_y) * y
    light -= column(camera.vignette) * distance**2
    soft = max(2 / size, 0.012)
    inside = np.clip((column(camera.radius) - distance) / soft + 0.5, 0, 1)
    inside *= np.clip((column(camera.cut) - np.abs(y)) / soft + 0.5, 0, 1)
    image = image * (light * inside)[..., None] * camera.tint[:, None, None] + DARKNESS
    grain = noise.standard_normal((count, size, size, 4), dtype=np.float32)
    strength = column(camera.noise) * (0.25 + 0.75 * inside)
    image += strength[..., None] * (0.8 * grain[..., :1] + 0.6 * grain[..., 1:])
    shades: np.ndarray = np.clip(image, 0, 1) * 255 + 0.5
    return shades.astype(np.uint8)
