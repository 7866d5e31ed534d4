"""What each finding looks like: a table of local marks, and where in an eye they are put."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from utils_.datasets.synthetic.marks import Marks
from utils_.datasets.synthetic.retina import QUADRANTS, Anatomy

CHOROID, RETINA, VITREOUS = range(3)  # below the vessels, above them, in front of everything

BLOOD, DARK_BLOOD = (0.36, 0.07, 0.05), (0.24, 0.05, 0.04)
EXUDATE, DRUSEN, COTTON = (0.99, 0.88, 0.48), (0.95, 0.76, 0.42), (0.96, 0.92, 0.80)
SCLERA, PIGMENT, FLUID = (0.97, 0.86, 0.66), (0.12, 0.07, 0.06), (0.62, 0.40, 0.24)
OEDEMA = (0.90, 0.62, 0.44)
HAZE, STREAK, COPPER = (0.78, 0.58, 0.40), (0.97, 0.55, 0.30), (0.99, 0.72, 0.38)
MEMBRANE, NAEVUS, SHEEN = (0.45, 0.42, 0.30), (0.26, 0.20, 0.20), (0.86, 0.82, 0.66)


@dataclass(frozen=True)
class Lesion:
    """One kind of mark; pairs are the bounds of a uniform draw.

    Attributes:
        layer: CHOROID, RETINA or VITREOUS.
        place: a key of ``PLACES``.
        count: number of marks per image, the upper bound included.
        size: semi-axis across.
        colour, opacity: see :class:`Marks`.
        aspect: length over width.
        edge, rough, hollow, stripes: see :class:`Marks`.
        spread: standard deviation of the distance from the place.
        share: how many of the images with the finding show this kind.
        tangent: whether marks point along the place: a vessel, or away from the disc.
    """

    layer: int
    place: str
    count: tuple[int, int]
    size: tuple[float, float]
    colour: tuple[float, float, float]
    opacity: tuple[float, float]
    aspect: tuple[float, float] = (1.0, 1.4)
    edge: float = 0.5
    rough: float = 0.15
    hollow: float = 0.0
    stripes: float = 0.0
    spread: float = 0.0
    share: float = 1.0
    tangent: bool = False


FAINT = 0.25  # share of the images in which a finding is hardly visible
FINDINGS: dict[str, tuple[Lesion, ...]] = {
    "DR": (
        Lesion(RETINA, "retina", (7, 18), (0.020, 0.036), BLOOD, (0.7, 0.95), edge=0.6),
        Lesion(RETINA, "patch", (8, 16), (0.016, 0.028), EXUDATE, (0.7, 0.95),
               spread=0.10, share=0.6),
    ),
    "MH": (
        Lesion(VITREOUS, "retina", (1, 2), (0.24, 0.40), HAZE, (0.5, 0.8), edge=1.6, rough=0.2),
    ),
    "TSLN": (
        Lesion(CHOROID, "retina", (1, 2), (0.36, 0.55), STREAK, (0.6, 0.9), (1, 1.5),
               edge=0.9, stripes=4.5),
    ),
    "ARMD": (
        Lesion(CHOROID, "macula", (7, 15), (0.022, 0.044), DRUSEN, (0.6, 0.9),
               edge=0.9, spread=0.13),
        Lesion(CHOROID, "macula", (1, 2), (0.03, 0.07), PIGMENT, (0.4, 0.7),
               edge=0.9, spread=0.08, share=0.6),
    ),
    "DN": (
        Lesion(CHOROID, "ring", (12, 24), (0.015, 0.026), DRUSEN, (0.6, 0.9)),
    ),
    "MYA": (
        Lesion(CHOROID, "crescent", (1, 1), (0.15, 0.21), SCLERA, (0.6, 0.95), (1, 1.25),
               edge=0.35),
        Lesion(CHOROID, "retina", (0, 3), (0.05, 0.12), SCLERA, (0.3, 0.7), rough=0.3),
    ),
    "BRVO": (
        Lesion(RETINA, "branch", (20, 36), (0.020, 0.040), BLOOD, (0.6, 0.95), (2, 5),
               edge=0.9, rough=0.25, spread=0.09, tangent=True),
        Lesion(RETINA, "branch", (1, 3), (0.035, 0.055), COTTON, (0.5, 0.9),
               edge=0.9, spread=0.10),
    ),
    "CRVO": (
        Lesion(RETINA, "vein", (40, 66), (0.017, 0.038), BLOOD, (0.6, 0.95), (1.5, 5),
               edge=0.9, rough=0.25, spread=0.09, tangent=True),
    ),
    "CNV": (
        Lesion(CHOROID, "macula", (1, 1), (0.13, 0.20), MEMBRANE, (0.6, 0.95),
               edge=0.6, rough=0.2, spread=0.05),
        Lesion(RETINA, "macula", (2, 3), (0.05, 0.10), DARK_BLOOD, (0.6, 0.95),
               edge=0.6, rough=0.3, spread=0.13),
    ),
    "RS": (
        Lesion(RETINA, "patch", (3, 6), (0.08, 0.14), COTTON, (0.5, 0.8), edge=1.2, spread=0.14),
    ),
    "ODE": (
        Lesion(RETINA, "disc", (1, 1), (0.21, 0.28), OEDEMA, (0.6, 0.9), (1, 1.15), edge=1.0),
        Lesion(RETINA, "margin", (5, 10), (0.016, 0.028), BLOOD, (0.6, 0.95), (2, 4),
               edge=0.8, spread=0.03, tangent=True),
    ),
    "LS": (
        Lesion(CHOROID, "periphery", (10, 22), (0.035, 0.055), SCLERA, (0.5, 0.85), edge=0.4),
    ),
    "CSR": (
        Lesion(RETINA, "macula", (1, 1), (0.20, 0.29), FLUID, (0.6, 0.9),
               edge=0.5, rough=0.05, spread=0.03),
        Lesion(RETINA, "macula", (1, 1), (0.22, 0.28), SHEEN, (0.4, 0.7),
               edge=0.35, rough=0.05, hollow=0.82),
    ),
    "HTR": (
        Lesion(RETINA, "vein", (6, 10), (0.050, 0.075), COTTON, (0.7, 0.95),
               edge=0.9, rough=0.25, spread=0.07),
        Lesion(RETINA, "margin", (8, 14), (0.016, 0.028), BLOOD, (0.7, 0.95), (2, 5),
               edge=0.8, spread=0.10, tangent=True),
    ),
    "ASR": (
        Lesion(RETINA, "artery", (90, 120), (0.014, 0.019), COPPER, (0.6, 0.9), (1.5, 2.5),
               edge=0.9, tangent=True),
    ),
    "CRS": (
        Lesion(CHOROID, "patch", (5, 8), (0.07, 0.13), SCLERA, (0.7, 0.95),
               rough=0.3, spread=0.17),
        Lesion(RETINA, "patch", (10, 16), (0.035, 0.06), PIGMENT, (0.7, 0.95),
               edge=0.8, rough=0.3, spread=0.20),
    ),
    "OTHER": (
        Lesion(CHOROID, "retina", (1, 1), (0.12, 0.20), NAEVUS, (0.6, 0.9), edge=0.8, share=0.4),
        Lesion(RETINA, "macula", (3, 5), (0.025, 0.045), SHEEN, (0.5, 0.8), (4, 8),
               edge=0.8, spread=0.12, share=0.4),
        Lesion(RETINA, "retina", (1, 1), (0.10, 0.16), DARK_BLOOD, (0.7, 0.95), (1.5, 2),
               edge=0.4, share=0.4),
    ),
}  # fmt: skip
# Seen in any eye, so that a mark alone proves nothing.
HARMLESS: tuple[Lesion, ...] = (
    Lesion(RETINA, "retina", (0, 3), (0.010, 0.018), BLOOD, (0.2, 0.6), share=0.3),
    Lesion(CHOROID, "retina", (0, 4), (0.012, 0.022), DRUSEN, (0.2, 0.5), share=0.4),
    Lesion(CHOROID, "crescent", (1, 1), (0.14, 0.17), SCLERA, (0.1, 0.4), share=0.4),
    Lesion(VITREOUS, "retina", (1, 2), (0.20, 0.35), HAZE, (0.1, 0.3), edge=1.6, rough=0.2,
           share=0.3),
    Lesion(CHOROID, "retina", (1, 1), (0.25, 0.40), STREAK, (0.1, 0.35), (1, 1.6), edge=0.9,
           stripes=5.5, share=0.4),
    Lesion(RETINA, "artery", (2, 6), (0.010, 0.014), COPPER, (0.2, 0.5), (3, 5), share=0.4,
           tangent=True),
    Lesion(RETINA, "vein", (1, 4), (0.015, 0.030), SHEEN, (0.1, 0.35), (3, 6), share=0.5,
           tangent=True),
)  # fmt: skip


def change_anatomy(rng: np.random.Generator, eye: Anatomy, present: dict[str, np.ndarray]) -> None:
    """Apply the findings that change the disc or the vessels; ``present`` names their images."""
    cup, pale, faint, swollen, narrow = rng.random((5, len(eye.disc)))
    eye.pallor, eye.narrowing = 0.25 * pale * faint, 0.3 * narrow
    for finding, attribute, degree in (
        ("ODC", eye.cup_ratio, 0.60 + 0.25 * cup),
        ("ODP", eye.pallor, 0.5 + 0.5 * pale),
        ("ODE", eye.swelling, 0.6 + 0.4 * swollen),
        ("HTR", eye.narrowing, 0.5 + 0.5 * narrow),
    ):
        rows = present[finding]
        attribute[rows] = degree[rows]


def place_marks(
    rng: np.random.Generator, lesions: tuple[Lesion, ...], images: np.ndarray, eye: Anatomy
) -> Iterator[tuple[int, Marks]]:
    """Yield (layer, marks) of one finding for each of its lesions, in the eyes ``images``."""
    anchor = rng.random((len(eye.disc), 2))  # shared by all marks of the finding in one eye
    doubt, strength, kind = rng.random((3, len(eye.disc)))
    strength = np.where(doubt < FAINT, 0.15 + 0.25 * strength, 0.8 + 0.2 * strength)
    start = 0.0  # lesions shown in a share of the images take turns around the unit circle
    for lesion in lesions:
        shown = images[(kind[images] - start) % 1 < lesion.share]
        start += lesion.share
        number = rng.integers(lesion.count[0], lesion.count[1] + 1, len(shown))
        image = np.repeat(shown, number)
        yield lesion.layer, _marks(rng, lesion, image, eye, anchor[image], strength[image])


def _marks(
    rng: np.random.Generator,
    lesion: Lesion,
    image: np.ndarray,
    eye: Anatomy,
    anchor: np.ndarray,
    strength: np.ndarray,
) -> Marks:
    count = len(image)
    x, y, angle = PLACES[lesion.place](_Asked(rng, eye, image, anchor))
    shift = rng.normal(0, lesion.spread, (2, count))
    if not lesion.tangent:
        angle = rng.uniform(0, np.pi, count)
    angle = angle + rng.normal(0, 0.15, count)
    across = rng.uniform(*lesion.size, count)
    shade = rng.normal(1, 0.06, count)
    red, green, blue = (np.clip(channel * shade, 0, 1) for channel in lesion.colour)
    constant = np.ones(count)
    return Marks(
        image=image, x=x + shift[0], y=y + shift[1],
        along=across * rng.uniform(*lesion.aspect, count), across=across, angle=angle,
        edge=lesion.edge * constant, rough=lesion.rough * constant,
        hollow=lesion.hollow * constant, stripes=lesion.stripes * constant,
        red=red, green=green, blue=blue,
        opacity=strength * rng.uniform(*lesion.opacity, count),
    )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """What places are drawn for: M marks.

    Attributes:
        rng: the numbers of the finding.
        eye: the eyes of all images.
        image: (M,) the image of each mark.
        anchor: (M, 2) in [0, 1), the numbers that all marks of the finding in one eye share.
    """

    rng: np.random.Generator
    eye: Anatomy
    image: np.ndarray
    anchor: np.ndarray


Place = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, direction of M marks
Placer = Callable[[_Asked], Place]


def _polar(rng: np.random.Generator, low: float, high: float, count: int) -> Place:
    radius = np.sqrt(rng.uniform(low**2, high**2, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    return radius * np.cos(angle), radius * np.sin(angle), angle


def _retina(marks: _Asked) -> Place:
    return _polar(marks.rng, 0.0, 0.82, len(marks.image))


def _periphery(marks: _Asked) -> Place:
    return _polar(marks.rng, 0.6, 0.88, len(marks.image))


def _patch(marks: _Asked) -> Place:
    """One point per eye, at some distance from the middle."""
    radius, angle = 0.2 + 0.5 * marks.anchor[:, 0], 2 * np.pi * marks.anchor[:, 1]
    return radius * np.cos(angle), radius * np.sin(angle), angle


def _macula(marks: _Asked) -> Place:
    x, y = marks.eye.fovea[marks.image].T
    return x, y, np.zeros(len(marks.image))


def _disc(marks: _Asked) -> Place:
    x, y = marks.eye.disc[marks.image].T
    return x, y, np.zeros(len(marks.image))


def _ring(marks: _Asked) -> Place:
    """Around the macula, outside of it."""
    x, y, angle = _polar(marks.rng, 0.24, 0.6, len(marks.image))
    fovea = marks.eye.fovea[marks.image]
    return fovea[:, 0] + x, fovea[:, 1] + y, angle


def _margin(marks: _Asked) -> Place:
    """On a circle just outside of the disc."""
    angle = marks.rng.uniform(0, 2 * np.pi, len(marks.image))
    radius, disc = 1.15 * marks.eye.disc_radius[marks.image], marks.eye.disc[marks.image]
    return disc[:, 0] + radius * np.cos(angle), disc[:, 1] + radius * np.sin(angle), angle


def _crescent(marks: _Asked) -> Place:
    """Beside the disc, on the side of the macula, so that the disc covers the rest."""
    disc, count = marks.eye.disc[marks.image], len(marks.image)
    toward = np.sign(marks.eye.fovea[marks.image, 0] - disc[:, 0])
    x, y = disc[:, 0] + toward * 0.07, disc[:, 1] + marks.rng.normal(0, 0.02, count)
    return x, y, np.zeros(count)


def _vessel(
    marks: _Asked, vessel: np.ndarray, start: np.ndarray | float, stop: np.ndarray | float
) -> Place:
    """Anywhere on the given vessels (M,), between two shares of their length."""
    steps = marks.eye.trunks.shape[2]
    share = start + (stop - start) * marks.rng.random(len(marks.image))
    index = np.clip((steps * share).astype(int), 0, steps - 1)
    point = marks.eye.trunks[marks.image, vessel, index]
    return point[:, 0], point[:, 1], point[:, 2]


def _vein(marks: _Asked) -> Place:
    vessel = QUADRANTS + marks.rng.integers(0, QUADRANTS, len(marks.image))
    return _vessel(marks, vessel, 0.1, 0.85)


def _artery(marks: _Asked) -> Place:
    return _vessel(marks, marks.rng.integers(0, QUADRANTS, len(marks.image)), 0.1, 0.75)


def _branch(marks: _Asked) -> Place:
    """A stretch of one vein, the same for all marks of the eye."""
    vessel = QUADRANTS + (2 * marks.anchor[:, 0]).astype(int)
    start = 0.15 + 0.25 * marks.anchor[:, 1]
    return _vessel(marks, vessel, start, start + 0.4)


PLACES: dict[str, Placer] = {
    "retina": _retina,
    "periphery": _periphery,
    "patch": _patch,
    "macula": _macula,
    "ring": _ring,
    "disc": _disc,
    "margin": _margin,
    "crescent": _crescent,
    "vein": _vein,
    "artery": _artery,
    "branch": _branch,
}
