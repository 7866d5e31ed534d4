"""MedMNIST: tiny .npz files in the official layout."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_datasets import error_of, labels_of
from tiny import load

from utils_.datasets import default_folder, medmnist
from utils_.datasets.base import TEST, TRAIN, VAL
from utils_.datasets.chestxray14 import CLASSES as CHEST_CLASSES

COUNTS = {"train": 5, "val": 2, "test": 3}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home folder without files of the package."""
    folder = tmp_path / "home"
    monkeypatch.setattr(Path, "home", lambda: folder)
    return folder


def make_arrays(name: str, *, size: int = 28, channels: int = 3, seed: int = 0) -> dict:
    draw = np.random.default_rng(seed)
    known = medmnist.SETS[name]
    arrays = {}
    for part, count in COUNTS.items():
        shape = (count, size, size, 3) if channels == 3 else (count, size, size)
        arrays[f"{part}_images"] = draw.integers(0, 256, shape, dtype=np.uint8)
        several = name == "chestmnist"
        top = 2 if several or known.positive is not None else len(known.classes)
        columns = len(known.classes) if several else 1
        arrays[f"{part}_labels"] = draw.integers(0, top, (count, columns), dtype=np.uint8)
    return arrays


def write_set(folder: Path, name: str, *, size: int = 28, compress: bool = True, **options) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = make_arrays(name, size=size, **options)
    save = np.savez_compressed if compress else np.savez
    save(folder / medmnist.file_name(name, size), **arrays)
    return arrays


@pytest.mark.parametrize("name", medmnist.SETS)
def test_every_set(tmp_path, name):
    arrays = write_set(tmp_path, name)
    data = load(name, data_dir=tmp_path, image_size=28, quiet=True)
    assert data.name == name and data.classes == medmnist.SETS[name].classes
    assert [(data.part == part).sum() for part in (TRAIN, VAL, TEST)] == [5, 2, 3]
    np.testing.assert_array_equal(
        data.images, np.concatenate([arrays[f"{part}_images"] for part in COUNTS])
    )
    given = np.concatenate([arrays[f"{part}_labels"] for part in COUNTS])
    assert data.labels.shape == (10, len(data.classes)) and data.labels.dtype == np.float32
    if name == "chestmnist":
        np.testing.assert_array_equal(data.labels, given)
    elif len(data.classes) == 1:
        positive = 0 if name == "breastmnist" else 1  # in BreastMNIST 0 is malignant
        np.testing.assert_array_equal(data.labels, given == positive)
    else:
        np.testing.assert_array_equal(data.labels.argmax(1), given[:, 0])
        assert (data.labels.sum(1) == 1).all()
    assert len(set(data.files)) == 10 and data.files[5] == "val/000000"


def test_grey_images_become_rgb_and_are_resized_as_pillow_does(tmp_path):
    from PIL import Image

    arrays = write_set(tmp_path, "chestmnist", size=64, channels=1)
    data = load("chestmnist", data_dir=tmp_path, image_size=16)
    assert data.images.shape == (10, 16, 16, 3)
    expected = Image.fromarray(arrays["train_images"][2]).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(data.images[2, :, :, 1].astype(int) - np.asarray(expected)).max() <= 2
    assert (data.images[..., 0] == data.images[..., 2]).all()
    assert data.classes == CHEST_CLASSES  # the order of the NIH
    by_name = labels_of("chestmnist", tmp_path, class_order="alphabetical")
    np.testing.assert_array_equal(
        by_name.labels[:, 2], data.labels[:, data.classes.index("Consolidation")]
    )


@pytest.mark.parametrize(
    ("present", "image_size", "taken"),
    [
        ((28, 64, 224), 28, 28),
        ((28, 64, 224), 32, 64),
        ((28, 64, 224), 64, 64),
        ((28, 64, 224), 100, 224),
        ((28, 64), 100, 64),
        ((28,), 1024, 28),
        ((128, 224), 16, 128),
    ],
)
def test_the_smallest_file_that_suffices(tmp_path, present, image_size, taken):
    for size in present:
        (tmp_path / medmnist.file_name("pathmnist", size)).write_bytes(b"")
    found = medmnist.find_file("pathmnist", tmp_path, image_size=image_size)
    assert found.name == medmnist.file_name("pathmnist", taken)


def test_file_of_the_package_serves_and_the_data_folder_wins(tmp_path, home, caplog):
    write_set(home / ".medmnist", "bloodmnist", seed=1)
    folder = tmp_path / "data"
    with caplog.at_level("INFO", logger="fednml"):
        first = load("bloodmnist", data_dir=folder, image_size=32, cache_dir=tmp_path / "cache")
    assert "images of 28 pixels are enlarged" in caplog.text
    assert not folder.exists()
    write_set(folder, "bloodmnist", seed=2)
    second = load("bloodmnist", data_dir=folder, image_size=32)
    assert first.image_key != second.image_key


def test_absent_file_says_what_to_run(tmp_path):
    message = error_of("organamnist", tmp_path, image_size=64)
    assert "organamnist_64.npz is absent" in message
    command = f"python scripts/prepare_data.py organamnist --data-dir {tmp_path} --size 64"
    assert command in message
    assert "section medmnist" in message
    assert default_folder("organamnist") == default_folder("pathmnist")


def test_warm_start_builds_nothing_and_damage_is_repaired(tmp_path, monkeypatch):
    write_set(tmp_path, "retinamnist")
    cold = load("retinamnist", data_dir=tmp_path, image_size=16)
    (cache,) = (tmp_path / ".cache").glob("*.npy")
    whole = cache.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(medmnist, "square_array", None)
        warm = load("retinamnist", data_dir=tmp_path, image_size=16)
    assert warm.image_key == cold.image_key
    np.testing.assert_array_equal(warm.images, cold.images)
    cache.write_bytes(whole[:-100] + b"x" * 100)
    load("retinamnist", data_dir=tmp_path, image_size=16)
    assert cache.read_bytes() == whole


def test_key_follows_content_and_size_not_packing(tmp_path):
    keys = set()
    for place, options in {
        "a": {},
        "b": {"compress": False},
        "c": {"seed": 1},
    }.items():
        write_set(tmp_path / place, "octmnist", channels=1, **options)
        for size in (16, 28):
            data = load("octmnist", data_dir=tmp_path / place, image_size=size)
            keys.add(data.image_key)
    assert len(keys) == 4


def test_dry_run_opens_no_image_and_writes_nothing(tmp_path, monkeypatch):
    write_set(tmp_path, "tissuemnist", channels=1)
    monkeypatch.setattr(medmnist, "_blocks", None)
    dry = labels_of("tissuemnist", tmp_path, image_size=32)
    assert dry.images.shape == (10, 32, 32, 3) and dry.image_key == ""
    assert not (tmp_path / ".cache").exists()


def damaged(folder: Path, change: dict | None = None, *, drop: str = "", cut: int = 0) -> None:
    arrays = make_arrays("bloodmnist") | (change or {})
    arrays.pop(drop, None)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    data = buffer.getvalue()
    (folder / "bloodmnist.npz").write_bytes(data[: len(data) - cut])


NINE = np.full((5, 1), 9, np.uint8)
BAD = {
    "cut off": ({"cut": 100}, "damaged"),
    "no test labels": ({"drop": "test_labels"}, "test_labels"),
    "no val images": ({"drop": "val_images"}, "val_images"),
    "label too high": ({"change": {"train_labels": NINE}}, "outside 0 to 7"),
    "label below 0": ({"change": {"train_labels": NINE.astype(np.int8) - 10}}, "outside 0"),
    "columns": ({"change": {"train_labels": np.zeros((5, 8), np.uint8)}}, "has 8 columns"),
    "floats": ({"change": {"val_labels": np.zeros((2, 1))}}, "float64"),
    "objects": ({"change": {"val_labels": np.array([[None], [1]])}}, "not a plain array"),
    "counts": ({"change": {"val_images": np.zeros((3, 28, 28, 3), np.uint8)}}, "for 2 labels"),
    "not square": ({"change": {"val_images": np.zeros((2, 28, 30, 3), np.uint8)}}, "shape"),
    "16 bits": ({"change": {"val_images": np.zeros((2, 28, 28, 3), np.uint16)}}, "uint16"),
    "by column": (
        {"change": {"val_images": np.asfortranarray(np.zeros((2, 28, 28, 3), np.uint8))}},
        "not a plain array",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    options, fragment = BAD[case]
    damaged(tmp_path, **options)
    message = error_of("bloodmnist", tmp_path, image_size=16)
    assert "bloodmnist.npz: damaged, or not of MedMNIST" in message and fragment in message
    assert "prepare_data.py bloodmnist" in message


# Where a header differs (offset in the local one, in the central one, new bytes), and the reason.
KINDS = {
    "of a later version": (4, 6, b"\x6e\x00", "zip file version"),
    "encrypted": (6, 8, b"\x01\x00", "encrypted"),
    "packed otherwise": (8, 10, b"\x63\x00", "compression"),
    "packed by lzma": (8, 10, b"\x0e\x00", ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_archives_of_other_kinds(tmp_path, kind):
    local, central, value, fragment = KINDS[kind]
    damaged(tmp_path)
    path = tmp_path / "bloodmnist.npz"
    data = path.read_bytes()
    for mark, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        parts = data.split(mark)
        rest = [part[: offset - 4] + value + part[offset - 2 :] for part in parts[1:]]
        data = mark.join([parts[0], *rest])
    path.write_bytes(data)
    message = error_of("bloodmnist", tmp_path, image_size=16)
    assert "bloodmnist.npz: damaged, or not of MedMNIST" in message and fragment in message


def test_flipped_bit_is_noticed(tmp_path):
    write_set(tmp_path, "bloodmnist", compress=False)
    path = tmp_path / "bloodmnist.npz"
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("test_images.npy").header_offset + 2000
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert "CRC" in error_of("bloodmnist", tmp_path, image_size=16)


def test_names_and_counts_agree_with_the_package():
    package = pytest.importorskip("medmnist", reason="the optional package is absent")
    flat = {name: info for name, info in package.INFO.items() if not name.endswith("3d")}
    assert set(flat) == set(medmnist.SETS)
    for name, info in flat.items():
        known, labels = medmnist.SETS[name], info["label"]
        total = f"{sum(info['n_samples'].values()):,} images"
        assert total in known.summary
        if known.positive is not None:
            assert labels[str(known.positive)] == known.classes[0]
        else:
            assert len(labels) == len(known.classes)
        if name == "chestmnist":
            start = [labels[str(column)][:5] for column in range(14)]
            assert start == [cls.lower()[:5] for cls in known.classes]
