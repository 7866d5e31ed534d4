"""Procedural fundus-like images with the shape of MuReD; needs no file and no download."""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils_.datasets.base import TEST, TRAIN, ImageDataset
from utils_.datasets.synthetic.scene import render
from utils_.errors import UserError
from utils_.files import atomic_path
from utils_.rng import derive

logger = logging.getLogger("fednml")
VERSION = 2  # to be raised whenever the same seed gives other labels or pixels
CACHE = Path(__file__).resolve().parents[3] / "data" / "synthetic" / ".cache"
CHECKSUM_BYTES = 4
# MuReD (Rodriguez et al., Data in Brief 2022): classes in the order of its files, with the
# number of images of each class among the SIZES of its train and val files.
COUNTS = {
    "DR": (396, 99), "NORMAL": (395, 98), "MH": (135, 34), "ODC": (211, 52), "TSLN": (125, 31),
    "ARMD": (126, 32), "DN": (130, 32), "MYA": (71, 18), "BRVO": (63, 16), "ODP": (50, 12),
    "CRVO": (44, 11), "CNV": (48, 12), "RS": (47, 11), "ODE": (46, 11), "LS": (37, 9),
    "CSR": (29, 7), "HTR": (28, 7), "ASR": (26, 7), "CRS": (24, 6), "OTHER": (209, 52),
}  # fmt: skip
CLASSES = tuple(COUNTS)
NORMAL = CLASSES.index("NORMAL")
SIZES = (1764, 444)
SMALLEST = (40, 20)
PARTS = ("train", "test")
# How often two findings share an image, relative to chance. The numbers were counted in the label
# files of RFMiD (Pachade et al., Data 2021) and rounded; pairs with HTR are a guess. All others are
# rare and have APART.
TOGETHER = {
    ("DR", "LS"): 3.0, ("DR", "ODC"): 0.65, ("DR", "TSLN"): 0.7, ("DR", "ODP"): 0.65,
    ("MH", "ODC"): 0.85, ("MH", "TSLN"): 1.2, ("MH", "MYA"): 0.5, ("ODC", "TSLN"): 1.55,
    ("ODC", "DN"): 0.6, ("ODC", "MYA"): 1.2, ("ODC", "BRVO"): 0.85, ("ODC", "LS"): 0.7,
    ("ODC", "CRS"): 0.7, ("TSLN", "ARMD"): 2.0, ("TSLN", "DN"): 0.85, ("TSLN", "BRVO"): 0.55,
    ("TSLN", "ODP"): 1.45, ("TSLN", "LS"): 0.75, ("ARMD", "MYA"): 3.6, ("DN", "ODP"): 0.85,
    ("MYA", "ODP"): 0.8, ("LS", "ODP"): 2.5, ("HTR", "ASR"): 2.5, ("HTR", "DR"): 0.7,
    ("ODE", "ODC"): 0.0, ("ODE", "ODP"): 0.0, ("BRVO", "CRVO"): 0.0,
}  # fmt: skip
APART = 0.3
CROWDING = 0.3  # how much rarer each further finding makes the next one


def load_synthetic(
    *,
    image_size: int,
    data_seed: int,
    train_images: int | None = None,
    test_images: int | None = None,
    cache_dir: Path | None = None,
    labels_only: bool = False,
    quiet: bool = True,
) -> ImageDataset:
    """Return drawn fundus images with 20 classes; the test part does not affect the training part.

    Args:
        image_size: edge in pixels, 16 to 512 are sensible; the same eyes at every size.
        data_seed: another seed gives other eyes and other labels.
        train_images: at least 40; None = 1,764 as in MuReD. Class counts scale with it.
        test_images: at least 20; None = 444 as in MuReD.
        cache_dir: where the images are kept; None = ``data/synthetic/.cache``.
        labels_only: draw and write nothing; images are then all 0 and ``image_key`` is empty.
        quiet: no progress bar.

    Raises:
        UserError: a size is too small; the cache cannot be written.
    """
    sizes = _sizes(train_images, test_images)
    parts = [_draw_labels(data_seed, part, size) for part, size in enumerate(sizes)]
    shape = (sum(sizes), image_size, image_size, 3)
    if labels_only:
        key, images = "", np.broadcast_to(np.uint8(0), shape)
    else:
        recipe = f"{VERSION} {image_size} {data_seed} {sizes}"
        key = hashlib.sha256(recipe.encode()).hexdigest()[:32]
        path = (cache_dir or CACHE) / f"{key}.npy"
        images = _cached(path, shape, parts, data_seed=data_seed, quiet=quiet)
    labels = np.concatenate(parts)
    return ImageDataset(
        name="synthetic",
        images=images,
        labels=labels,
        classes=CLASSES,
        files=tuple(f"{PARTS[p]}_{i:05d}.png" for p in (0, 1) for i in range(1, sizes[p] + 1)),
        part=np.repeat(np.array([TRAIN, TEST], np.uint8), sizes),
        groups=None,
        sites=None,
        image_key=key,
        verified=labels,
    )


def _sizes(train_images: int | None, test_images: int | None) -> tuple[int, ...]:
    asked = (train_images, test_images)
    for part, given, smallest in zip(PARTS, asked, SMALLEST, strict=True):
        if given is not None and given < smallest:
            raise UserError(
                f"--{part}-images: {given} is too few for {len(CLASSES)} classes; "
                f"give at least {smallest}"
            )
    return tuple(size if given is None else given for given, size in zip(asked, SIZES, strict=True))


def positives_by_class(part: int, images: int) -> np.ndarray:
    """Return (20,) int: the images of each class among so many of the train (0) or test (1) part.

    There is at least one of each class. No image is left without one: NORMAL takes what the others
    leave.
    """
    published = np.array([pair[part] for pair in COUNTS.values()])
    counts: np.ndarray = np.maximum(np.rint(published * images / SIZES[part]).astype(int), 1)
    findings = counts.sum() - counts[NORMAL]
    counts[NORMAL] = max(counts[NORMAL], images - findings)
    return counts


def _draw_labels(data_seed: int, part: int, images: int) -> np.ndarray:
    """Return (images, 20) float32 labels that keep the class counts exactly.

    Every abnormal image gets one finding; those left over join images with likely partners.
    """
    rng = derive(data_seed, "synthetic", PARTS[part], "labels")
    counts = positives_by_class(part, images)
    labels = np.zeros((images, len(CLASSES)), np.float32)
    order = rng.permutation(images)
    normal, abnormal = np.split(order, [counts[NORMAL]])
    labels[normal, NORMAL] = 1
    findings = np.delete(np.arange(len(CLASSES)), NORMAL)
    findings = rng.permutation(np.repeat(findings, counts[findings]))
    first, further = np.split(findings, [len(abnormal)])
    labels[abnormal, first] = 1
    affinity = _affinity()
    for finding, number in enumerate(np.bincount(further, minlength=len(CLASSES))):
        present = labels[abnormal] == 1
        odds = np.where(present, affinity[finding], 1).prod(1)
        odds *= CROWDING ** (present.sum(1) - 1) * ~present[:, finding]
        # The largest of log(uniform) / odds are a weighted draw without replacement
        # (Efraimidis and Spirakis, Information Processing Letters 2006).
        score = np.log(rng.random(len(abnormal))) / np.maximum(odds, 1e-9)
        labels[abnormal[np.argsort(-score, kind="stable")[:number]], finding] = 1
    return labels


def _affinity() -> np.ndarray:
    """Return (20, 20): odds of two findings in one image."""
    affinity = np.full((len(CLASSES), len(CLASSES)), APART)
    for pair, odds in TOGETHER.items():
        first, second = (CLASSES.index(name) for name in pair)
        affinity[first, second] = affinity[second, first] = odds
    return affinity


def _cached(
    path: Path, shape: tuple[int, ...], parts: list[np.ndarray], *, data_seed: int, quiet: bool
) -> np.ndarray:
    """Return the memory-mapped images, drawn first where the file is absent or damaged."""
    images = _open(path, shape)
    if images is None:
        begin = time.perf_counter()
        drawn = (
            block
            for name, labels in zip(PARTS, parts, strict=True)
            for block in render(
                labels, classes=CLASSES, image_size=shape[1], data_seed=data_seed, part=name
            )
        )
        _write(path, shape, _shown(drawn, total=shape[0], quiet=quiet))
        seconds = time.perf_counter() - begin
        logger.info("drew %d synthetic images in %.1f s: %s", shape[0], seconds, path)
        images = np.load(path, mmap_mode="r")
    return images


def _shown(drawn: Iterable[np.ndarray], *, total: int, quiet: bool) -> Iterator[np.ndarray]:
    """Pass the blocks on and show how many images there are so far."""
    from tqdm import tqdm

    # No bar where nobody watches: a run that stops on a full disk writes one line to stderr.
    hidden = True if quiet else None
    with tqdm(total=total, desc="images", unit="image", disable=hidden, leave=False) as bar:
        for images in drawn:
            yield images
            bar.update(len(images))


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the images, or None if the file is absent or (logged) damaged."""
    try:
        found = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            file.seek(-CHECKSUM_BYTES, 2)
            checksum = int.from_bytes(file.read(), "little")
        if found.shape != shape or found.dtype != np.uint8 or zlib.crc32(found) != checksum:
            raise ValueError("wrong shape or checksum")
    except (OSError, ValueError, EOFError) as error:
        if path.exists():
            logger.warning("%s is damaged (%s): drawing it again", path, error)
        return None
    images: np.ndarray = found
    return images


def _write(path: Path, shape: tuple[int, ...], drawn: Iterable[np.ndarray]) -> None:
    """Write an .npy file, followed by the CRC-32 of its data; whole or not at all."""
    made = [folder for folder in path.parents if not folder.exists()]
    checksum = 0
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for images in drawn:  # not through a memory map, which dies on a full disk
                checksum = zlib.crc32(images.data, checksum)
                file.write(images.data)
            file.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))
    except BaseException as error:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise UserError(
                f"{path.parent}: the images cannot be kept ({error.strerror or error}); "
                "make room there or name another folder with --cache-dir"
            ) from error
        raise
