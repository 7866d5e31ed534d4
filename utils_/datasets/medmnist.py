"""The twelve 2-D sets of MedMNIST, read from their .npz files; no package is needed for that."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from utils_.datasets.base import PART_NAMES, ImageDataset
from utils_.datasets.cache.array_file import (
    BLOCK_BYTES,
    allocate,
    new_file,
    open_array,
    publish,
    writing,
)
from utils_.datasets.cache.decode import square_array
from utils_.datasets.chestxray14 import CLASSES as CHEST_CLASSES
from utils_.datasets.listing import DataOptions, absent, preparing
from utils_.errors import UserError
from utils_.files import UNREADABLE_ZIP

logger = logging.getLogger("fednml")
FORMAT = 1  # to be raised whenever the same file gives other pixels
SIZES = (28, 64, 128, 224)
PACKAGE_FOLDER = ".medmnist"  # where the package keeps its files, below the home folder
ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver"),
    *("lung-left", "lung-right", "pancreas", "spleen"),
)


@dataclass(frozen=True)
class MedSet:
    """One set: what it shows, and its classes in the order of its label values.

    Attributes:
        summary: a line for ``--list datasets``.
        classes: C names; of a set of two values only the finding, as one column.
        positive: the label value that means the finding, of a set of two values.
    """

    summary: str
    classes: tuple[str, ...]
    positive: int | None = None


SETS = {
    "pathmnist": MedSet(
        "colon pathology, 107,180 images, 9 tissues",
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
            *("normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma"),
        ),
    ),
    "chestmnist": MedSet("ChestX-ray14, 112,120 images, 14 findings, multi-label", CHEST_CLASSES),
    "dermamnist": MedSet(
        "HAM10000, 10,015 images, 7 diagnoses", ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")
    ),
    "octmnist": MedSet(
        "retinal OCT, 109,309 images, 4 diagnoses",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    "pneumoniamnist": MedSet("paediatric chest X-ray, 5,856 images", ("pneumonia",), positive=1),
    "retinamnist": MedSet(
        "DeepDRiD fundus, 1,600 images, 5 grades of retinopathy",
        tuple(f"grade {grade}" for grade in range(5)),
    ),
    # Value 0 is the malignant one here, unlike in every other set of two values.
    "breastmnist": MedSet("breast ultrasound, 780 images", ("malignant",), positive=0),
    "bloodmnist": MedSet(
        "blood cells, 17,092 images, 8 types",
        (
            *("basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte"),
            *("monocyte", "neutrophil", "platelet"),
        ),
    ),
    "tissuemnist": MedSet(
        "kidney cortex, 236,386 images, 8 cell types",
        (
            *("collecting and connecting tubule", "distal convoluted tubule"),
            *("glomerular endothelial cell", "interstitial endothelial cell", "leukocyte"),
            *("podocyte", "proximal tubule", "thick ascending limb"),
        ),
    ),
    "organamnist": MedSet("abdominal CT, axial, 58,830 images, 11 organs", ORGANS),
    "organcmnist": MedSet("abdominal CT, coronal, 23,583 images, 11 organs", ORGANS),
    "organsmnist": MedSet("abdominal CT, sagittal, 25,211 images, 11 organs", ORGANS),
}


def loader_of(name: str) -> Callable[[Path, DataOptions], ImageDataset]:
    """Return the loader of one set; see load_medmnist."""

    def load(data_dir: Path, options: DataOptions) -> ImageDataset:
        return load_medmnist(name, data_dir, options)

    load.__doc__ = f"MedMNIST (Yang et al., Sci. Data 2023): {SETS[name].summary}."
    return load


def load_medmnist(name: str, data_dir: Path, options: DataOptions) -> ImageDataset:
    """Load one set with its official parts.

    - A label of several values becomes one-hot.
    - Of a label of two values only the finding becomes a column: the other value would repeat it,
      and so betray it where it is hidden.
    - Of the sizes at hand the smallest that suffices for ``image_size`` is taken, else the largest.

    Raises:
        UserError: there is no file, or it is damaged or not what it should be.
    """
    path = find_file(name, data_dir, image_size=options.image_size)
    try:
        with zipfile.ZipFile(path) as archive:
            labels = [_labels(archive, name, part) for part in PART_NAMES]
            counts = [len(rows) for rows in labels]
            images, key = _images(archive, counts, options, cache_dir=options.cache_in(data_dir))
    except UNREADABLE_ZIP as error:
        raise UserError(
            f"{path}: damaged, or not of MedMNIST ({error}); remove it and "
            f"{preparing(name, data_dir)} --size {_size_of(path)}"
        ) from error
    return ImageDataset(
        name=name,
        images=images,
        labels=np.concatenate(labels),
        classes=SETS[name].classes,
        files=tuple(
            f"{part}/{row:06d}"
            for part, count in zip(PART_NAMES, counts, strict=True)
            for row in range(count)
        ),
        part=np.repeat(np.arange(len(counts), dtype=np.uint8), counts),
        groups=None,
        sites=None,
        image_key=key,
    )


def file_name(name: str, size: int) -> str:
    """Return the name of a file as MedMNIST gives it: the smallest size goes unmentioned."""
    return f"{name}.npz" if size == SIZES[0] else f"{name}_{size}.npz"


def _size_of(path: Path) -> int:
    """Edge of the images of a file, as its name says; see file_name."""
    return next((size for size in SIZES if path.stem.endswith(f"_{size}")), SIZES[0])


def find_file(name: str, data_dir: Path, *, image_size: int) -> Path:
    """Return the fitting file in the data folder, else in that of the package.

    Raises:
        UserError: there is none of any size.
    """
    wanted = [size for size in SIZES if size >= image_size]
    order = wanted + [size for size in reversed(SIZES) if size not in wanted]
    folders = (data_dir, Path.home() / PACKAGE_FOLDER)
    for size in order:
        for folder in folders:
            if (path := folder / file_name(name, size)).is_file():
                if size < image_size:
                    logger.info("%s: images of %d pixels are enlarged", path, size)
                return path
    raise absent(
        name,
        f"{data_dir / file_name(name, order[0])} is absent",
        expected=f"{name}.npz or {name}_{{64,128,224}}.npz there or in ~/{PACKAGE_FOLDER}",
        source=f"{preparing(name, data_dir)} --size {order[0]}",
        section="medmnist",
    )


def _labels(archive: zipfile.ZipFile, name: str, part: str) -> np.ndarray:
    """Return (n, C) float32 of 0 and 1."""
    known = SETS[name]
    with _entry(archive, f"{part}_labels") as (file, shape, dtype):
        if dtype.kind not in "uib" or len(shape) != 2 or dtype.itemsize > 8:
            raise ValueError(f"{part}_labels has shape {shape} of {dtype}")
        data = file.read()  # few bytes, and the checksum is verified at the end
    values = np.frombuffer(data, dtype).reshape(shape).astype(np.int64)
    several = name == "chestmnist"
    top = 1 if several or known.positive is not None else len(known.classes) - 1
    if shape[1] != (len(known.classes) if several else 1):
        raise ValueError(f"{part}_labels has {shape[1]} columns")
    if shape[0] and not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"{part}_labels holds values outside 0 to {top}")
    if several:
        return values.astype(np.float32)
    wanted = np.arange(len(known.classes)) if known.positive is None else [known.positive]
    columns: np.ndarray = values == np.asarray(wanted)
    return columns.astype(np.float32)


def _images(
    archive: zipfile.ZipFile, counts: list[int], options: DataOptions, *, cache_dir: Path
) -> tuple[np.ndarray, str]:
    """Return (N, size, size, 3) uint8 and the key of their content, from the cache or built."""
    size = options.image_size
    shape = (sum(counts), size, size, 3)
    if options.labels_only:
        return np.broadcast_to(np.uint8(0), shape), ""
    entries = [archive.getinfo(f"{part}_images.npy") for part in PART_NAMES]
    # The archive's own checksums stand for the content, so that a warm start reads no pixel.
    content = [f"{entry.CRC:08x} {entry.file_size}" for entry in entries]
    head = f"medmnist {FORMAT} {size}"
    key = hashlib.sha256("\n".join([head, *content]).encode()).hexdigest()[:32]
    images = open_array(cache_dir / f"{key}.npy", shape)
    if images is None:
        images = _build(archive, counts, cache_dir / f"{key}.npy", options)
    return images, key


def _build(
    archive: zipfile.ZipFile, counts: list[int], path: Path, options: DataOptions
) -> np.ndarray:
    """Write the cache file; memory stays at one block however large the set is."""
    from tqdm import tqdm

    size = options.image_size
    hidden = True if options.quiet else None
    bar = tqdm(total=sum(counts), desc="images", unit="image", disable=hidden, delay=0.5)
    with writing(path.parent), new_file(path.parent) as temporary, bar:
        offset = allocate(temporary, (sum(counts), size, size, 3))
        with temporary.open("rb+") as file:
            file.seek(offset)
            for part, count in zip(PART_NAMES, counts, strict=True):
                for block in _blocks(archive, part, count):
                    file.write(np.stack([square_array(image, size) for image in block]).data)
                    bar.update(len(block))
        publish(temporary, path)
    images: np.ndarray = np.load(path, mmap_mode="r")
    return images


def _blocks(archive: zipfile.ZipFile, part: str, count: int) -> Iterator[np.ndarray]:
    """Yield the images of a part in turn, (n, side, side) or (n, side, side, 3) uint8."""
    with _entry(archive, f"{part}_images") as (file, shape, dtype):
        square = len(shape) in (3, 4) and shape[1] == shape[2] and shape[3:] in ((), (3,))
        if dtype != np.uint8 or not square or shape[0] != count:
            raise ValueError(f"{part}_images has shape {shape} of {dtype} for {count} labels")
        each = int(np.prod(shape[1:]))
        step = max(1, BLOCK_BYTES // each)
        for first in range(0, count, step):
            rows = min(step, count - first)
            data = file.read(rows * each)
            if len(data) < rows * each:
                raise EOFError(f"{part}_images ends early")
            yield np.frombuffer(data, np.uint8).reshape(rows, *shape[1:])
        if file.read(1):  # also makes the archive verify the checksum
            raise ValueError(f"{part}_images is longer than its header says")


@contextmanager
def _entry(
    archive: zipfile.ZipFile, key: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Open one array of an .npz file behind its header."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{key} is of the unknown version {version}")
        shape, by_column, dtype = read(file)
        if by_column or dtype.hasobject:
            raise ValueError(f"{key} is not a plain array")
        yield file, shape, dtype
